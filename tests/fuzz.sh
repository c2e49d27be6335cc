#!/usr/bin/env bash
# Fuzzes the parsers of what strangers send: tests/fuzz.sh SECONDS (of each target). Prints `N targets ran clean`.
# tests/fuzz.sh check: whether the targets, which include files of src, compile at all.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target, or check}
version=0.13.1
cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}
export CARGO_TARGET_DIR=$cache/fuzz
if [ "$seconds" = check ]; then
  cargo check --quiet --locked --manifest-path tests/fuzz/Cargo.toml
  exit
fi
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked --version "$version" cargo-fuzz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# seeds TARGET DIR: what a mutation would not find
seeds() {
  local tree=$work/tree
  case $1 in
    image_layer)
      mkdir -p "$tree/dir/old"
      echo text >"$tree/dir/file"
      ln -s dir/file "$tree/link"
      ln "$tree/dir/file" "$tree/hard"
      mkfifo "$tree/fifo"
      touch "$tree/dir/.wh.gone" "$tree/dir/old/.wh..wh..opq" "$tree/$(printf 'long%.0s' {1..40})"
      truncate -s 1M "$tree/hole"
      for format in gnu pax ustar; do
        { printf '\2'; tar --format="$format" --sparse --xattrs -C "$tree" -c .; } >"$2/$format" 2>/dev/null || true
        { printf '\0'; tar --format="$format" -C "$tree" -cz .; } >"$2/$format-gzip" 2>/dev/null || true
      done ;;
    registries)
      printf '%s\n' 'mirrors: {r.example: {endpoint: ["http://m:5000/v2/x"], rewrite: {"^a/(.*)": "b/$1"}}, "*": {}}' \
        'configs: {"m:5000": {auth: {username: u, password: p}, tls: {ca_file: /c, insecure_skip_verify: true}}}' >"$2/seed" ;;
    shim_protocol)
      printf '\5\1{"Request":{"id":1,"request":{"Kill":{"container":"c","signal":9,"all":true}}}}' >"$2/request"
      printf '\5\1{"Response":{"id":1,"result":{"Ok":{"Pid":7}}}}' >"$2/response" ;;
  esac
}

# layers are unpacked on tmpfs where there is one
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
count=0
for target in spdy_frames spdy_headers image_reference image_manifest image_layer registries \
  shim_protocol; do
  mkdir "$work/$target"
  seeds "$target" "$work/$target"
  # without a sanitizer stable Rust will do: the code is safe Rust, panics are what is looked for
  cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$work/$target" -- \
    -max_total_time="$seconds" -artifact_prefix="$work/" -print_final_stats=1 >"$work/log" 2>&1 ||
    { tail -n 40 "$work/log"; exit 1; }
  grep -E 'stat::number_of_executed_units|Done' "$work/log" | tail -n 1 | sed "s/^/$target: /"
  count=$((count + 1))
done
echo "$count targets ran clean"
