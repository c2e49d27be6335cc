# The agent killed with -9 at random moments (five, or as many as PIKELET_KILLS says) while pods are in every state:
# initialized, pulling, waiting for volumes, running, crashing, completed, terminating.

kills=${PIKELET_KILLS:-5}
counts=$dir/n1/kills
mkdir -p "$counts"
# images that are not there yet, each with a layer of its own
for i in 1 2 3; do
  head -c 12M /dev/urandom >"$layout/fill"
  umoci unpack --rootless --image "$layout/oci:1" "$layout/own" >/dev/null 2>&1
  mv "$layout/fill" "$layout/own/rootfs/fill$i"
  umoci repack --image "$layout/oci:own$i" "$layout/own" >/dev/null 2>&1
  rm -rf "$layout/own"
  push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" "own$i" "10.77.0.1:5000/own:$i"
done
cat >"$dir/n1/config.yaml" <<'YAML'
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
YAML
agent_with n1 --config "$dir/n1/config.yaml"
k create secret generic kills --from-literal=a=b >/dev/null

# pod NAME BATCH POLICY CONTAINERS [MORE]: each container writes a line to a file of its name when it starts
pod() {
  cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: many, batch: b$2}}
spec:
  nodeName: n1
  restartPolicy: $3
  terminationGracePeriodSeconds: 3
  volumes:
  - {name: d, hostPath: {path: $counts}}
  ${5:-}
  $4
YAML
}
# runs NAME COMMAND [IMAGE]: a container that says that it started
runs() {
  echo "{name: c, image: \"${3:-$image}\", command: [sh, -c, \"echo x >>/d/$1; $2\"], volumeMounts: [{name: d, mountPath: /d}]}"
}
slow_end="trap 'sleep 1; exit 0' TERM; while true; do sleep 0.1; done"
batch() {
  local n=$1
  pod "stay$n" "$n" Always "containers: [$(runs "stay$n" 'exec sleep 100000')]"
  pod "job$n" "$n" Never "containers: [$(runs "job$n" 'exit 0')]"
  pod "fails$n" "$n" Never "containers: [$(runs "fails$n" 'sleep 1; exit 7')]"
  pod "crash$n" "$n" Always "containers: [$(runs "crash$n" 'exit 1')]"
  pod "init$n" "$n" Always "initContainers: [$(runs "init$n-1" 'sleep 1' | sed 's/name: c/name: i1/'), $(runs "init$n-2" 'sleep 1' | sed 's/name: c/name: i2/')]
  containers: [$(runs "init$n" 'exec sleep 100000')]"
  pod "pull$n" "$n" Always "containers: [$(runs "pull$n" 'exec sleep 100000' "10.77.0.1:5000/own:$((n % 3 + 1))")]"
  pod "mount$n" "$n" Always "containers: [$(runs "mount$n" 'exec sleep 100000')]" "- {name: late, configMap: {name: late$n}}
  - {name: mem, emptyDir: {medium: Memory}}
  - {name: s, secret: {secretName: kills}}"
  pod "ends$n" "$n" Always "containers: [$(runs "ends$n" "$slow_end")]"
}
# those of a batch that are deleted after the next one; the others stay
short_lived() { printf '%s\n' "crash$1" "init$1" "pull$1" "mount$1" "ends$1"; }
last=0
churn() {
  local n=0
  while [ ! -e "$counts/stop" ]; do
    n=$((n + 1))
    batch $n | k apply -f - >/dev/null
    echo $n >"$counts/last"
    sleep 1
    k create configmap "late$n" --from-literal=a=b >/dev/null
    # what stays piles up: some are enough
    [ $n -lt 8 ] || k delete pod "stay$((n - 7))" "fails$((n - 7))" "job$((n - 7))" --wait=false >/dev/null 2>&1
    [ $n -lt 3 ] || k delete pod $(short_lived $((n - 2))) --wait=false >/dev/null
    sleep 2
  done
}
# an agent needs a second or two on a busy machine before it does anything
kill_agent() {
  sleep "$((1 + RANDOM % 4)).$((RANDOM % 10))"
  $cluster stop agent-n1 KILL
  sleep "0.$((RANDOM % 3))"
  $cluster start agent-n1
}
churn & churning=$!
for _ in $(seq "$kills"); do kill_agent; done
touch "$counts/stop"
wait $churning
last=$(cat "$counts/last")
first=$((last > 7 ? last - 6 : 1))
# as many of those that were deleted have run meanwhile
begun=$(ls "$counts" | grep -cE '^(init|pull|mount|ends)')
k delete pod $(short_lived $((last - 1))) --wait=false >/dev/null
rm "$counts/stop" "$counts/last"
kept=$(seq $first "$last")
echo "     agent killed $kills times during $last batches of 8 pods; $begun containers of short-lived ones had started"

