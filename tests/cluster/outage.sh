# The agent killed, then the API server away for a minute: containers go on, statuses are right afterwards.

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
sleep 60
running() { [ -d "/proc/$pid" ]; }
check "with the API server away for a minute containers go on" running
$cluster start apiserver
until_true 60 k get --raw /readyz
check "afterwards they are the same" same
went_on() { [ "$(field crashes "$restarts")" -gt "$restarts_before" ]; }
check "and what crashed meanwhile was restarted and is reported" soon went_on
k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s >/dev/null
check "the nodes are Ready" k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s
k delete pod steady ends crashes --timeout=60s --grace-period=1 >/dev/null
