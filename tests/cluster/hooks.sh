# postStart and preStop hooks, and the deadline of a pod.

mkdir -p "$dir/n1/hooks"
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 20
  volumes: [{name: h, hostPath: {path: $dir/n1/hooks}}]
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "trap 'echo term >>/h/order; exit 0' TERM; while true; do sleep 0.2; done"]
    volumeMounts: [{name: h, mountPath: /h}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "sleep 3; echo started >>/h/order"]}}
      preStop: {exec: {command: [sh, -c, "echo stopping >>/h/order; sleep 2; echo stopped >>/h/order"]}}
---
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "$image", command: [sleep, "100000"], lifecycle: {postStart: {exec: {command: ["false"]}}}}
---
apiVersion: v1
kind: Pod
metadata: {name: sleeps}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 3
  containers:
  - {name: c, image: "$image", command: [sleep, "100000"], lifecycle: {preStop: {exec: {command: [sleep, "60"]}}}}
YAML
# a web server that redirects to another host and knows nothing else
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 3
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "mkdir -p /w/cgi-bin && printf '#!/bin/sh\\nprintf \"Status: 302 Found\\\\r\\\\nLocation: http://0.0.0.0/\\\\r\\\\n\\\\r\\\\nelsewhere\"\\n' >/w/cgi-bin/away && chmod +x /w/cgi-bin/away && exec httpd -f -p 8000 -h /w"]
    livenessProbe: {httpGet: {path: /cgi-bin/away, port: 8000}, periodSeconds: 1, initialDelaySeconds: 1}
    lifecycle: {preStop: {httpGet: {path: /nothing, port: 8000}}}
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 3
  containers:
  - name: c
    image: "$image"
    command: [httpd, -f, -p, "8000"]
    lifecycle: {preStop: {httpGet: {path: /, port: 8000, scheme: HTTPS}}}
YAML
ready='.status.containerStatuses[0].ready'
soon is hooked .status.phase Running
check "a container is not ready before its postStart hook has ended" is hooked "$ready" false
check "  and is then" soon is hooked "$ready" true
failing() { [ "$(field fails "$restarts")" -ge 1 ]; }
check "one whose postStart hook fails is started again" soon failing
check "  and an Event says so" soon event fails FailedPostStartHook
k delete pod hooked --timeout=30s >/dev/null
order() { [ "$(cat "$dir/n1/hooks/order")" = $'started\nstopping\nstopped\nterm' ]; }
check "preStop comes before the signal, which waits for it" order
check "a preStop hook that is longer than the grace period is cut off" k delete pod sleeps --timeout=12s
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: brief}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: h, hostPath: {path: $dir/n1/hooks}}]
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "trap 'sleep 1; echo ended >/h/brief; exit 0' TERM; while true; do sleep 0.1; done"]
    volumeMounts: [{name: h, mountPath: /h}]
YAML
soon is brief .status.phase Running
k delete pod brief --timeout=20s >/dev/null
check "a program has two seconds at least" test -s "$dir/n1/hooks/brief"
k delete pod fails --timeout=60s >/dev/null

check "a probe that is sent to another host succeeds, with a warning" soon event web "ProbeWarning.*terminated redirects"
check "  that has what the answer says" soon event web elsewhere
check "  and the container goes on" is web "$restarts" 0
soon is plain .status.phase Running
k delete pod web plain --timeout=30s >/dev/null
check "a hook for HTTPS is heard by a server of HTTP, with a warning" soon event plain "LifecycleHTTPFallback.*retry with HTTP succeeded"
check "what a web server answers to a hook does not matter" not event web FailedPreStopHook

k run late --image=$image --overrides='{"spec": {"activeDeadlineSeconds": 3, "terminationGracePeriodSeconds": 1}}' \
  --command -- sleep 1000 >/dev/null
soon is late .status.phase Running
check "activeDeadlineSeconds: a pod that lives longer has failed" soon is late .status.phase Failed
check "  for that reason" soon is late .status.reason DeadlineExceeded
check "  and its program has ended" soon is late "$ended" 137
k delete pod late --timeout=30s >/dev/null
