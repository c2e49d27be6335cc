#!/usr/bin/env bash
# make bench: containers by the shim's protocol, beside crun and runc (bench/containers.rs). All that is written is in
# memory, as below /run. crun refuses a machine with both versions of cgroups: it sees version 1 only, and then, where
# there is one, version 2 only, which has no controllers left.
set -euo pipefail
cd "$(dirname "$0")/.."
. harness/common.sh
PIKELET_BIN=$(pikelet_bin)
export PIKELET_BIN
cd ..
# what asks the shim is built as what it is built from: an agent is no debug build either
[ "${PROFILE_DIR:-debug}" = debug ] || export CARGO_PROFILE_DEV_OPT_LEVEL=1
cargo test --quiet --no-run --test bench_containers
unshare --mount bash -c '
  mountpoint -q /sys/fs/cgroup/unified && umount -l /sys/fs/cgroup/unified
  mount -t tmpfs bench /mnt
  TMPDIR=/mnt exec cargo test --quiet --test bench_containers'
mountpoint -q /sys/fs/cgroup/unified || exit 0
unshare --mount bash -c '
  mount -t tmpfs bench /mnt
  mkdir /mnt/cgroup
  mount --bind /sys/fs/cgroup/unified /mnt/cgroup
  umount -R -l /sys/fs/cgroup
  mount --move /mnt/cgroup /sys/fs/cgroup
  TMPDIR=/mnt BENCH_UNLIMITED=1 exec cargo test --quiet --test bench_containers 2>&1 | grep -v WARN'
