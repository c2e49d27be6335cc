# CPU weights of the QoS classes follow the pods there are; nothing of these pods has to run.
set -e
. tests/harness/common.sh
root=/sys/fs/cgroup/weights
dir=$(mktemp -d)
mkdir "$dir/manifests"
pod() {
  cat >"$dir/manifests/$1.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  hostNetwork: true
  containers: [{name: a, image: "127.0.0.1:1/none:1", resources: {requests: {cpu: $2}}}]
YAML
}
is() { [ "$(cat "$root/$1/cpu.weight")" = "$2" ]; }
pod one 500m
"$PIKELET_BIN" run --node-name pi --pod-manifest-path "$dir/manifests" --root-dir "$dir/lib" --state-dir "$dir/run" \
  --pod-logs-dir "$dir/logs" --cgroup-root weights --bridge pkweights --pod-cidr 10.89.0.0/24 >"$dir/log" 2>&1 &
agent=$!
trap 'kill "$agent"' EXIT
until_true 30 is besteffort 1 || fail "besteffort: $(cat "$root/besteffort/cpu.weight" "$dir/log")"
until_true 30 is burstable 59 || fail "burstable, 500m: $(cat "$root/burstable/cpu.weight" "$dir/log")"
pod two 500m
until_true 30 is burstable 100 || fail "burstable, 500m and 500m: $(cat "$root/burstable/cpu.weight" "$dir/log")"
rm "$dir"/manifests/*.yaml
until_true 60 is burstable 1 || fail "burstable, none: $(cat "$root/burstable/cpu.weight" "$dir/log")"
