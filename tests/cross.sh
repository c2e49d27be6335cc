#!/usr/bin/env bash
# The static binaries of cross/build.sh: what they are, that they run, and that they can be built again.
#
#   tests/cross.sh [TARGET...]     builds these, or all, and the first once more in another folder
#   tests/cross.sh --short         looks at those that are built already, and builds nothing
#
# Prints a line per case, and `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
. tests/harness/check.sh
targets=(aarch64-unknown-linux-musl x86_64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf)
out=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$(mktemp -d /var/tmp/pikelet-cross.XXXXXX)
trap 'rm -rf "$work"' EXIT

# emulated TARGET ARGUMENT...: what the program for TARGET says
emulated() {
  local program=$out/$1/release/pikelet qemu
  case $1 in
  aarch64-*) qemu=qemu-aarch64-static ;;
  arm-*) qemu="qemu-arm-static -cpu arm1176" ;;
  arm*) qemu="qemu-arm-static -cpu cortex-a7" ;;
  x86_64-*) qemu= ;;
  esac
  shift
  $qemu "$program" "$@"
}

# looks TARGET
looks() {
  command -v qemu-arm-static >/dev/null || tests/scripts/setup.sh qemu-user-static
  local target=$1 program=$out/$1/release/pikelet
  local most=$((10 * 1000 * 1000)) architecture=arm
  case $target in aarch64-*) architecture=arm64 ;; x86_64-*) architecture=amd64 ;; esac
  check "$target: static" eval '! readelf -lW "$program" | found -E "INTERP|DYNAMIC"'
  check "  stripped" eval '! readelf -SW "$program" | found -E "symtab|debug"'
  # that of most boards, and of the images
  [ $architecture != arm64 ] || check "  at most 10 MB: $(stat -c %s "$program")" [ "$(stat -c %s "$program")" -le $most ]
  check "  segments as a kernel with 16 KiB or 64 KiB pages can load them" aligned "$target" "$program"
  check "  no path of this machine in it" eval '! grep -aqF -e "$PWD" -e "${PIKELET_CACHE:-$HOME/.cache/pikelet}" -e "$HOME/.cargo" "$program"'
  check "  it runs" eval 'emulated "$target" --version | found "linux/$architecture\$"'
  emulated "$target" check >"$work/check" 2>&1
  check "  pikelet check looks at the machine" grep -qE '^ok +page size' "$work/check"
  [ $architecture != amd64 ] || check "  a pod runs by it" eval 'tests/demo.sh "$program" >"$work/demo" 2>&1 || { tail "$work/demo"; false; }'
}
aligned() {
  case $1 in x86_64-*) return 0 ;; esac
  [ "$(readelf -lW "$2" | awk '$1 == "LOAD" { print $NF }' | sort -u)" = 0x10000 ]
}

# twice TARGET: another checkout in another folder, with everything built anew
twice() {
  mkdir -p "$work/again"
  tar -c --exclude ./target --exclude ./.git . | tar -x -C "$work/again"
  CARGO_TARGET_DIR=$work/target "$work/again/cross/build.sh" "$1" >/dev/null 2>"$work/log" || { tail -n 20 "$work/log"; return 1; }
  cmp "$out/$1/release/pikelet" "$work/target/$1/release/pikelet"
}

# a file that is not what it is pinned to
refused() {
  local said
  said=$(
    . cross/fetch.sh
    apt_get() { echo other >one.deb; }
    cd "$work" && fetch suite 0000 one.deb 2>&1
  )
  [[ $said = *"not the 0000 it is pinned to"* ]]
}

check "what differs from its pinned sum is refused" refused
if [ "${1:-}" = --short ]; then
  for target in "${targets[@]}"; do
    if [ -x "$out/$target/release/pikelet" ]; then looks "$target"; else echo "     $target is not built"; fi
  done
else
  [ $# = 0 ] || targets=("$@")
  check "built" cross/build.sh "${targets[@]}"
  for target in "${targets[@]}"; do looks "$target"; done
  check "${targets[0]} built in two folders is the same bytes" twice "${targets[0]}"
fi
verdict
