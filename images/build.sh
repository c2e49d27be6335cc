#!/usr/bin/env bash
# An image to write to an SD card: kernel, firmware and device trees of Debian's packages, and pikelet. Needs no root.
#
#   images/build.sh BOARD VARIANT       e.g. rpi appliance, or rpi debian
#
# PIKELET_BIN: the program for the board's processor; without it `make cross`'s. Prints the image's file and size. The
# packages (about 100 MB) are kept in $PIKELET_CACHE (default ~/.cache/pikelet) and never installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
. tests/harness/modules.sh
. images/packages.sh

board=${1:-rpi} variant=${2:-appliance}
# MiB; the data partition grows to the size of the card
boot_size=128 data_size=64

# what boards differ in, but for their device trees and the files that are named after them: the program's target, Debian's
# architecture, the kernel's name
case $board in
rpi | rpi5) target=aarch64-unknown-linux-musl architecture=arm64 kernel_name=kernel8.img ;;
rpi2) target=armv7-unknown-linux-musleabihf architecture=armhf kernel_name=kernel7.img ;;
rpi0) target=arm-unknown-linux-musleabihf architecture=armel kernel_name=kernel.img ;;
*)
  fail "BOARD=$board: there are rpi (Raspberry Pi 3, 3+, 4, 400, CM3, CM4 and, by USB Ethernet, Zero 2 W), rpi5, rpi2" \
    "and rpi0 (1, CM1 and, by USB Ethernet, Zero and Zero W)"
  ;;
esac
case $variant in
appliance) lists=(images/common.modules) ;;
debian)
  [ "$architecture" = arm64 ] ||
    fail "BOARD=$board VARIANT=debian: Debian's system is for 64-bit boards only (BOARD=rpi or rpi5): use VARIANT=appliance"
  lists=(images/debian/modules)
  . images/debian/root.sh
  ;;
*) fail "VARIANT=$variant: there are appliance and debian" ;;
esac

programs mkfs.vfat:dosfstools mcopy:mtools mkfs.ext4:e2fsprogs sfdisk:fdisk modprobe:kmod xz:xz-utils zstd:zstd busybox:busybox-static mksquashfs:squashfs-tools systemd-sysusers:systemd

out=${CARGO_TARGET_DIR:-target}/images
bin=${PIKELET_BIN:-${CARGO_TARGET_DIR:-target}/$target/release/pikelet}
[ -x "$bin" ] || fail "no program at $bin: run make cross TARGET=$target, or set PIKELET_BIN"
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

packages=$(packages "images/$board.packages" "$architecture")
kernel=$(basename "$packages"/usr/lib/modules/*)
vmlinuz=$packages/boot/vmlinuz-$kernel
[ -f "$vmlinuz" ] || vmlinuz=$packages/usr/lib/modules/$kernel/vmlinuz
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# the same for the same source: what the image says of its age
made=$(git log -1 --format=%ct 2>/dev/null || date +%s)

# initramfs: the program, its modules in the order they are loaded, certificates of public CAs
initramfs() {
  local root=$work/root modules
  mkdir -p "$root"/{bin,sbin,etc/ssl/certs,etc/pikelet}
  install -m 755 "$bin" "$root/bin/pikelet"
  ln -s bin/pikelet "$root/init"
  install -m 755 "$packages/usr/sbin/e2fsck.static" "$root/sbin/e2fsck"
  cat "$packages"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
  echo "$made" >"$root/etc/pikelet/made"
  cat >"$root/etc/os-release" <<OS
PRETTY_NAME="pikelet $version appliance (Debian's Linux $kernel)"
NAME="pikelet appliance"
ID=pikelet
VERSION_ID="$version"
OS
  echo 'root:x:0:0:root:/root:/bin/false' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  mapfile -t modules < <(sed 's/#.*//' "images/$board.modules" "${lists[@]}" | awk 'NF')
  pack_modules "$packages" "$kernel" "$root/lib/modules" "${modules[@]}"
  find "$root" -exec touch -h -d "@$made" {} +
  (cd "$root" && find . | LC_ALL=C sort | busybox cpio -o -H newc -R 0:0 2>/dev/null) | zstd -q -12 -T0 >"$work/initrd.zst"
}

