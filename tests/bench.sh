#!/usr/bin/env bash
# make bench: figures of one node on a real control plane, beside crun in the same run, of pulls (bench/images.sh), of
# single containers (bench/containers.sh), of hundreds of pods (bench/pods.sh), of membership (bench/membership.rs) and of
# the tunnel of k3s (bench/tunnel.sh). Takes ten minutes.
#
#   tests/bench.sh [PART...]           all figures of the released program (cross/build.sh), or where there is none of the
#                                      release build; or those of: images containers pods node membership tunnel
#   tests/bench.sh --short [PART...]   the debug build, few pods: whether every figure can be measured
set -euo pipefail
cd "$(dirname "$0")"
. harness/common.sh
. harness/bootstrap.sh
export PIKELET_CLUSTER_ID=${PIKELET_CLUSTER_ID:-b$(($$ % 9999))} PROFILE_DIR=release
released=${CARGO_TARGET_DIR:-$checkout/target}/$(uname -m)-unknown-linux-musl/release/pikelet
if [ "${1:-}" = --short ]; then
  export PROFILE_DIR=debug BENCH_SHORT=1; shift
elif [ -x "$released" ]; then
  export PIKELET_BIN=${PIKELET_BIN:-$(readlink -f "$released")}
  say "measured is $PIKELET_BIN"
fi
# wanted PART...: whether one of them is measured
asked=${*:-images containers pods node membership tunnel}
wanted() { local part; for part in "$@"; do [[ " $asked " == *" $part "* ]] && return; done; return 1; }
for part in images containers pods; do
  ! wanted $part || bench/$part.sh
done
wanted node membership tunnel || exit 0
cluster=$PWD/scripts/cluster.sh
k() { $cluster kubectl "$@"; }
work=$(mktemp -d)
trap '$cluster down; rm -rf "$work"' EXIT

eval "$($cluster up 1)"
dir=$($cluster dir)
export BENCH_NETNS=/run/netns/pk$PIKELET_CLUSTER_ID-cp BENCH_IMAGE=10.77.0.1:5000/busybox:1 PIKELET_CLUSTER_DIR=$dir
busybox_image "$work/oci" 1 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
push_image "pk$PIKELET_CLUSTER_ID-cp" "$work/oci" 1 "$BENCH_IMAGE"

if wanted node; then
  # The agent in a cgroup of its own, so that its CPU time and its shims' can be read.
  cpu=/sys/fs/cgroup/cpuacct
  [ -d "$cpu" ] || cpu=/sys/fs/cgroup
  mkdir -p "$cpu/pk$PIKELET_CLUSTER_ID-agent"
  trap '$cluster down; rm -rf "$work"; until_true 5 rmdir "$cpu/pk$PIKELET_CLUSTER_ID-agent"' EXIT
  proc_pid "$dir/pids" agent-n1 >"$cpu/pk$PIKELET_CLUSTER_ID-agent/cgroup.procs"

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
  cargo test --quiet --manifest-path ../Cargo.toml --test bench
fi
if wanted membership; then
  kubeadm_cluster mnopqr 0123456789abcdef
  BENCH_TOKEN=mnopqr.0123456789abcdef BENCH_CA_HASH=$(ca_hash) PIKELET_BIN=$(pikelet_bin) \
    cargo test --quiet --manifest-path ../Cargo.toml --test bench -- membership
fi
! wanted tunnel || bench/tunnel.sh
