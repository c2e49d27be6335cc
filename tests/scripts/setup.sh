#!/usr/bin/env bash
# Installs what building and testing need on a Debian machine, and only what is missing. Repeatable.
set -euo pipefail

packages=(busybox-static ca-certificates curl docker-registry gcc iproute2 iputils-ping jq libc6-dev make nftables openssl pkg-config skopeo umoci)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: these packages are missing and need root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# at_least HAVE WANT: version HAVE is WANT or newer
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

rust=$(rustc --version 2>/dev/null | awk '{print $2}' || true)
if [ -z "$rust" ] || ! at_least "$rust" 1.90; then
  echo "setup: Rust ${rust:-is missing}: installing the stable toolchain with rustup" >&2
  command -v rustup >/dev/null || apt-get install -y -qq --no-install-recommends rustup >/dev/null
  rustup toolchain install stable --profile minimal -c clippy -c rustfmt
  rustup default stable
fi
