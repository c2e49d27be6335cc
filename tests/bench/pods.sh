#!/usr/bin/env bash
# make bench: hundreds of static pods on one agent, with no API server: memory of agent and shims, and what is left when
# all have been stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. harness/common.sh
counts=(100 500)
[ -z "${BENCH_SHORT:-}" ] || counts=(5 20)
most=${counts[-1]}
pikelet=$(pikelet_bin)
work=$(mktemp -d)
id=pkp$(($$ % 99999))
cleanup() {
  # ends the pods that are left, of whatever run
  [ ! -S "$work/run/agent.sock" ] || "$pikelet" drain-local --state-dir "$work/run" >/dev/null 2>&1 || true
  proc_stop "$work/pids" agent; proc_stop "$work/pids" registry
  sweep "$work" "$id"
  ip netns del "$id" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
mkdir "$work/pids" "$work/registry" "$work/manifests" "$work/hidden" "$work/root" "$work/run"
ip netns add "$id"
nsenter --net="/run/netns/$id" ip link set lo up

address=127.0.0.1:5000
registry_config "$work" "$address"
proc_start "$work/pids" "$work" registry nsenter --net="/run/netns/$id" docker-registry serve "$work/registry.yaml"
until_true 10 nsenter --net="/run/netns/$id" curl -fs "http://$address/v2/" || fail "docker-registry does not answer"
busybox_image "$work/oci" 1 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
push_image "$id" "$work/oci" 1 "$address/busybox:1"

# a bridge has room for 1023 links
proc_start "$work/pids" "$work" agent nsenter --net="/run/netns/$id" "$pikelet" run --root-dir "$work/root" \
  --state-dir "$work/run" --pod-logs-dir "$work/logs" --healthz-port 0 --pod-manifest-path "$work/manifests" \
  --cgroup-root "$id" --bridge "pkp0" --pod-cidr 10.88.0.0/21 --max-pods 1000 --insecure-registry "$address" --node-ip 127.0.0.1
until_true 10 test -S "$work/run/agent.sock" || { tail -n 5 "$work/agent.log" >&2; fail "the agent is not up"; }
agent=$(proc_pid "$work/pids" agent)

row() { printf '%-52s %24s   %s\n' "$@"; }
states() { "$pikelet" ps -o json --state-dir "$work/run"; }
# those that have been started, as the shims have noted it: to ask the agent all the time is work for it
started() { grep -ls '"started_at":[0-9]' "$work"/run/sandboxes/*/containers/*/info.json | wc -l; }
are_started() { [ "$(started)" = "$1" ]; }
is_running() { [ "$(states | jq '[.items[] | select(.status.phase == "Running")] | length')" = "$1" ]; }
is_gone() { [ "$(find "$work/run/sandboxes" -mindepth 1 -maxdepth 1 | wc -l)" = 0 ] && is_forgotten; }
is_forgotten() { [ "$("$pikelet" ps -a -o json --state-dir "$work/run" | jq '.items | length')" = 0 ]; }
# pss PID...: MiB of all together
pss() {
  local pid
  for pid in "$@"; do cat "/proc/$pid/smaps_rollup" 2>/dev/null; done | awk '/^Pss:/ { n += $2 } END { print n / 1024 }'
}
shims() { cut -d ' ' -f 1 "$work"/run/sandboxes/*/shim.pid; }
seconds() { awk "BEGIN { printf \"%.1f s\", ($2 - $1) / 1e9 }"; }

have=0
for count in "${counts[@]}"; do
  for i in $(seq $((have + 1)) "$count"); do
    cat >"$work/hidden/pod-$i.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: pod-$i}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: a, image: "$address/busybox:1", command: [sleep, "100000"]}]
YAML
  done
  start=$(date +%s%N)
  mv "$work"/hidden/*.yaml "$work/manifests/"
  { until_true 120 are_started "$count" && until_true 10 is_running "$count"; } || { tail -n 5 "$work/agent.log" >&2; fail "not all of $count pods run"; }
  row "$((count - have)) static pods more, all $count Running" "$(seconds "$start" "$(date +%s%N)")" ""
  have=$count
  # freed memory goes back to the kernel by then
  sleep 5
  # shellcheck disable=SC2046
  row "shim per pod with $count pods, PSS" "$(printf '%.2f MiB' "$(awk "BEGIN { print $(pss $(shims)) / $count }")")" "0.50 MiB"
  row "agent with $count pods, PSS" "$(printf '%.1f MiB' "$(pss "$agent")")" "30 MiB"
done
row "agent at its most, RSS" "$(awk '/^VmHWM/ { printf "%.1f MiB", $2 / 1024 }' "/proc/$agent/status")" ""

start=$(date +%s%N)
rm "$work"/manifests/*.yaml
until_true 120 is_gone || { tail -n 5 "$work/agent.log" >&2; fail "pods are left: $("$pikelet" ps -a --state-dir "$work/run" | head -n 5)"; }
row "$most pods stopped and removed" "$(seconds "$start" "$(date +%s%N)")" ""
links=$(nsenter --net="/run/netns/$id" ip -o link show master pkp0 2>/dev/null | wc -l)
folders=$(find "$work"/root/{pods,containers} "$work/run/sandboxes" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)
left=$(leftovers "$work" "$id" | grep -cv -e "docker-registry" -e "^process $agent:" || true)
row "what they have left: links, folders, else" "$links, $folders, $left" "0, 0, 0"
[ "$links $folders $left" = "0 0 0" ] || { leftovers "$work" "$id" | head -n 5 >&2; fail "something is left over"; }
