# Which containers are started again, and when: their own policies and rules, the longest wait, deletes that hurry.

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: rules}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: again
    image: "$image"
    command: [sh, -c, "[ -e /v/was ] && exit 0; touch /v/was; exit 42"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: once, image: "$image", command: [sh, -c, "exit 42"]}
  volumes: [{name: v, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: "$image", command: [sh, -c, "exit 3"], restartPolicy: Never}
  - {name: b, image: "$image", command: [sleep, "1000"]}
YAML
of() { field "$1" ".status.containerStatuses[?(@.name==\"$2\")].$3"; }
ruled() { [ "$(of rules again restartCount)" = 1 ] && [ "$(of rules again state.terminated.exitCode)" = 0 ]; }
check "a rule restarts what its policy would not" soon ruled
check "  another container of the pod keeps the pod's policy" test "$(of rules once restartCount)" = 0
check "  and the pod fails when both have ended" soon is rules .status.phase Failed
own() { [ "$(of own a state.terminated.exitCode)" = 3 ] && [ "$(of own a restartCount)" = 0 ]; }
check "a container's own policy wins over the pod's" soon own
check "  and the pod runs on" is own .status.phase Running
k delete pod rules own --grace-period=1 --timeout=30s >/dev/null

# all_again NAME WAIT: the container src ends with 42 after WAIT seconds, once, and so does every other one
all_again() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: init, image: "$image", command: [sh, -c, "echo run >>/v/init"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: side, image: "$image", command: [sleep, "1000"], restartPolicy: Always}
  containers:
  - name: src
    image: "$image"
    command: [sh, -c, "[ -e /v/was ] && exec sleep 1000; touch /v/was; sleep $2; exit 42"]
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
    volumeMounts: [{name: v, mountPath: /v}]
  - name: other
    image: "$image"
    command: [sleep, "1000"]
    lifecycle: {preStop: {exec: {command: [touch, /v/hook]}}}
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: done, image: "$image", command: ["true"]}
  volumes: [{name: v, emptyDir: {}}]
YAML
}
# counts_of POD: restarts of every container, those that run before
counts_of() { field "$1" '.status.initContainerStatuses[*].restartCount} {.status.containerStatuses[*].restartCount'; }
again() { [ "$(counts_of "$1")" = "1 1 1 1 1" ] && [ -n "$(of "$1" src state.running)" ] && [ -n "$(of "$1" other state.running)" ]; }
all_again together 3
soon is together .status.phase Running
address=$(field together .status.podIP)
check "RestartAllContainers: every container is started again, once" soon again together
check "  init containers first" test "$(k exec together -c src -- cat /v/init | wc -l)" = 2
check "  with the same address and volumes" is together .status.podIP "$address"
check "  without hooks" not k exec together -c src -- ls /v/hook
restarting() { field together ".status.conditions[?(@.type==\"AllContainersRestarting\")].$1"; }
told() { [ "$(restarting status)" = False ] && [ "$(restarting observedGeneration)" = 1 ]; }
check "  and its condition says that it is done" soon told
before() { [ "$(of together other lastState.terminated.exitCode)" = 137 ]; }
check "  the run before is told: what was ended for it" soon before
all_again meanwhile 4
soon is meanwhile .status.phase Running
$cluster stop agent-n1 KILL
sleep 5
$cluster start agent-n1
check "  asked for while no agent runs: once too" soon again meanwhile
sleep 2
check "  and not again" again meanwhile
k delete pod together meanwhile --grace-period=1 --timeout=30s >/dev/null

# the agent ends after it asked for a container, which the stopped shim makes only then
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: halfway}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "echo run >>/v/runs; exec sleep 1000"]
    env: [{name: A, valueFrom: {configMapKeyRef: {name: halfway, key: a}}}]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
