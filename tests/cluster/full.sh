# The disk of a node (the whole root directory) full while containers write: what runs goes on, what cannot begin says
# why, and all is well again once there is room.

busybox_image "$layout/small" 1 >/dev/null 2>&1
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/small" 1 10.77.0.1:5000/small:1
full=$layout/full
truncate -s 64M "$full"
mkfs.ext4 -q -m 0 "$full"
$cluster stop agent-n2
on n2 mount -o loop "$full" "$dir/n2/lib"
agent_with n2 --eviction-hard= --image-gc-high-threshold 100
k create configmap full --from-literal=word=one >/dev/null
# on_n2 NAME COMMAND
on_n2() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 1
  volumes: [{name: own, emptyDir: {}}, {name: config, configMap: {name: full}}]
  containers:
  - {name: c, image: "10.77.0.1:5000/small:1", command: [sh, -c, "$2"], volumeMounts: [{name: own, mountPath: /own}, {name: config, mountPath: /config}]}
YAML
}
on_n2 steady 'i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done'
on_n2 writer 'until test -e /own/stop; do dd if=/dev/zero bs=4096 >>/own/fill 2>/dev/null; sleep 0.2; done; rm /own/fill; echo free; sleep 1000'
soon is steady .status.phase Running
soon is writer .status.phase Running
free() { on n2 df --output=avail -k "$dir/n2/lib" | tail -n 1; }
filled() { [ "$(free)" -lt 8 ]; }
check "a container fills the node's disk" soon filled
before="$(field steady "$container") $(field writer "$container")"
on_n2 late 'sleep 1000'
check "a full disk: what cannot begin says why" soon event late 'No space left on device'
k patch configmap full -p '{"data": {"word": "two"}}' >/dev/null
run() { [ "$(field steady "$container") $(field writer "$container")" = "$before" ] && is steady "$restarts" 0 && is writer "$restarts" 0; }
check "  what runs goes on" run
$cluster stop agent-n2 KILL; $cluster start agent-n2
check "  an agent that starts is ready" k wait --for=condition=Ready node/n2 --timeout=30s
sleep 2
check "  and takes over what runs" run
check "  exec goes on" k exec steady -- true
check "  a pod can be deleted" k delete pod late --timeout=30s
on_n2 later 'sleep 1000'
soon event later 'No space left on device'
k exec writer -- sh -c 'rm /own/fill; touch /own/stop' >/dev/null 2>&1
check "there is room again: what waited begins" soon is later .status.phase Running
updated() { [ "$(k exec steady -- cat /config/word)" = two ]; }
check "  volumes are up to date" soon updated
check "  nothing was restarted" run
numbered() { k logs steady | awk '$1 != n++ { bad = 1 } END { exit bad || n < 50 }'; }
check "  no line of a log is lost" numbered
sound() { on n2 find "$dir/n2/lib" -name '*.tmp' | wc -l | found -x 0; }
check "  nothing half written is left" sound
k delete pod steady writer later --timeout=60s >/dev/null
k delete configmap full >/dev/null
$cluster stop agent-n2
on n2 umount "$dir/n2/lib"
agent_with n2
rm "$full"
