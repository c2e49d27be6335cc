#!/usr/bin/env bash
# What is in a board's image, beyond what booting it shows: no emulator boots a Pi 5, and none plays a Raspberry Pi's
# firmware. Files that asks for, kernel, device trees, and a driver for each of the devices a board cannot do without. Prints
# a line per case, and `N passed, N failed`.
#
#   tests/image.sh BOARD [VARIANT]      rpi5, rpi2 or rpi0; appliance or, of rpi5, debian
#
# PIKELET_IMAGE: an image to look at [default: images/build.sh makes one].
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
. tests/harness/check.sh
board=${1:-} variant=${2:-appliance}
# what the firmware asks for, with the board that the device tree is for
case $board in
rpi5) machine=AArch64 kernel_name=kernel8.img trees=(bcm2712-rpi-5-b:5-model-b bcm2712d0-rpi-5-b:5-model-b) ;;
rpi2) machine=ARM kernel_name=kernel7.img trees=(bcm2709-rpi-2-b:2-model-b bcm2836-rpi-2-b:2-model-b) ;;
rpi0)
  machine=ARM kernel_name=kernel.img
  trees=(bcm2708-rpi-b:model-b-rev2 bcm2708-rpi-b-rev1:model-b bcm2708-rpi-b-plus:model-b-plus bcm2708-rpi-a-plus:model-a-plus
    bcm2708-rpi-cm:compute-module bcm2708-rpi-zero:model-zero bcm2708-rpi-zero-w:model-zero-w bcm2835-rpi-zero-w:model-zero-w)
  ;;
*) fail "tests/image.sh BOARD [VARIANT]: rpi5, rpi2 or rpi0" ;;
esac
# the folder of the system
case $variant in
appliance) system=a ;;
debian) system=. ;;
*) fail "VARIANT=$variant: there are appliance and debian" ;;
esac
programs mcopy:mtools dtc:device-tree-compiler modinfo:kmod busybox:busybox-static zstd:zstd readelf:binutils sfdisk:fdisk unsquashfs:squashfs-tools
if [ -z "${PIKELET_IMAGE:-}" ]; then
  images/build.sh "$board" "$variant" || exit 1
  PIKELET_IMAGE=${CARGO_TARGET_DIR:-target}/images/pikelet-$variant-$board.img
fi
work=$(mktemp -d /tmp/pikelet-image.XXXXXX)
trap 'rm -rf "$work"' EXIT
mcopy -s -i "$PIKELET_IMAGE@@1M" '::*' "$work/" || exit 1
mkdir "$work/root"
(cd "$work/root" && zstd -qdc "../$system/initrd.zst" | busybox cpio -idm 2>/dev/null)

if [ "$variant" = appliance ]; then
  check "the firmware is told what to start" grep -qx 'include choice.txt' "$work/config.txt"
  check "  which is system a" grep -qx 'os_prefix=a/' "$work/choice.txt"
  check "  by a file of one sector" test "$(stat -c %s "$work/choice.txt")" = 512
  check "  and its command line says so" grep -q 'pikelet.set=a' "$work/$system/cmdline.txt"
else
  check "the firmware has no choice of systems" eval '! grep choice "$work/config.txt" && ! grep pikelet.set "$work/cmdline.txt"'
fi
check "  with $kernel_name" grep -qx "kernel=$kernel_name" "$work/config.txt"
# that of the others is on the board
if [ "$board" != rpi5 ]; then
  # by gpu_mem, which is little
  for file in bootcode.bin start.elf fixup.dat start_cd.elf fixup_cd.dat; do check "firmware $file" test -s "$work/$file"; done
fi
if [ $machine = AArch64 ]; then
  gunzip -c <"$work/$system/$kernel_name" >"$work/kernel"
  # Documentation/arch/arm64/booting.rst: flags at 24, the page size in bits 1 and 2
  check "the kernel is one of arm64" test "$(dd if="$work/kernel" bs=1 skip=56 count=4 status=none)" = ARMd
  check "  with pages of 4 KiB" test "$(($(od -An -tu1 -j24 -N1 "$work/kernel") >> 1 & 3))" = 1
else
  check "the kernel is one of 32-bit ARM" test "$(od -An -tx4 -j36 -N4 "$work/$system/$kernel_name")" = " 016f2818"
