# Sidecars: they end last and in reverse order, count for Ready, and do not keep a finished pod running.

mkdir -p "$dir/n1/sidecars"
writes() { echo "trap 'echo $1 >>/h/order; exit 0' TERM; while true; do sleep 0.1; done"; }
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: turns}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 20
  volumes: [{name: h, hostPath: {path: $dir/n1/sidecars}}]
  initContainers:
  - name: first
    image: "$image"
    restartPolicy: Always
    command: [sh, -c, "$(writes first)"]
    volumeMounts: [{name: h, mountPath: /h}]
  - name: second
    image: "$image"
    restartPolicy: Always
    command: [sh, -c, "$(writes second)"]
    volumeMounts: [{name: h, mountPath: /h}]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >>/h/order"]}}}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "trap 'sleep 2; echo main >>/h/order; exit 0' TERM; while true; do sleep 0.1; done"]
    volumeMounts: [{name: h, mountPath: /h}]
---
apiVersion: v1
kind: Pod
metadata: {name: work}
spec:
  nodeName: n1
  restartPolicy: Never
  terminationGracePeriodSeconds: 20
  volumes: [{name: h, hostPath: {path: $dir/n1/sidecars}}]
  initContainers:
  - name: side
    image: "$image"
    restartPolicy: Always
    command: [sh, -c, "trap 'sleep 5; echo side >>/h/work; exit 0' TERM; while true; do sleep 0.1; done"]
    volumeMounts: [{name: h, mountPath: /h}]
  containers: [{name: c, image: "$image", command: [sleep, "2"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: halfready}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: side
    image: "$image"
    restartPolicy: Always
    command: [sleep, "1000"]
    readinessProbe: {exec: {command: [test, -e, /tmp/on]}, periodSeconds: 1}
  containers: [{name: c, image: "$image", command: [sleep, "1000"]}]
YAML
soon is turns .status.phase Running
sleep 1
k delete pod turns --timeout=30s >/dev/null
turns() { [ "$(cat "$dir/n1/sidecars/order")" = $'hook\nmain\nsecond\nfirst' ]; }
check "hooks come at once, sidecars end after what uses them, the last one first" turns
ending() { is work "$ended}/{.status.phase" 0/Running; }
check "a pod whose work is done is Running while its sidecar ends" soon ending
check "  and has succeeded then" soon is work .status.phase Succeeded
side() { [ "$(cat "$dir/n1/sidecars/work")" = side ]; }
check "  with the sidecar's own last words" side
ready='.status.conditions[?(@.type=="Ready")].status'
soon is halfready .status.containerStatuses[0].ready true
check "a pod is not ready before its sidecars are" is halfready "$ready" False
k exec halfready -c side -- touch /tmp/on
check "  and is then" soon is halfready "$ready" True
k delete pod work halfready --timeout=30s >/dev/null

# ---- postStart hooks hold back what comes after ----
at_once() { echo "{name: $1, image: \"$image\", command: [sh, -c, 'echo $1 >>/h/$2; sleep 1000'], volumeMounts: [{name: h, mountPath: /h}]}"; }
proxy() {
  printf '%s ' "{name: proxy, image: \"$image\", command: [sleep, '1000'], volumeMounts: [{name: h, mountPath: /h}], $2" \
    "livenessProbe: {exec: {command: [test, -e, /h/$1]}, periodSeconds: 1, failureThreshold: 1}," \
    "lifecycle: {postStart: {exec: {command: [sh, -c, 'sleep 3; echo hooked >>/h/$1']}}}}"
}
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: beside}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: h, hostPath: {path: $dir/n1/sidecars}}]
  containers:
  - $(proxy beside "")
  - $(at_once app beside)
---
apiVersion: v1
kind: Pod
metadata: {name: after}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: h, hostPath: {path: $dir/n1/sidecars}}]
  initContainers:
  - $(proxy after "restartPolicy: Always,")
  containers:
  - $(at_once app after)
YAML
in_turn() { [ "$(cat "$dir/n1/sidecars/$1")" = $'hooked\napp' ]; }
for pod in beside after; do soon is $pod .status.phase Running; done
check "a container starts when the postStart hook of the one before it has ended" soon in_turn beside
check "  also after a sidecar's" soon in_turn after
check "  and no probe asks before" is beside '.status.containerStatuses[?(@.name=="proxy")].restartCount' 0
k delete pod beside after --timeout=30s >/dev/null

until_there() { echo "[sh, -c, 'until [ -e /h/$1 ]; do sleep 0.1; done; $2 exit 1'], volumeMounts: [{name: h, mountPath: /h}]"; }
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: lonely}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: h, hostPath: {path: $dir/n1/sidecars}}]
  initContainers:
  - {name: side, image: "$image", restartPolicy: Always, command: $(until_there down ":;")}
  containers:
  - {name: a, image: "$image", command: [sleep, "1000"]}
  - {name: b, image: "$image", command: $(until_there end "rm /h/end;")}
YAML
k wait --for=condition=Ready pod/lonely --timeout=30s >/dev/null
touch "$dir/n1/sidecars/down"
down() { is lonely '.status.initContainerStatuses[0].state.waiting.reason' CrashLoopBackOff; }
soon down
touch "$dir/n1/sidecars/end"
back() { [ "$(field lonely '.status.containerStatuses[?(@.name=="b")].restartCount')" = 1 ]; }
check "a container is started again while a sidecar is down" until_true 5 back
k delete pod lonely --timeout=30s >/dev/null
