#!/usr/bin/env bash
# The node on a kernel with cgroup version 2 only: an emulated x86_64 machine with Debian's kernel, which sees this
# machine's files read-only and keeps what it writes in memory. Ends by itself and leaves nothing.
#
#   tests/guest.sh [SUBJECT...]     all of tests/guest/*.sh but deb and systemd (tests/deb.sh), or those named: runtime,
#                                   demo, ...; one with a / is a file
#
# PIKELET_GUEST_SWITCH="NETNS BRIDGE" gives the machine a network device at that bridge (eth0); PIKELET_GUEST_SETTINGS is a
# file of shell variables for the subjects.
#
# Prints what runs there, a line per subject, and `N passed, N failed`. The kernel package (about 70 MB) is downloaded once
# and kept in $PIKELET_CACHE (default ~/.cache/pikelet); it is never installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# the release of Debian whose kernel it has, as the images for boards do
suite=trixie
# seconds after which the machine is ended
limit=${PIKELET_GUEST_TIMEOUT:-900}
cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}/guest
# what has to be there before files can be shared; the rest is loaded by the guest itself
first=(virtio_pci 9p 9pnet_virtio overlay)

. cross/fetch.sh
. tests/harness/common.sh
. tests/harness/modules.sh
[ "$(uname -m)" = x86_64 ] || { say "skipped: it runs this machine's programs, which have to be for x86_64"; exit 0; }

programs qemu-system-x86_64:qemu-system-x86 modprobe:kmod xz:xz-utils