fi
# driven TREE BOARD_DEVICE MODULE [ALIAS]: the tree has the device, the initramfs a module that says it is for it
driven() {
  grep -q "\"[^\"]*$2" "$work/$1.dts" && grep -qx "$3.ko" "$work/root/lib/modules/order" &&
    modinfo -F alias "$work/root/lib/modules/$3.ko" | grep -q "C$2\|${4:--}"
}
for pair in "${trees[@]}"; do
  tree=${pair%:*}
  dtc -q -I dtb -O dts "$work/$system/$tree.dtb" >"$work/$tree.dts"
  check "device tree $tree, of a ${pair#*:}" grep -q "compatible = \"raspberrypi,${pair#*:}[\\\\\"]" "$work/$tree.dts"
  case $board in
  rpi5)
    check "  the card" driven "$tree" brcm,bcm2712-sdhci sdhci-brcmstb
    check "  RP1" driven "$tree" raspberrypi,rp1-clocks rp1_pci pci:v00001DE4d00000001
    check "  its clocks" driven "$tree" raspberrypi,rp1-clocks clk-rp1
    check "  its pins" driven "$tree" raspberrypi,rp1-gpio pinctrl-rp1
    check "  Ethernet" driven "$tree" raspberrypi,rp1-gem macb
    check "  USB" driven "$tree" snps,dwc3 dwc3
    check "  interrupts" driven "$tree" brcm,bcm2712-mip irq-bcm2712-mip
    ;;
  rpi2)
    check "  the card" driven "$tree" brcm,bcm2835-sdhost bcm2835
    check "  USB" driven "$tree" brcm,bcm2835-usb dwc2
    check "  Ethernet" driven "$tree" usb424,ec00 smsc95xx usb:v0424pEC00
    check "  temperature" driven "$tree" brcm,bcm2836-thermal bcm2835_thermal
    ;;
  esac
done
modules=(ext4 vfat overlay veth bridge nf_tables)
[ "$variant" = appliance ] || modules=(ext4 vfat overlay squashfs)
# the kernel of rpi0 has its board's drivers built in
case $board in
rpi5) modules+=(xhci-plat-hcd broadcom bcm2835_wdt) ;;
rpi2) modules+=(bcm2835_wdt) ;;
rpi0) modules+=(smsc95xx asix cdc_ether) ;;
esac
for module in "${modules[@]}"; do check "module $module" test -s "$work/root/lib/modules/$module.ko"; done
if [ "$variant" = debian ]; then
  part=$(sfdisk -d "$PIKELET_IMAGE" | sed -n 's/.*img2 : start= *\([0-9]*\), size= *\([0-9]*\),.*/skip=\1 count=\2/p')
  # shellcheck disable=SC2086
  dd if="$PIKELET_IMAGE" of="$work/squashfs" bs=512 $part status=none
  unsquashfs -lc "$work/squashfs" >"$work/listed"
  listed=$(sed -n 's,^squashfs-root/usr/lib/modules/\([^/]*\)/modules\.dep$,\1,p' "$work/listed")
  check "the root has modules of this kernel, $listed" grep -aqF "Linux version $listed " "$work/kernel"
  for module in veth br_netfilter nf_tables vxlan wireguard brcmfmac macb hid-generic usb-storage; do
    check "  $module" grep -q "/modules/$listed/.*/$module\.ko" "$work/listed"
  done
  check "  WiFi's firmware" grep -q '/usr/lib/firmware/brcm/brcmfmac43455-sdio.bin$' "$work/listed"
  check "  and the last program" grep -qx 'squashfs-root/shutdown' "$work/listed"
fi
# of FILE: a static program for the board's processor
of() { readelf -h "$1" | grep -q "Machine: *$machine\$" && ! readelf -lW "$1" | grep -q INTERP; }
check "the program is for $machine" of "$work/root/bin/pikelet"
check "  and so is e2fsck" of "$work/root/sbin/e2fsck"
# Tag_CPU_arch; a v7 program does not start on these
[ "$board" != rpi0 ] || for file in bin/pikelet sbin/e2fsck; do
  check "  $file runs on ARMv6 and older" eval 'readelf -A "$work/root/$file" | grep -qE "Tag_CPU_arch: v(4|5|6)"'
done
verdict
