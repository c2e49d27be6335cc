# The agent killed with -9 ten times at random moments during 50 creations and deletions.

pods() {
  local i
  for i in $(seq "$1" "$2"); do
    cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: p$i, labels: {app: many}}
spec: {nodeName: n1, terminationGracePeriodSeconds: 1, containers: [{name: c, image: "$image", command: [sleep, "100000"]}]}
YAML
  done
}
kill_agent() {
  sleep "0.$((RANDOM % 10))"
  $cluster stop agent-n1 KILL
  sleep "0.$((RANDOM % 3))"
  $cluster start agent-n1
}
churn() {
  pods 1 50 | k apply -f - >/dev/null
  sleep 1
  k delete pod $(seq -f 'p%.0f' 1 25) --wait=false >/dev/null
  sleep 1
  k delete pod $(seq -f 'p%.0f' 26 40) --wait=false >/dev/null
}
churn & churning=$!
for _ in $(seq 10); do kill_agent; done
wait $churning
left() { [ "$(k get pods -l app=many -o name | wc -l)" = 10 ]; }
check "deleted pods are gone" until_true 90 left
running() { [ "$(k get pods -l app=many --field-selector status.phase=Running -o name | wc -l)" = 10 ]; }
check "those that stay run" until_true 90 running
sandboxes() { [ "$(ls "$dir/n1/run/sandboxes" | wc -l)" = "$1" ]; }
check "each once" sandboxes 10
k delete pod -l app=many --timeout=60s >/dev/null
veths() { on n1 ls /sys/class/net | grep -c '^pk'; }
clean() {
  sandboxes 0 && [ -z "$(ls "$dir/n1/lib/pods" "$dir/n1/lib/containers" "$dir/n1/log" "$dir/n1/containers" 2>/dev/null | grep -v ':$')" ] &&
    [ -z "$(ls /sys/fs/cgroup/*/"pk$PIKELET_CLUSTER_ID-n1" 2>/dev/null | grep '^pod')" ] &&
    [ "$(veths)" = 0 ] && [ -z "$(on n1 awk -v dir="$dir/n1/" 'index($5, dir) == 1' /proc/self/mountinfo)" ]
}
check "nothing is left of them: sandboxes, folders, logs, cgroups, links, mounts" soon clean
clean || { ls "$dir/n1/run/sandboxes" "$dir/n1/lib/pods" "$dir/n1/lib/containers" "$dir/n1/log"; on n1 ls /sys/class/net; } >&2
addresses() { jq -e '.held == {}' "$dir/n1/run/network/leases.json" >/dev/null; }
check "nor addresses" addresses
