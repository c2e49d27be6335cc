# Pods that come to an end before they have begun, and programs that cannot be started.

# starts POD POLICY COMMAND...: a pod of that command
starts() {
  local name=$1 policy=$2; shift 2
  k apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: $name}, spec: {nodeName: n1, restartPolicy: $policy, terminationGracePeriodSeconds: 1,
  containers: [{name: c, image: "$image", command: $*}]}}
YAML
}
terminated() { field "$1" ".status.containerStatuses[0].${3:-state}.terminated.$2"; }
starts missing Never '[/no/such/program]'
starts unnamed Never '[no-such-program]'
starts folder Never '[/bin]'
starts unreadable Never '[/etc/passwd]'
starts always Always '[/no/such/program]'
k apply -f - >/dev/null <<YAML
apiVersion: batch/v1
kind: Job
metadata: {name: never-starts}
spec:
  backoffLimit: 0
  template:
    spec:
      nodeName: n1
      restartPolicy: Never
      containers: [{name: c, image: "$image", command: [/no/such/program]}]
---
apiVersion: v1
kind: Pod
metadata: {name: begins}
spec:
  nodeName: n1
  restartPolicy: Never
  initContainers: [{name: i, image: "$image", command: [/no/such/program]}]
  containers: [{name: c, image: "$image", command: ["true"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: replaced}
spec:
  podReplacementPolicy: Failed
  template:
    spec:
      nodeName: n1
      restartPolicy: Never
      containers: [{name: c, image: "${image%/*}/no-such:1"}]
YAML
for pod in missing unnamed folder unreadable begins; do soon is $pod .status.phase Failed; done
not_started() { [ "$(terminated "$1" reason) $(terminated "$1" exitCode)" = 'StartError 128' ] && terminated "$1" message | found "$2"; }
check "a program that is not there fails its container, with a reason" not_started missing 'no/such/program.*no such file'
check "  one that is not in PATH" not_started unnamed 'no-such-program.*not found in \$PATH'
check "  a folder" not_started folder '/bin'
check "  a file that is no program" not_started unreadable 'permission denied'
check "  and an init container's its pod" is begins .status.phase Failed
counted() { [ "$(k get job never-starts -o 'jsonpath={.status.failed}{.status.conditions[?(@.type=="Failed")].status}')" = 1True ]; }
check "  a Job counts it and gives up" soon counted
restarted() { [ "$(field always "$restarts")" -ge 1 ] && is always "$waiting" CrashLoopBackOff && [ "$(terminated always reason lastState)" = StartError ]; }
check "  with restartPolicy: Always it is tried again, later and later" soon restarted
k delete pod missing unnamed folder unreadable begins always --timeout=30s >/dev/null

replaced() { k get pod -l job-name=replaced -o 'jsonpath={.items[*].metadata.name}'; }
named() { [ -n "$(replaced)" ]; }
soon named
pulls() { is "$(replaced)" "$waiting" ImagePullBackOff; }
soon pulls
first=$(replaced)
k delete pod "$first" --wait=false >/dev/null
anew() { [ -n "$(replaced)" ] && [ "$(replaced)" != "$first" ]; }
check "a Job that waits for the end of a pod which never began gets it" soon anew
k delete job replaced never-starts --timeout=30s >/dev/null

# ---- the sandbox is lost ----
mkdir -p "$dir/n1/inits"
k create configmap readable --from-literal=key=value >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: fresh}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: h, hostPath: {path: $dir/n1/inits}}
  - {name: map, configMap: {name: readable}}
  - {name: down, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
  initContainers: [{name: i, image: "$image", command: [sh, -c, "echo ran >>/h/ran"], volumeMounts: [{name: h, mountPath: /h}]}]
  containers:
  - name: c
    image: "$image"
    command: [sleep, "1000"]
    volumeMounts: [{name: map, mountPath: /map}, {name: down, mountPath: /down}]
YAML
soon is fresh .status.phase Running
refused() { k exec fresh -c c -- sh -c "touch $1/x 2>&1; true" | found 'Read-only file system'; }
check "containers only read ConfigMaps" refused /map
check "  and their pod's fields" refused /down
shim() { on n1 "$(cat "$dir/pikelet")" inspect --state-dir "$dir/n1/run" fresh | jq -r .sandbox.pid; }
pid=$(shim)
[ -z "$pid" ] || kill -KILL "$pid"
twice() { [ "$(wc -l <"$dir/n1/inits/ran")" = 2 ] && is fresh '.status.containerStatuses[0].ready' true; }
check "init containers run again in a new sandbox" soon twice
k delete pod fresh --timeout=30s >/dev/null
k delete configmap readable >/dev/null

k apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: claims}, spec: {nodeName: n1, terminationGracePeriodSeconds: 1,
  resourceClaims: [{name: gpu, resourceClaimName: none}], containers: [{name: c, image: "$image", command: [sleep, "1000"]}]}}
YAML
check "a pod whose devices cannot be had does not start without them" soon event claims 'FailedPrepareDynamicResources'
check "  and its status says so" soon is claims .status.phase Pending
k delete pod claims --timeout=30s >/dev/null
