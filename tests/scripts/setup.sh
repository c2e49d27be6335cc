#!/usr/bin/env bash
# Installs what building and testing need on a Debian machine, and only what is missing. Repeatable.
#
#   tests/scripts/setup.sh [PACKAGE...]     these as well
set -euo pipefail

packages=(busybox-static ca-certificates crun curl dbus docker-registry e2fsprogs g++ gcc iproute2 iputils-ping jq libc6-dev libfaketime
  libseccomp-dev make nftables openssl pkg-config python3-dbus python3-gi python3-kubernetes python3-prometheus-client skopeo systemd umoci util-linux "$@")

# fail MESSAGE: says what a person has to do
fail() { echo "setup: $*" >&2; exit 1; }

# at_least HAVE WANT: version HAVE is WANT or newer
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# install PACKAGE...: non-interactively; tells a person who is not root what to type
install() {
  [ "$(id -u)" = 0 ] || fail "missing: $*. Run as root: apt-get install --no-install-recommends $*"
  if [ -z "${updated:-}" ]; then
    DEBIAN_FRONTEND=noninteractive apt-get update -qq || fail "apt-get update failed: check the network and the apt sources"
    updated=1
  fi
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >/dev/null ||
    fail "apt-get could not install: $*"
}

command -v dpkg-query >/dev/null || fail "this is not a Debian system: install by hand: ${packages[*]}, python3, Rust 1.91, Go 1.21"
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
command -v python3 >/dev/null || missing+=(python3)
# a kubectl of another version than the one the tests build
command -v kubectl >/dev/null || missing+=(kubernetes-client)
# a machine with Docker's own packages has these two, and Debian's would take their place
for program in containerd runc; do command -v $program >/dev/null || missing+=($program); done
[ ${#missing[@]} = 0 ] || install "${missing[@]}"

rust=$(rustc --version 2>/dev/null | awk '{print $2}' || true)
if [ -z "$rust" ] || ! at_least "$rust" 1.91; then
  echo "setup: Rust is ${rust:-missing}, 1.91 or newer is needed: installing the stable toolchain with rustup" >&2
  command -v rustup >/dev/null || install rustup
  rustup toolchain install stable --profile minimal -c clippy -c rustfmt
  rustup default stable
fi
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt

# Go 1.21 and newer fetches by itself the version that tests/controlplane/go.mod asks for (GOTOOLCHAIN=auto).
go=$(go env GOVERSION 2>/dev/null | sed 's/^go//' || true)
if [ -z "$go" ] || ! at_least "$go" 1.21; then
  [ -z "$go" ] && install golang-go
  go=$(go env GOVERSION 2>/dev/null | sed 's/^go//' || true)
  if ! at_least "$go" 1.21; then
    candidate=$(apt-cache search --names-only '^golang-1\.[0-9]+-go$' | awk '{print $1}' | sort -V | tail -n 1)
    version=${candidate#golang-}; version=${version%-go}
    at_least "${version:-0}" 1.21 || fail "Go ${go} is too old and apt offers nothing newer: install Go 1.21 or newer, or add the distribution's backports"
    install "$candidate"
    ln -sf "/usr/lib/go-$version/bin/go" /usr/local/bin/go
  fi
fi