YAML
soon is halfway "$waiting" CreateContainerConfigError
shim=$(cut -d ' ' -f 1 "$(grep -l '"halfway"' "$dir"/n1/run/sandboxes/*/sandbox.json | xargs dirname)/shim.pid")
layers() { find "$dir/n1/lib/containers" -mindepth 1 -maxdepth 1 -type d | wc -l; }
layers_before=$(layers)
kill -STOP "$shim"
k create configmap halfway --from-literal=a=b >/dev/null
mounted() { [ "$(layers)" -gt "$layers_before" ]; }
check "a container is asked for" soon mounted
# with the write layer there, the request is a moment away
sleep 2
$cluster stop agent-n1 KILL
kill -CONT "$shim"
made() { [ "$(jq -r .started_at "$dir"/n1/run/sandboxes/*/containers/*/info.json | grep -cx null)" = 1 ]; }
check "  and made when its agent is gone" soon made
$cluster start agent-n1
check "  the next agent starts one" soon is halfway .status.phase Running
check "  which is its first" is halfway "$restarts" 0
one() { [ "$(layers)" = $((layers_before + 1)) ]; }
check "  and nothing is left of the other" soon one
k delete pod halfway --grace-period=1 --timeout=30s >/dev/null
k delete configmap halfway >/dev/null

cat >"$dir/n3/config.yaml" <<'YAML'
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
YAML
agent_with n3 --config "$dir/n3/config.yaml"
k run crashloop --image=$image --overrides='{"spec":{"nodeName":"n3"}}' --command -- false >/dev/null
five() { [ "$(field crashloop "$restarts")" -ge 5 ]; }
check "crashLoopBackOff.maxContainerRestartPeriod: five restarts in 20 s" until_true 20 five
waits() { field crashloop '.status.containerStatuses[0].state.waiting.message' | found 'back-off 2s'; }
check "  the wait is told" soon waits
check "  by an Event that names the pod" soon event crashloop 'Back-off restarting failed container crashloop in pod crashloop_default('
configured() { [ "$(k get --raw /api/v1/nodes/n3/proxy/configz | jq -r .kubeletconfig.crashLoopBackOff.maxContainerRestartPeriod)" = 2s ]; }
check "  and /configz has it" configured
twelve() { [ "$(field crashloop "$restarts")" -ge 12 ]; }
until_true 60 twelve
counts() { k get events --field-selector "involvedObject.name=crashloop$1" -o 'jsonpath={range .items[*]}{.count}{"\n"}{end}'; }
once() { [ "$(counts ,reason=Started | wc -l)" = 1 ] && [ "$(counts ,reason=Started)" -ge 3 ]; }
check "Events that come again are counted on one object" once
few() { [ "$(counts "" | awk '{ n += $1 } END { print n }')" -le 27 ]; }
check "  and there are no more than 25 at once about one pod" few
k delete pod crashloop --grace-period=1 --timeout=30s >/dev/null
rm "$dir/n3/config.yaml"
agent_with n3

stubborn() {
  k run "$1" --image=$image --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":300}}' --command -- \
    sh -c 'trap "" TERM; while true; do sleep 1; done' >/dev/null
  soon is "$1" .status.phase Running
}
stubborn hurried
generation=$(field hurried .status.observedGeneration)
k delete pod hurried --wait=false >/dev/null
sleep 3
still() { [ -n "$(field hurried .metadata.deletionTimestamp)" ] && is hurried .status.phase Running; }
check "what does not end has its grace period" still
seen() { [ "$(field hurried .status.observedGeneration)" -gt "$generation" ]; }
check "  the deletion was seen: observedGeneration" soon seen
k delete pod hurried --grace-period=2 --wait=false >/dev/null
check "  a second delete with a shorter one counts" until_true 15 not k get pod hurried
stubborn forced
uid=$(field forced .metadata.uid)
k delete pod forced --grace-period=0 --force >/dev/null 2>&1
check "a forced delete is at once" not k get pod forced
left() { [ -z "$(cgroups_of "pk$PIKELET_CLUSTER_ID-n1" | grep "pod$uid")" ] && [ ! -e "$dir/n1/lib/pods/$uid" ]; }
check "  and the node takes it down all the same" until_true 60 left