# device_trees DIR: under the kernel's names and those by which the firmware asks for them, which it does before it believes
# that a system is there
device_trees() {
  local from to
  case $board in
  rpi)
    cp "$packages"/usr/lib/linux-image-*/broadcom/bcm2{711,837}-rpi-*.dtb "$1/"
    for from in "$1"/bcm2837-rpi-*.dtb; do
      to=${from/bcm2837/bcm2710}
      cp "$from" "${to/cm3-io3/cm3}"
    done
    cp "$1/bcm2711-rpi-cm4-io.dtb" "$1/bcm2711-rpi-cm4.dtb"
    ;;
  rpi5)
    cp "$packages/usr/lib/modules/$kernel"/dtb/broadcom/bcm2712-*rpi-5-b.dtb "$1/"
    cp "$1/bcm2712-d-rpi-5-b.dtb" "$1/bcm2712d0-rpi-5-b.dtb"
    ;;
  rpi2)
    cp "$packages"/usr/lib/linux-image-*/bcm2836-rpi-2-b.dtb "$1/"
    cp "$1/bcm2836-rpi-2-b.dtb" "$1/bcm2709-rpi-2-b.dtb"
    ;;
  rpi0)
    cp "$packages"/usr/lib/linux-image-*/bcm2835-rpi-*.dtb "$1/"
    for from in "$1"/bcm2835-rpi-*.dtb; do
      to=${from/bcm2835/bcm2708}
      # for the kernel a B is one of the first revision, for the firmware one of a later one
      case $from in
      *-b.dtb) to=${to/-b.dtb/-b-rev1.dtb} ;;
      *-b-rev2.dtb) to=${to/-b-rev2/-b} ;;
      *-cm1-io1.dtb) to=${to/-cm1-io1/-cm} ;;
      esac
      cp "$from" "$to"
    done
    ;;
  esac
}

# firmware DIR: what the board's processor starts with, where that is not on the board itself
firmware() {
  local from=$packages/usr/lib/raspi-firmware
  case $board in
  rpi5) ;;
  rpi) cp "$from"/{bootcode.bin,fixup*.dat,start*.elf} "$1/" ;;
  # no Pi 4, which has its own
  *) cp "$from"/{bootcode.bin,fixup{,_*}.dat,start{,_*}.elf} "$1/" ;;
  esac
}

# boot_partition: firmware, the settings, and a system, which is what upgrades put beside it, as FAT
boot_partition() {
  local files=$work/boot
  if [ "$variant" = debian ]; then debian_files "$files"; else appliance_files "$files"; fi
  firmware "$files"
  truncate -s "${boot_size}M" "$work/boot.img"
  mkfs.vfat -F 32 -n PIKELET -i 70696b65 --invariant "$work/boot.img" >/dev/null
  MTOOLS_SKIP_CHECK=1 mcopy -s -m -i "$work/boot.img" "$files"/* ::
}

# versions FILE: what the image is made of
versions() { echo "pikelet $version, Debian's Linux $kernel; packages: $(tr '\n' ' ' <"$packages/versions")" >"$1"; }

# appliance_files DIR: two places for systems
appliance_files() {
  local files=$1
  mkdir -p "$files"/{a,b}
  case $architecture in
  arm64) gzip -n -9 <"$vmlinuz" ;;
  # it unpacks itself
  *) cat "$vmlinuz" ;;
  esac >"$files/a/$kernel_name"
  cp "$work/initrd.zst" "$files/a/"
  device_trees "$files/a"
  cp "images/$board.cmdline.txt" "$files/a/cmdline.txt"
  versions "$files/a/image.txt"
  # an older image is no upgrade: src/init/upgrade/install.rs
  echo "made $made" >>"$files/a/image.txt"
  cp "images/$board.config.txt" "$files/config.txt"
  # of one sector, as src/init/upgrade/choice.rs has it
  printf '# Which system of this card is started, a/ or b/. Upgrades change it.\nos_prefix=a/\n' >"$files/choice.txt"
  printf '\n%.0s' $(seq "$(stat -c %s "$files/choice.txt")" 511) >>"$files/choice.txt"
  cp images/pikelet.yaml "$files/"
}

# data_partition: an empty ext4 that can grow to any card's size
data_partition() {
  truncate -s "${data_size}M" "$work/data.img"
  mkdir "$work/data"
  # of a size that suits cards, not of the image's
  mkfs.ext4 -q -F -L pikelet-data -T default -b 4096 -i 16384 -m 1 -J size=16 -E resize=16777216,root_owner=0:0 -d "$work/data" "$work/data.img"
}

initramfs
boot_partition
data_partition
[ "$variant" != debian ] || debian_root
image=$out/pikelet-$variant-$board.img
new=$work/image
identifier=$(sed -n 's/.*pikelet\.disk=\([0-9a-f]*\).*/\1/p' "images/$board.cmdline.txt")
# partitions, in MiB: what is there, and where the next one begins
table='' end=1
partition() {
  table+="start=${end}MiB, size=$2MiB, type=$3"$'\n'
  truncate -s $((end + $2))M "$new"
  dd if="$1" of="$new" bs=1M seek="$end" conv=notrunc,sparse status=none
  end=$((end + $2))
}
partition "$work/boot.img" "$boot_size" 'c, bootable'
[ ! -f "$work/system.squashfs" ] || partition "$work/system.squashfs" "$(du -m --apparent-size "$work/system.squashfs" | cut -f 1)" 83
partition "$work/data.img" "$data_size" 83
sfdisk -q "$new" <<<"label: dos
label-id: 0x$identifier
$table"
mv "$new" "$image"
zstd -q -f -T0 -6 "$image" -o "$image.zst"
printf '%s bytes, %s as %s.zst, initramfs %s, program %s: %s\n' "$(stat -c %s "$image")" "$(stat -c %s "$image.zst")" \
  "$(basename "$image")" "$(stat -c %s "$work/initrd.zst")" "$(stat -c %s "$bin")" "$image"
