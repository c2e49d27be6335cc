# The shim of a pod killed: its containers end and are reported, the pod gets another sandbox, nothing is left over.

k run shimless --image=$image --overrides='{"spec": {"nodeName": "n1"}}' --command -- sh -c 'sleep 100000 & sleep 100001' >/dev/null
k wait --for=condition=Ready pod/shimless --timeout=30s >/dev/null
folder() { grep -l '"pod_name":"shimless"' "$dir"/n1/run/sandboxes/*/sandbox.json | xargs -r dirname; }
before=$(folder) first=$(field shimless "$container")
group=$(echo /sys/fs/cgroup/{pids,.}/pk$PIKELET_CLUSTER_ID-n1/besteffort/pod*/"${first#pikelet://}")
kill -KILL "$(cut -d ' ' -f 1 "$before/shim.pid")"
restarted() { is shimless "$restarts" 1 && is shimless .status.phase Running && not is shimless "$container" "$first"; }
check "a pod whose shim was killed runs again" soon restarted
check "the end of its container is reported" not is shimless '.status.containerStatuses[0].lastState.terminated' ''
gone_with_it() {
  [ ! -e "$before" ] && [ "$(folder | wc -l)" = 1 ] && for folder in $group; do [ ! -e "$folder" ] || return 1; done
}
check "nothing of the old sandbox is left" soon gone_with_it
k delete pod shimless --grace-period=0 --force >/dev/null 2>&1
