#!/usr/bin/env bash
# 32-bit ARMv7 (Pi 2, and 32-bit systems on a Pi 3): QEMU's `virt` with a Cortex-A15 and Debian's armmp kernel.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=armv7-unknown-linux-musleabihf
debian=trixie/armhf
kernel_package=linux-image-armmp
modules=(overlay veth bridge br_netfilter nf_tables nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet nft_fib_ipv4 nft_fib_ipv6 nft_compat)
machine=(-M "virt,highmem=off" -cpu cortex-a15 -smp 2)
options="console=ttyAMA0"
. tests/boards/lib/standalone.sh
