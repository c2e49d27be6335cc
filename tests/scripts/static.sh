#!/usr/bin/env bash
# Prints the path of a program made as the released ones are (static, with musl and the changed crates of cross/), but built in
# less time, as its crates are not optimized together. Where cross/build.sh does not run: that of `cargo build`.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
if [ "$(uname -m)" = x86_64 ]; then
  CARGO_TARGET_DIR=$target/static CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    cross/build.sh x86_64-unknown-linux-musl | awk '{ print $3 }'
else
  readlink -f "$target/debug/pikelet"
fi
