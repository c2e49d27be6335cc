#!/usr/bin/env bash
# Static binaries for boards, on any x86_64 Debian machine: see cross/README.md.
#
#   cross/build.sh TARGET...            e.g. aarch64-unknown-linux-musl; `all` for all of them
#   cross/build.sh --symbols TARGET     a program that is not stripped, for cross/weigh.sh
#
# Prints a line per target: size in bytes, sha256 and file name.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/parts.sh

targets=(aarch64-unknown-linux-musl x86_64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf)

# zig_target TARGET: its name for what C is compiled for
zig_target() {
  case $1 in
  aarch64-*) echo aarch64-linux-musl ;;
  x86_64-*) echo x86_64-linux-musl ;;
  arm*) echo arm-linux-musleabihf ;;
  esac
}

# zig_cc TARGET: the C compiler; for 32 bits the processor is the oldest board's
zig_cc() {
  local cpu=
  case $1 in
  armv7-*) cpu=-mcpu=generic+v7a ;;
  arm-*) cpu=-mcpu=arm1176jzf_s ;;
  esac
  echo "$tools/ziglang/zig cc -target $(zig_target "$1") $cpu"
}

# tree: a folder beside the products with the manifest, and what the patches of cross/ change (README.md says why). Nothing
# else in Cargo.lock changes.
tree() {
  local tree=$out/cross metadata change name source changed=
  mkdir -p "$tree"
  metadata=$(cargo metadata --locked --format-version 1)
  for change in cross/*.patch; do
    name=$(basename "$change" .patch)
    source=$(jq -r --arg name "$name" '.packages[] | select(.name == $name) | .manifest_path' <<<"$metadata" | xargs dirname)
    if [ ! -f "$tree/$name/.patched" ] || [ "$change" -nt "$tree/$name/.patched" ]; then
      rm -rf "${tree:?}/$name"
      cp -r "$source" "$tree/$name"
      patch -s -d "$tree/$name" -p 1 <"$change"
      touch "$tree/$name/.patched"
    fi
    changed+=" $name "
  done
  ln -sfn "$PWD/src" "$tree/src"
  ln -sfn "$PWD/tests" "$tree/tests"
  { cat Cargo.toml; printf '\n[patch.crates-io]\n'; printf '%s = { path = "%s" }\n' $(for name in $changed; do echo $name $name; done); } |
    replace "$tree/Cargo.toml"
  awk -v changed="$changed" '/^name = / { own = index(changed, " " substr($3, 2, length($3) - 2) " ") }
    !(own && /^(source|checksum) = /)' Cargo.lock | replace "$tree/Cargo.lock"
  echo "$tree"
}

# replace FILE: by standard input, but only when that is different
replace() {
  cat >"$1.new"
  if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

# build TARGET...: side by side
build() {
  local target sysroot library flags remaps arguments=()
  remaps=$remap$(registry_remaps)
  for target; do
    sysroot=$(std "$target")
    library=$(seccomp "$target")
    # as in the Makefile, at a fixed address: else every shim relocates, and so owns, half a MiB of its pod's memory
    flags="--sysroot=$sysroot -Lnative=$library -Clink-self-contained=no -Ctarget-feature=+crt-static"
    flags+=" -Crelocation-model=static -Cforce-unwind-tables=no -Awarnings $remaps --remap-path-prefix=$tree=."
    # code that is there more than once becomes a function, where size is asked for: looked for once more in what that left
    case $target in aarch64-*) flags+=" -Cllvm-args=-machine-outliner-reruns=1" ;; esac
    target=${target^^}
    export "CARGO_TARGET_${target//-/_}_RUSTFLAGS=$flags"
    arguments+=(--target "${target,,}")
  done
  arguments+=(--locked --release --bin pikelet --manifest-path "$tree/Cargo.toml")
  # the program alone: what it is made of is the same
  if [ -n "$symbols" ]; then arguments=(rustc "${arguments[@]}" -- -Cstrip=none); else arguments=(zigbuild "${arguments[@]}"); fi
  # what is set for this machine's own builds has no part in these
  env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS LIBSECCOMP_LINK_TYPE=static CARGO_TARGET_DIR="$out" \
    CARGO_ZIGBUILD_ZIG_PATH="$tools/ziglang/zig" CARGO_ZIGBUILD_CACHE_DIR="$cache/zigbuild" \
    "$tools/bin/cargo-zigbuild" "${arguments[@]}" >&2
}

[ $# != 0 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || fail "this is a $(uname -m): zig is pinned for x86_64 only; on the board itself, cargo build --release does"
symbols=
if [ "$1" = --symbols ]; then
  [ $# = 2 ] || fail "--symbols takes one target"
  symbols=1; shift
fi
[ "$1" != all ] || set -- "${targets[@]}"
for target; do
  [[ " ${targets[*]} " = *" $target "* ]] || fail "no target $target: there are ${targets[*]}"
done
mkdir -p "${CARGO_TARGET_DIR:-target}"
out=$(realpath "${CARGO_TARGET_DIR:-target}")
tools=$(tools)
tree=$(tree)
build "$@"
for target; do
  file=$out/$target/release/pikelet
  printf '%s %s %s\n' "$(stat -c %s "$file")" "$(sha256sum <"$file" | cut -d ' ' -f 1)" "$file"
done
