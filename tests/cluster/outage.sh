# The agent killed, then the API server away: containers go on, with what they have mounted; statuses are right afterwards.
# For a minute, or for $PIKELET_OUTAGE seconds.

outage=${PIKELET_OUTAGE:-60}

k run steady --image=$image --restart=Never --command -- sleep 100000 >/dev/null
k run ends --image=$image --restart=Never --command -- sh -c 'until [ -e /proc/1/root/end ]; do sleep 0.2; done; exit 7' >/dev/null
k run crashes --image=$image --restart=OnFailure --command -- sh -c 'sleep 20; exit 3' >/dev/null
k wait --for=jsonpath=.status.phase=Running pod/steady pod/ends pod/crashes --timeout=30s >/dev/null
before=$(field steady "$container")
same() { is steady "$container" "$before" && is steady "$restarts" 0; }
node=$(field ends .spec.nodeName)
# host_pid POD: its container's first process on this machine
host_pid() {
  local id; id=$(field "$1" "$container"); id=${id#pikelet://}
  cat /sys/fs/cgroup/{pids,.}/"pk$PIKELET_CLUSTER_ID-$(field "$1" .spec.nodeName)"/*/pod*/"$id"/cgroup.procs \
    /sys/fs/cgroup/{pids,.}/"pk$PIKELET_CLUSTER_ID-$(field "$1" .spec.nodeName)"/pod*/"$id"/cgroup.procs 2>/dev/null | head -n 1
}
first=$(host_pid ends)

$cluster stop "agent-$node" KILL
touch "/proc/$first/root/end"
sleep 1
$cluster start "agent-$node"
check "a container that ended while no agent ran is reported with its code" soon is ends "$ended" 7
steady_node=$(field steady .spec.nodeName)
$cluster stop "agent-$steady_node" KILL
$cluster start "agent-$steady_node"
k wait --for=condition=Ready "node/$steady_node" --timeout=30s >/dev/null
sleep 2
check "after kill -9 of the agent a container is the same" same

k create secret generic kept --from-literal=word=first >/dev/null
k create configmap kept --from-literal=word=second >/dev/null
k apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: mounts}, spec: {restartPolicy: Always, terminationGracePeriodSeconds: 1,
  volumes: [{name: s, secret: {secretName: kept}}, {name: c, configMap: {name: kept}}],
  containers: [{name: reads, image: $image, command: [sh, -c, 'while cat /s/word /c/word >/tmp/read; do sleep 1; done'],
    volumeMounts: [{name: s, mountPath: /s}, {name: c, mountPath: /c}]},
   {name: dies, image: $image, command: [sh, -c, 'sleep 15; cat /s/word /c/word && exit 4; exit 5'],
    volumeMounts: [{name: s, mountPath: /s}, {name: c, mountPath: /c}]}]}}
YAML
k create deployment many --image=$image --replicas=12 -- sleep 100000 >/dev/null
k wait --for=condition=Ready pod/mounts --timeout=30s >/dev/null
k rollout status deployment/many --timeout=60s >/dev/null
everything() { k get pods -l app=many -o json | jq -S '[.items[].status.containerStatuses[] | {containerID, restartCount}] | sort'; }
all_before=$(everything)
reads_before=$(field mounts '.status.containerStatuses[?(@.name=="reads")].containerID')
dies_before=$(field mounts '.status.containerStatuses[?(@.name=="dies")].restartCount')
restarts_before=$(field crashes "$restarts")
pid=$(host_pid steady)
# whoever asked the node before may go on for as long as the answer holds
k create serviceaccount watcher >/dev/null
k create clusterrole watcher --verb=get --resource=nodes/pods >/dev/null
k create clusterrolebinding watcher --clusterrole=watcher --serviceaccount=default:watcher >/dev/null
known=$(k create token watcher) unknown=$(k create token watcher)
asks() {
  [ "$(ip netns exec "pk$PIKELET_CLUSTER_ID-cp" curl -sk -m 20 -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $2" \
    "https://10.77.0.11:10250$3")" = "$1" ]
}
check "a token with a right is let in" asks 200 "$known" /pods
check "  and no further" asks 403 "$known" /metrics
$cluster stop apiserver
check "with the API server away it is let in still" asks 200 "$known" /pods
check "  one nobody can vouch for is not" asks 401 "$unknown" /pods
sleep "$outage"
running() { [ -d "/proc/$pid" ]; }
check "with the API server away for $outage s containers go on" running
api_up
all_ready() { [ "$(k get pods -l app=many -o json | jq '[.items[] | select(.status.conditions[] | select(.type == "Ready" and .status == "True"))] | length')" = 12 ]; }
check "statuses are caught up" soon all_ready
check "  nothing was restarted" test "$(everything)" = "$all_before"
check "  nor what reads a Secret and a ConfigMap all the time" test "$(field mounts '.status.containerStatuses[?(@.name=="reads")].containerID')" = "$reads_before"
died() { [ "$(field mounts '.status.containerStatuses[?(@.name=="dies")].restartCount')" -gt "$dies_before" ]; }
check "what crashed meanwhile was started again" soon died
word() { [ "$(field mounts '.status.containerStatuses[?(@.name=="dies")].lastState.terminated.exitCode')" = 4 ]; }
check "  with the Secret and the ConfigMap it had" word
check "afterwards they are the same" same
went_on() { [ "$(field crashes "$restarts")" -gt "$restarts_before" ]; }
check "and what crashed meanwhile was restarted and is reported" soon went_on
k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s >/dev/null
check "the nodes are Ready" k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s
k delete deployment many >/dev/null
k delete secret/kept configmap/kept >/dev/null
k delete pod steady ends crashes mounts --timeout=60s --grace-period=1 >/dev/null
