#!/usr/bin/env bash
# 32-bit ARMv6 (Pi 1, Zero): QEMU's `raspi0`, an ARM1176 with 512 MB, and Debian's kernel and device tree for these boards.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=arm-unknown-linux-musleabihf
debian=bookworm/armel
kernel_package=linux-image-rpi
modules=(overlay veth bridge br_netfilter nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet nft_fib_ipv4 nft_fib_ipv6)
machine=(-M raspi0)
device_tree=bcm2835-rpi-zero.dtb
# QEMU lacks what the power driver asks for
options="console=ttyAMA0 initcall_blacklist=bcm2835_power_driver_init"
. tests/boards/lib/standalone.sh
