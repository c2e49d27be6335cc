# The node's settings about limits, in the files of pods' cgroups; nothing of these pods has to run.
set -e
. tests/harness/common.sh
root=/sys/fs/cgroup/limits
dir=$(mktemp -d)
mkdir "$dir/manifests"
cat >"$dir/manifests/one.yaml" <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  hostNetwork: true
  containers: [{name: a, image: "127.0.0.1:1/none:1", resources: {limits: {cpu: 500m, memory: 64Mi}}}]
YAML
agent=
trap '[ -z "$agent" ] || kill "$agent"' EXIT
# with SETTINGS FILE VALUE [FILE VALUE]...: a fresh agent's pod has these
with() {
  echo "$1" >"$dir/config.yaml"; shift
  "$PIKELET_BIN" run --config "$dir/config.yaml" --node-name pi --pod-manifest-path "$dir/manifests" --root-dir "$dir/lib" \
    --state-dir "$dir/run" --pod-logs-dir "$dir/logs" --cgroup-root limits --bridge pklimits --pod-cidr 10.90.0.0/24 \
    >"$dir/log" 2>&1 &
  agent=$!
  while [ $# -gt 0 ]; do
    until_true 30 has "$1" "$2" || fail "$1: $(cat "$root"/pod*/"$1"), not $2; $(cat "$dir/log")"
    shift 2
  done
  "$PIKELET_BIN" drain-local --state-dir "$dir/run"
  wait "$agent" || true
  agent=
  rm -rf "$dir/lib"
}
has() { [ "$(cat "$root"/pod*/"$1")" = "$2" ]; }
with 'podPidsLimit: 77
cpuCFSQuotaPeriod: 50ms' pids.max 77 cpu.max '25000 50000' memory.max 67108864
with 'cpuCFSQuota: false' pids.max max cpu.max 'max 100000'