# refused ROOT STATE: a second agent with those folders of n1
refused() {
  local said
  said=$(on n1 timeout 30 "$(cat "$dir/pikelet")" run --kubeconfig "$dir/n1/kubeconfig" --node-name n1 --root-dir "$dir/n1/$1" \
    --state-dir "$dir/n1/$2" --pod-logs-dir "$dir/n1/log" --cgroup-root "pk$PIKELET_CLUSTER_ID-n1" --bridge pikelet0 2>&1) && return 1
  [[ $said == *"is used by the agent with pid $(proc_pid "$dir/pids" agent-n1)"* ]]
}
check "a second agent in the same folders is refused" refused lib run
check "  and one that shares one of them" eval 'refused lib other && refused other run'
rm -rf "$dir/n1/other"

no_deleted() { [ -z "$(k get pods -l app=many -o 'jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.metadata.name}{"\n"}{end}')" ]; }
check "deleted pods are gone" until_true 120 no_deleted
lines() { [ "$(wc -l <"$counts/$1" 2>/dev/null)" = "$2" ]; }
# each is as if nobody had killed the agent; `wrong` is what was not
tell() { [ -z "${wrong:-}" ] || k get pod "$wrong" -o 'jsonpath={.metadata.name} {.status.phase}: {.status.containerStatuses}{"\n"}' | cut -c -1500; }
steady() {
  local n
  for n in $kept; do is "stay$n" .status.phase Running && is "stay$n" "$restarts" 0 && lines "stay$n" 1 || { wrong=stay$n; return 1; }; done
}
check "pods that stay run, and their containers started once" until_true 90 steady || tell
completed() {
  local n
  for n in $kept; do is "job$n" .status.phase Succeeded && is "job$n" "$ended" 0 && lines "job$n" 1 || { wrong=job$n; return 1; }; done
}
check "those that complete did so once" until_true 60 completed || tell
failed() {
  local n
  for n in $kept; do is "fails$n" .status.phase Failed && is "fails$n" "$ended" 7 && lines "fails$n" 1 || { wrong=fails$n; return 1; }; done
}
check "those that fail did so once, with their code" until_true 60 failed || tell
init() {
  wrong=init$last
  is "init$last" .status.phase Running && lines "init$last-1" 1 && lines "init$last-2" 1 && lines "init$last" 1 &&
    [ "$(field "init$last" '.status.initContainerStatuses[*].restartCount')" = "0 0" ]
}
check "init containers ran once, in their order" until_true 60 init || tell
# none that was deleted was started again for it; one may have been ended before it could say that it had started
once() { local file; for file in "$counts"/init* "$counts"/pull* "$counts"/mount* "$counts"/ends*; do [ "$(wc -l <"$file")" -le 1 ] || { wrong=$file; return 1; }; done; }
check "  as did all that were deleted meanwhile" once || wc -l "$wrong"
up() { local p; for p in pull mount ends; do is "$p$last" .status.phase Running && is "$p$last" "$restarts" 0 && lines "$p$last" 1 || { wrong=$p$last; return 1; }; done; }
check "what pulled, waited for volumes or was to end runs" until_true 60 up || tell
counted() {
  local before; before=$(field "crash$last" "$restarts")
  [ "$before" -ge 2 ] && lines "crash$last" $((before + 1)) && is "crash$last" "$restarts" "$before"
}
check "every restart of what crashes is counted, and counted once" until_true 60 counted
sandboxes() { [ "$(ls "$dir/n1/run/sandboxes" | wc -l)" = "$1" ]; }
# of the last batch all but the two that have ended, and the others that stay
check "each pod has one sandbox" soon sandboxes $((last - first + 6))
k delete pod -l app=many --timeout=90s >/dev/null
k delete configmap --all >/dev/null
k delete secret kills >/dev/null
rm -r "$counts" "$dir/n1/config.yaml"
veths() { on n1 ls /sys/class/net | grep -c '^pk'; }
clean() {
  sandboxes 0 && [ -z "$(ls "$dir/n1/lib/pods" "$dir/n1/lib/containers" "$dir/n1/log" "$dir/n1/containers" 2>/dev/null | grep -v ':$')" ] &&
    [ -z "$(ls /sys/fs/cgroup/*/"pk$PIKELET_CLUSTER_ID-n1" 2>/dev/null | grep '^pod')" ] &&
    [ "$(veths)" = 0 ] && [ -z "$(on n1 awk -v dir="$dir/n1/" 'index($5, dir) == 1' /proc/self/mountinfo)" ]
}
check "nothing is left of them: sandboxes, folders, logs, cgroups, links, mounts" soon clean
clean || { ls "$dir/n1/run/sandboxes" "$dir/n1/lib/pods" "$dir/n1/lib/containers" "$dir/n1/log"; on n1 ls /sys/class/net; } >&2
addresses() { jq -e '.held == {}' "$dir/n1/run/network/leases.json" >/dev/null; }
check "nor addresses" soon addresses
agent_with n1