work=$(mktemp -d /tmp/pikelet-guest.XXXXXX)
machine=
device=
cleanup() {
  # timeout hands it on to the emulator
  [ -z "$machine" ] || { kill "$machine" && wait "$machine"; } 2>/dev/null || true
  [ -z "$device" ] || ip -n "${switch[0]}" link del "$device" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# of the kernel package: what is kept of it
parts=('*/boot/vmlinuz-*' '*/modules/*/modules.*' '*/kernel/'{arch,crypto,lib,net,fs/{9p,netfs,overlayfs,nfs,nfsd,nfs_common,lockd},drivers/virtio}
  '*/kernel/drivers/'{net/veth,net/dummy,net/virtio_net,net/net_failover,block/loop}'.ko*')

# kernel: the folder of the newest kernel package of that release, unpacked without installing it
kernel() {
  local package version lists=$cache/apt-$suite
  mkdir -p "$lists"
  # not asked again for a week
  [ -n "$(find "$lists/updated" -mtime -7 2>/dev/null)" ] || { apt_get "$suite" update && touch "$lists/updated"; } >&2 ||
    fail "apt-get update for $suite failed: check the network and apt's sources"
  package=$(apt_cache "$suite" depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  version=$(apt_cache "$suite" policy "$package" | awk '$1 == "Candidate:" { print $2 }')
  [ -n "$version" ] || fail "apt offers no linux-image-amd64 in $suite"
  kept "${package}_$version-$(cksum <<<"${parts[*]}" | cut -d ' ' -f 1)" make_kernel "$package" "$version"
}
# make_kernel PACKAGE VERSION DIR
make_kernel() {
  cd "$3"
  apt_get "$suite" download "$1=$2"
  dpkg-deb --fsys-tarfile "$1"_*.deb | tar -x --wildcards "${parts[@]}"
  rm "$1"_*.deb
  [ -d lib ] || ln -s usr/lib lib
  depmod -b . "${1#linux-image-}"
}
# unpacked NAME PATTERN PACKAGE...: a folder of those files of Debian's packages, which are not installed
unpacked() {
  local dir=$cache/$1 pattern=$2 new package; shift 2
  if [ ! -d "$dir" ]; then
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/new.XXXXXX")
    for package in "$@"; do
      (cd "$work" && { download "$package" || { apt-get -qq update && download "$package"; }; }) >&2 || fail "cannot download $package"
      dpkg-deb --fsys-tarfile "$work/$package"_*.deb |
        tar -x -C "$new" --wildcards --no-anchored --transform 's,.*/,./,S' "$pattern"
    done
    mv -T "$new" "$dir" 2>/dev/null || rm -rf "$new"
  fi
  echo "$dir"
}
# as root: apt's own user could not write here, and says so
download() { apt-get -qq -o APT::Sandbox::User=root download "$1"; }

# initramfs DIR: a static shell, the first modules in their order, and tests/guest/init
initramfs() {
  local root=$work/root
  mkdir -p "$root/bin"
  cp /bin/busybox "$root/bin/"
  install -m 755 tests/guest/init "$root/init"
  pack_modules "$1" "$release" "$root/modules" "${first[@]}"
  (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initramfs"
}

subjects=("$@")
if [ $# = 0 ]; then
  # systemd takes minutes here
  for file in tests/guest/*.sh; do
    case $file in */deb.sh | */systemd.sh) ;; *) subjects+=("$(basename "$file" .sh)") ;; esac
  done
fi
files=()
for subject in "${subjects[@]}"; do
  case $subject in */*) file=$subject ;; *) file=tests/guest/$subject.sh ;; esac
  [ -f "$file" ] || fail "no subject $subject: see tests/guest"
  files+=("$file")
done

# a program that was named is taken as it is
[ -n "${PIKELET_BIN:-}" ] || cargo build --quiet
program=$(pikelet_bin)
# the files of the test programs: cargo tells them only in this way
tests=
if grep -q 'tests\[' "${files[@]}"; then
  tests=$(cargo test --quiet --no-run --test 'node_*' --message-format json |
    jq -r 'select(.executable != null and .target.kind == ["test"]) | "[\(.target.name)]=\(.executable | @sh)"')
fi
if [[ " ${subjects[*]} " = *" deb "* ]]; then
  # two versions of the package, made here because the guest is slow
  strip -o "$work/pikelet" "$program"
  for revision in 1 2; do DEB_COMPRESS=none systemd/deb/build.sh amd64 "$work/pikelet" "$work" $revision >/dev/null; done
fi
dir=$(kernel)
# also for the subjects: AppArmor's parser, an NFS server's programs
tools=$(unpacked apparmor '*/sbin/apparmor_parser' apparmor)
tools+=:$(unpacked nfs-server '*/sbin/[er]*' nfs-kernel-server)
libraries=$(unpacked nfs-server-libraries '*.so.*' libtirpc3 libwrap0 libevent-core-2.1-7)
release=$(basename "$dir"/lib/modules/*)
initramfs "$dir"
cat >"$work/settings" <<SETTINGS
checkout=$(printf %q "$PWD")
kernel=$(printf %q "$dir")
tools=$(printf %q "$tools")
libraries=$(printf %q "$libraries")
subjects=(${subjects[*]@Q})
files=(${files[*]@Q})
debs=$work
export PIKELET_BIN=$(printf %q "$program")
declare -A tests=($tests)
$(cat "${PIKELET_GUEST_SETTINGS:-/dev/null}")
SETTINGS
cp tests/guest/run "$work/run"

# a network device, where one is wanted
inside=() network=()
read -ra switch <<<"${PIKELET_GUEST_SWITCH:-}"
if [ ${#switch[@]} = 2 ]; then
  device=guest$$
  ip -n "${switch[0]}" tuntap add "$device" mode tap
  ip -n "${switch[0]}" link set "$device" master "${switch[1]}" up
  inside=(nsenter --net="/run/netns/${switch[0]}")
  network=(-netdev "tap,id=net,ifname=$device,script=no,downscript=no" -device virtio-net-pci,netdev=net,romfile=)
fi

# before anybody opens it
: >"$work/console"
timeout -k 5 "$limit" "${inside[@]}" qemu-system-x86_64 -M q35 -cpu max,la57=off -accel tcg,thread=multi -smp 2 -m 1536 \
  -nodefaults -no-user-config -display none -no-reboot -serial stdio -serial "file:$work/status" \
  -kernel "$dir"/boot/vmlinuz-* -initrd "$work/initramfs" \
  -append "console=ttyS0 quiet loglevel=3 panic=-1 cgroup_no_v1=all guest.work=$work" \
  -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap" \
  -device virtio-9p-pci,fsdev=host,mount_tag=host "${network[@]}" \
  </dev/null >>"$work/console" &
machine=$!
tail -n +1 -f --pid="$machine" "$work/console" | tr -d '\r' &
reader=$!
code=0
wait "$machine" || code=$?
machine=
wait "$reader"
[ "$code" != 124 ] || fail "not done after $limit s"
[ "$code" = 0 ] || fail "the emulator ended with $code"
# how many subjects failed
status=$(tr -d '\r\n' <"$work/status")
[ "$status" = 0 ] || fail "failed: ${status:-the machine ended before its first program}"
