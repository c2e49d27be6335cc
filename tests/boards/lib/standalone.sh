# A board with no network and no disk, which runs static pods of an image from an archive (sourced by a board's test, which
# sets target, debian, kernel_package, modules, machine, options and, if it needs one, device_tree).
# Everything is in its initramfs; tests/boards/lib/init and run are what happens there.
#
# PIKELET_BIN: a program that is taken as it is; without it cross/build.sh makes the target's. ARMv6's runs on all of them.

# seconds after which the machine is ended
limit=${PIKELET_BOARD_TIMEOUT:-600}
cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}/boards
. cross/fetch.sh
. tests/harness/common.sh
. tests/harness/modules.sh

programs qemu-system-arm:qemu-system-arm modprobe:kmod xz:xz-utils

# unpacked NEW PACKAGE MEMBER...: of that Debian package, only these members
unpacked() {
  local new=${!#} package=$1
  set -- "${@:2:$#-2}"
  cd "$new"
  apt_get "$debian" download "$package"
  dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x --wildcards "$@"
  rm "$package"_*.deb
}
make_kernel() {
  unpacked "$kernel" '*/boot/vmlinuz-*' '*/modules/*/modules.*' '*/kernel/'{arch,crypto,lib,net,fs/overlayfs} \
    '*/kernel/drivers/net/veth.ko*' '*.dtb' "$1"
  [ -d lib ] || ln -s usr/lib lib
  depmod -b . "${kernel#linux-image-}"
}
# candidate PACKAGE: the version that apt would download
candidate() { apt_get "$debian" download --print-uris "$1" | sed "s/.* \($1_[^ ]*\)_[^_ ]*\.deb .*/\1/"; }

[ -d "$cache/apt-${debian/\//-}/lists" ] && [ -z "$(find "$cache/apt-${debian/\//-}" -maxdepth 0 -mtime +7)" ] ||
  { mkdir -p "$cache"; apt_get "$debian" update; touch "$cache/apt-${debian/\//-}"; }
# the one that the package for the newest kernel depends on
kernel=$(apt_cache "$debian" depends "$kernel_package" | awk '$1 == "Depends:" { print $2; exit }')
kernel_dir=$(kept "$(candidate "$kernel")" make_kernel)
busybox=$(kept "$(candidate busybox-static)-${debian#*/}" unpacked busybox-static '*/bin/busybox')
release=$(basename "$kernel_dir"/lib/modules/*)
pikelet=${PIKELET_BIN:-}
[ -n "$pikelet" ] || read -r _ _ pikelet < <(cross/build.sh "$target")

work=$(mktemp -d /var/tmp/pikelet-board.XXXXXX)
guest=
cleanup() {
  # timeout hands it on to the emulator
  [ -z "$guest" ] || { kill "$guest" && wait "$guest"; } 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

root=$work/root
mkdir -p "$root/system"
busybox_root "$root/system"
find "$busybox" -name busybox -exec cp {} "$root/system/bin/busybox" \;
cp -r "$root/system" "$work/image"
install "$pikelet" "$root/system/bin/pikelet"
install -m 644 tests/boards/lib/run "$root/system/run.sh"
install -m 755 tests/boards/lib/init "$root/init"
mkdir -p "$root/bin"
cp "$root/system/bin/busybox" "$root/bin/"
pack_modules "$kernel_dir" "$release" "$root/modules" "${modules[@]}"
pack_image "$work/layout" 1 "$work/image"
umoci config --image "$work/layout:1" --architecture arm
skopeo --insecure-policy copy --quiet "oci:$work/layout:1" "oci-archive:$root/system/image.tar:board/busybox:1"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs"

dtb=()
[ -z "${device_tree:-}" ] || dtb=(-dtb "$(find "$kernel_dir" -name "$device_tree")")
: >"$work/console"
timeout -k 5 "$limit" qemu-system-arm "${machine[@]}" -m 512 -nodefaults -no-user-config -display none -no-reboot \
  -serial stdio -kernel "$kernel_dir"/boot/vmlinuz-* -initrd "$work/initramfs" "${dtb[@]}" \
  -append "$options quiet loglevel=3 panic=-1 cgroup_no_v1=all board.date=$(date +%s)" \
  </dev/null >>"$work/console" &
guest=$!
tail -n +1 -f --pid="$guest" "$work/console" | tr -d '\r' &
reader=$!
code=0
wait "$guest" || code=$?
guest=
wait "$reader"
[ "$code" != 124 ] || fail "not done after $limit s"
tr -d '\r' <"$work/console" | grep -qE '^[1-9][0-9]* passed, 0 failed$'
