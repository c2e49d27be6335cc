#!/usr/bin/env bash
# make bench: how fast bytes go through the tunnel of k3s, both ways, on the loopback of this machine, beside k3s's own end
# of it in the same run, and what the agent takes for it. Expects a cluster of tests/scripts/cluster.sh that is up, its
# folder in PIKELET_CLUSTER_DIR. The server is that of tests/k3s-server.
set -euo pipefail
cd "$(dirname "$0")/.."
. harness/common.sh
dir=$PIKELET_CLUSTER_DIR cluster=scripts/cluster.sh size=$((1 << 30)) rounds=3 stall=10
[ -z "${BENCH_SHORT:-}" ] || { size=$((16 << 20)) rounds=1 stall=1; }
. harness/k3s.sh
build
config cluster
serve
$cluster add n3 --server $k3s_server --token "$(k3s_token)"
# an /etc of its own, for the password of nodes
cp -a /etc "$dir/n3/etc" && rm -rf "$dir/n3/etc/rancher"
nsenter --target "$(proc_pid "$dir/pids" mounts-n3)" --mount mount --bind "$dir/n3/etc" /etc
trap 'unserve; proc_stop "$dir/pids" tunnel-targets; proc_stop "$dir/pids" tunnel-agent; $cluster stop agent-n3' EXIT
$cluster start agent-n3
opened() { grep -q "tunnel open" "$dir/logs/agent-n3.log"; }
until_true 30 opened || { tail -n 5 "$dir/logs/agent-n3.log" >&2; fail "no tunnel"; }
agent=$(proc_pid "$dir/pids" agent-n3)
here=10.77.0.13
proc_start "$dir/pids" "$dir/logs" tunnel-targets nsenter --net="/run/netns/pk$PIKELET_CLUSTER_ID-n3" \
  "$k3s/server" -sink $here:7000 -source $here:7001 -size "$size" -stall $here:7002

row() { printf '%-52s %24s   %s\n' "$@"; }
# MiB of the agent at its peak; CPU time of a process so far, in hundredths of a second
peak() { awk '/^VmHWM/ { print $2 / 1024 }' "/proc/$agent/status"; }
cpu() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
# rate QUERY: MB/s of one transfer
rate() {
  local said; said=$(tunnel "node=n3&seconds=100&$1")
  grep -qE "sent=$size |received=$size end=<nil>" <<<"$said" || fail "not all $size bytes went through: $said"
  sed 's/.*ms=//' <<<"$said" | awk -v size="$size" '{ print size / 1e3 / ($1 + !$1) }'
}
# rates: the median of each way, after one that warms up
rates() {
  local way
  for way in "target=$here:7000&send=$size" "target=$here:7001"; do
    for _ in $(seq "$rounds"); do rate "$way"; done | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
  done
}
through() { tunnel "node=n3&target=$here:7000&send=1&seconds=5" | grep -q ^whole; }
until_true 10 through || fail "nothing goes through the tunnel"
before=$(peak)
stalled=$(tunnel "node=n3&target=$here:7002&send=$((1 << 30))&seconds=$stall")
row "agent's growth while a target of the tunnel stalls" "$(awk "BEGIN { printf \"%.1f MiB\", $(peak) - $before }")" "8 MiB"
row "  sent before the server heeds its word to pause" "$(sed 's/.*sent=\([0-9]*\).*/\1/' <<<"$stalled" | awk '{ printf "%.1f MiB", $1 / 1048576 }')" ""
used=$(cpu "$agent")
mapfile -t ours < <(rates)
[ "${#ours[@]}" = 2 ] || fail "the tunnel was not measured"
used=$(($(cpu "$agent") - used))
row "tunnel of k3s, from the server to a target" "$(printf '%.0f MB/s' "${ours[0]}")" "200 MB/s"
row "tunnel of k3s, from a target to the server" "$(printf '%.0f MB/s' "${ours[1]}")" "200 MB/s"
row "  CPU of the agent for 100 MB" "$(awk "BEGIN { printf \"%.0f ms\", $used * 10 / ($size * 2 * $rounds / 1e8) }")" ""
row "  growth of the agent by then, peak RSS" "$(awk "BEGIN { printf \"%.1f MiB\", $(peak) - $before }")" "16 MiB"

$cluster stop agent-n3
proc_start "$dir/pids" "$dir/logs" tunnel-agent nsenter --net="/run/netns/pk$PIKELET_CLUSTER_ID-n3" "$k3s/server" \
  -agent "wss://${k3s_server#https://}/v1-k3s/connect" -identity "$dir/n3/lib/pki/kubelet-client-current.pem" -roots "$dir/n3/lib/pki/server-ca.crt"
until_true 10 through || { tail -n 5 "$dir/logs/tunnel-agent.log" >&2; fail "nothing goes through a tunnel of k3s's own"; }
mapfile -t theirs < <(rates)
[ "${#theirs[@]}" = 2 ] || fail "the tunnel of k3s's own was not measured"
row "k3s's own end of it, to a target and from one" "$(printf '%.0f, %.0f MB/s' "${theirs[@]}")" ""
row "  pikelet in times of it" "$(awk "BEGIN { printf \"%.2f, %.2f\", ${ours[0]} / ${theirs[0]}, ${ours[1]} / ${theirs[1]} }")" ""
