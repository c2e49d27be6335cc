#!/usr/bin/env bash
# Debian packages for amd64, arm64 and armhf, in target/deb. Prints a line for each: size, sha256 and file.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${CARGO_TARGET_DIR:-target}/deb
mkdir -p "$out"
# ARMv6 for armhf: Raspberry Pi OS calls a Pi Zero so too
for pair in amd64:x86_64-unknown-linux-musl arm64:aarch64-unknown-linux-musl armhf:arm-unknown-linux-musleabihf; do
  read -r _ _ program < <(cross/build.sh "${pair#*:}")
  systemd/deb/build.sh "${pair%:*}" "$program" "$out"
done
