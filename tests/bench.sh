#!/usr/bin/env bash
# make bench: figures of one node on a real control plane, beside crun in the same run, of pulls (bench/images.sh), of
# single containers (bench/containers.sh) and of hundreds of pods (bench/pods.sh). Takes seven minutes.
#
#   tests/bench.sh           the release build, all figures
#   tests/bench.sh --short   the debug build, few pods: whether every figure can be measured
set -euo pipefail
cd "$(dirname "$0")"
. harness/common.sh
export PIKELET_CLUSTER_ID=${PIKELET_CLUSTER_ID:-b$(($$ % 9999))} PROFILE_DIR=release
[ "${1:-}" != --short ] || export PROFILE_DIR=debug BENCH_SHORT=1
bench/images.sh
bench/containers.sh
bench/pods.sh
cluster=$PWD/scripts/cluster.sh
work=$(mktemp -d)
trap '$cluster down; rm -rf "$work"' EXIT

eval "$($cluster up 1)"
PIKELET_CLUSTER_DIR=$($cluster dir)
export BENCH_NETNS=/run/netns/pk$PIKELET_CLUSTER_ID-cp BENCH_IMAGE=10.77.0.1:5000/busybox:1 PIKELET_CLUSTER_DIR
busybox_image "$work/oci" 1 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
push_image "pk$PIKELET_CLUSTER_ID-cp" "$work/oci" 1 "$BENCH_IMAGE"

# The agent in a cgroup of its own, so that its CPU time and its shims' can be read.
cpu=/sys/fs/cgroup/cpuacct
[ -d "$cpu" ] || cpu=/sys/fs/cgroup
mkdir -p "$cpu/pk$PIKELET_CLUSTER_ID-agent"
trap '$cluster down; rm -rf "$work"; until_true 5 rmdir "$cpu/pk$PIKELET_CLUSTER_ID-agent"' EXIT
proc_pid "$PIKELET_CLUSTER_DIR/pids" agent-n1 >"$cpu/pk$PIKELET_CLUSTER_ID-agent/cgroup.procs"

# crun: whole runs of `true` in a bundle of the same image. It refuses a machine with both versions of cgroups.
umoci unpack --image "$work/oci:1" "$work/bundle" >>"$work/log" 2>&1
jq '.process.args = ["true"] | .process.terminal = false' "$work/bundle/config.json" >"$work/config.json"
mv "$work/config.json" "$work/bundle/config.json"
CRUN_MILLIS=$(unshare --mount bash -c '
  mountpoint -q /sys/fs/cgroup/unified && umount -l /sys/fs/cgroup/unified
  for i in $(seq 20); do
    start=$(date +%s%N)
    crun run --bundle "$1/bundle" "bench-$$-$i" </dev/null >>"$1/log" 2>&1 || exit 1
    end=$(date +%s%N)
    awk "BEGIN { print ($end - $start) / 1e6 }"
  done' bash "$work") || { tail -n 5 "$work/log" >&2; fail "crun did not run"; }
export CRUN_MILLIS

cd ..
cargo test --quiet --test bench
