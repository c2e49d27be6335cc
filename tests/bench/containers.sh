#!/usr/bin/env bash
# make bench: containers by the shim's protocol, beside crun and runc (bench/containers.rs). All that is written is in
# memory, as below /run. crun refuses a machine with both versions of cgroups: it sees version 1 only.
set -euo pipefail
cd "$(dirname "$0")/.."
. harness/common.sh
PIKELET_BIN=$(pikelet_bin)
export PIKELET_BIN
cd ..
cargo test --quiet --no-run --test bench_containers
unshare --mount bash -c '
  mountpoint -q /sys/fs/cgroup/unified && umount -l /sys/fs/cgroup/unified
  mount -t tmpfs bench /mnt
  TMPDIR=/mnt exec cargo test --quiet --test bench_containers'
