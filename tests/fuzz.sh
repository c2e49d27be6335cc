#!/usr/bin/env bash
# Fuzzes the parsers of what strangers send: tests/fuzz.sh SECONDS (of each target). Prints `N targets ran clean`.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target}
version=0.13.1
cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked --version "$version" cargo-fuzz
export CARGO_TARGET_DIR=$cache/fuzz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0
for target in spdy_frames spdy_headers image_reference image_manifest; do
  mkdir "$work/$target"
  # without a sanitizer stable Rust will do: the code is safe Rust, panics are what is looked for
  cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$work/$target" -- \
    -max_total_time="$seconds" -artifact_prefix="$work/" -print_final_stats=1 >"$work/log" 2>&1 ||
    { tail -n 40 "$work/log"; exit 1; }
  grep -E 'stat::number_of_executed_units|Done' "$work/log" | tail -n 1 | sed "s/^/$target: /"
  count=$((count + 1))
done
echo "$count targets ran clean"
