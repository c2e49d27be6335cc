#!/usr/bin/env bash
# What is in the image for the Raspberry Pi 5, which no emulator boots: kernel, device trees, and a driver for each of the
# devices a board cannot do without. Prints a line per case, and `N passed, N failed`.
#
# PIKELET_IMAGE: an image to look at [default: images/build.sh makes one].
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
passed=0 failed=0
check() {
  local name=$1; shift
  if "$@" >/dev/null 2>&1; then passed=$((passed + 1)); echo "ok   $name"; else failed=$((failed + 1)); echo "FAIL $name"; fi
}
packages=()
for pair in mcopy:mtools dtc:device-tree-compiler modinfo:kmod busybox:busybox-static zstd:zstd; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${pair%:*}" >/dev/null || packages+=("${pair#*:}")
done
[ ${#packages[@]} = 0 ] || tests/scripts/setup.sh "${packages[@]}"
PATH=$PATH:/usr/sbin:/sbin
if [ -z "${PIKELET_IMAGE:-}" ]; then
  images/build.sh rpi5 appliance || exit 1
  PIKELET_IMAGE=${CARGO_TARGET_DIR:-target}/images/pikelet-appliance-rpi5.img
fi
work=$(mktemp -d /tmp/pikelet-image.XXXXXX)
trap 'rm -rf "$work"' EXIT
mcopy -s -i "$PIKELET_IMAGE@@1M" ::a ::config.txt ::choice.txt ::pikelet.yaml "$work/" || exit 1
mkdir "$work/root"
(cd "$work/root" && zstd -qdc ../a/initrd.zst | busybox cpio -idm 2>/dev/null)

check "the firmware is told what to start" grep -qx 'include choice.txt' "$work/config.txt"
check "  which is system a" grep -qx 'os_prefix=a/' "$work/choice.txt"
check "  by a file of one sector" test "$(stat -c %s "$work/choice.txt")" = 512
check "  and its command line says so" grep -q 'pikelet.set=a' "$work/a/cmdline.txt"
gunzip -c <"$work/a/kernel8.img" >"$work/kernel"
# Documentation/arch/arm64/booting.rst: flags at 24, the page size in bits 1 and 2
check "the kernel is one of arm64" test "$(dd if="$work/kernel" bs=1 skip=56 count=4 status=none)" = ARMd
check "  with pages of 4 KiB" test "$(($(od -An -tu1 -j24 -N1 "$work/kernel") >> 1 & 3))" = 1
# of the first steppings of the processor, and of later ones
for tree in bcm2712-rpi-5-b bcm2712d0-rpi-5-b; do
  dtc -q -I dtb -O dts "$work/a/$tree.dtb" >"$work/$tree.dts"
  check "device tree $tree" grep -q 'compatible = "raspberrypi,5-model-b' "$work/$tree.dts"
  # driven BOARD_DEVICE MODULE: the tree has the device, the initramfs a module that says it is for it
  driven() {
    grep -q "\"[^\"]*$1" "$work/$tree.dts" && grep -qx "$2.ko" "$work/root/lib/modules/order" &&
      modinfo -F alias "$work/root/lib/modules/$2.ko" | grep -q "C$1\|$3"
  }
  check "  the card" driven brcm,bcm2712-sdhci sdhci-brcmstb -
  check "  RP1" driven raspberrypi,rp1-clocks rp1_pci pci:v00001DE4d00000001
  check "  its clocks" driven raspberrypi,rp1-clocks clk-rp1 -
  check "  its pins" driven raspberrypi,rp1-gpio pinctrl-rp1 -
  check "  Ethernet" driven raspberrypi,rp1-gem macb -
  check "  USB" driven snps,dwc3 dwc3 -
  check "  interrupts" driven brcm,bcm2712-mip irq-bcm2712-mip -
done
for module in xhci-plat-hcd broadcom bcm2835_wdt ext4 vfat overlay veth bridge nf_tables; do
  check "module $module" test -s "$work/root/lib/modules/$module.ko"
done
check "the program" test -x "$work/root/bin/pikelet"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
