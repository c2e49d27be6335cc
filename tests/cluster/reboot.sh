# A node that was cut off, with no API server when it comes up again: its pods come back, with all they had.

mkdir -p "$dir/n1/reboot/data"
k create configmap colors --from-literal=color=green >/dev/null
k create secret generic pass --from-literal=pass=hunter2 >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: rebooted}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  local: {path: $dir/n1/reboot/data}
  claimRef: {name: rebooted, namespace: default}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: rebooted}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: rebooted, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: c, configMap: {name: colors}}
  - {name: s, secret: {secretName: pass}}
  - {name: d, persistentVolumeClaim: {claimName: rebooted}}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "echo run >>/d/runs; mkdir /w; echo whole >/w/index.html; httpd -p 8080 -h /w; exec sleep 100000"]
    ports: [{containerPort: 8080, hostPort: 8085}]
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: colors, key: color}}}, {name: PASS, valueFrom: {secretKeyRef: {name: pass, key: pass}}}]
    volumeMounts: [{name: c, mountPath: /c}, {name: s, mountPath: /s}, {name: d, mountPath: /d}]
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  nodeName: n1
  restartPolicy: Never
  volumes: [{name: d, hostPath: {path: $dir/n1/reboot/data}}]
  containers: [{name: c, image: "$image", command: [sh, -c, "echo done >>/d/done"], volumeMounts: [{name: d, mountPath: /d}]}]
YAML
for i in $(seq 20); do
  k run "many$i" --image=$image --labels=app=many --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":1}}' --command -- sleep 100000 >/dev/null
done
k run gone --image=$image --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":1}}' --command -- sleep 100000 >/dev/null
k wait --for=condition=Ready pod/whole pod/gone $(seq -f 'pod/many%.0f' 20) --timeout=60s >/dev/null
k wait --for=jsonpath=.status.phase=Succeeded pod/done --timeout=60s >/dev/null
uid=$(field whole .metadata.uid)
mode() { [ "$(stat -c %a "$dir/n1/lib/objects")" = 700 ]; }
check "what pods use is kept for root alone" mode

$cluster stop agent-n1 KILL
k delete pod gone --force --grace-period=0 >/dev/null 2>&1
$cluster stop apiserver
$cluster cut n1
began=$(date +%s%N)
$cluster start agent-n1
local_pods() { on n1 "$(cat "$dir/pikelet")" ps --state-dir "$dir/n1/run" "$@" 2>/dev/null; }
running() { [ "$(local_pods -o json | jq '[.items[] | select(.status.phase == "Running" and .status.containerStatuses[0].state.running)] | length')" = "$1" ]; }
check "with no API server the pods that ran come back" until_true 60 running 22
echo "     ($((($(date +%s%N) - began) / 1000000)) ms after the agent was started)"
inside() { on n1 "$(cat "$dir/pikelet")" exec --state-dir "$dir/n1/run" whole -- sh -c "$1"; }
same() { [ "$(inside 'echo $(cat /c/color) $(cat /s/pass) $COLOR $PASS $KUBERNETES_SERVICE_HOST; wc -l </d/runs')" = $'green hunter2 green hunter2 10.96.0.1\n2' ]; }
check "  with their ConfigMaps, Secrets, volumes and variables" same
token() { [ "$(inside 'cut -c1-2 /var/run/secrets/kubernetes.io/serviceaccount/token')" = ey ]; }
check "  and their tokens" token
once() { [ "$(wc -l <"$dir/n1/reboot/data/done")" = 1 ]; }
served() { [ "$(ip netns exec "pk$PIKELET_CLUSTER_ID-cp" timeout 3 busybox wget -qO- http://10.77.0.11:8085)" = whole ]; }
check "  and their host ports" until_true 5 served
check "one that was done is not run again" once

before=$(local_pods -o json | jq -r '.items[] | select(.metadata.name == "whole").status.containerStatuses[0].containerID')
api_up
k wait --for=condition=Ready node/n1 --timeout=60s >/dev/null
caught_up() { [ "$(field whole "$container")" = "$before" ] && [ "$(field whole .metadata.uid)" = "$uid" ] && is whole .status.phase Running; }
check "when it is back their statuses are caught up, and nothing is started again" soon caught_up
without() { running 21; }
check "a pod that was deleted meanwhile is stopped" soon without
k create configmap colors --from-literal=color=blue --dry-run=client -o yaml | k apply -f - >/dev/null 2>&1
changed() { [ "$(inside 'cat /c/color')" = blue ]; }
check "and what changes reaches them again" soon changed
k delete pod whole done --timeout=60s >/dev/null; k delete pod -l app=many --timeout=60s >/dev/null
k delete pvc rebooted --timeout=30s >/dev/null; k delete pv rebooted --timeout=30s >/dev/null
forgotten() { ! ls "$dir/n1/lib/objects" | found -E '^(configmap|secret|token|persistent)'; }
check "what no pod uses is no longer kept" soon forgotten

# ---- the machine is told to restart: what the unit of systemd does then ----
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 10
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, 'echo run >>/v/said; trap "echo bye >>/v/said; exit 0" TERM; while :; do sleep 1 & wait \$!; done']
    volumeMounts: [{name: v, mountPath: /v}]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >>/v/said"]}}}
YAML
k wait --for=condition=Ready pod/polite --timeout=60s >/dev/null
uid=$(field polite .metadata.uid) before=$(field polite "$container")
check "drain-local --for-restart ends pods and agent" on n1 "$(cat "$dir/pikelet")" drain-local --for-restart --state-dir "$dir/n1/run"
check "  no sandbox is left" not ls "$dir/n1/run/sandboxes/"*/
check "  nobody is told that its pods ended" is polite "$container" "$before"
check "  nor that one is not Running" is polite .status.phase Running
$cluster stop agent-n1
$cluster start agent-n1
said() { [ "$(k exec polite -- cat /v/said | xargs)" = "run hook bye run" ] && [ "$(field polite .metadata.uid)" = "$uid" ]; }
check "  after it the same pod goes on, with its volume, hooks and signals came before" soon said
check "  as after any restart of the machine" soon is polite "$restarts" 1
k delete pod polite --timeout=30s >/dev/null
