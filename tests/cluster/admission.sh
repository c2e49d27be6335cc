# Pods a node refuses, and critical ones it makes room for. Pods here name their node: no scheduler is asked.

# bound NAME NODE SPEC: a pod with those fields of its spec, one YAML line each
bound() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: ${in:-default}}
spec:
  nodeName: $2
  terminationGracePeriodSeconds: 1
$(sed 's/^/  /' <<<"$3")
YAML
}
container="containers: [{name: c, image: '$image', command: [sleep, '1000'], resources: {requests: {cpu: CPU}}}]"
asks() { echo "${container/CPU/$1}"; }
refused() { is "$1" .status.phase Failed && is "$1" .status.reason "$2" && [[ $(field "$1" .status.message) == *"$3"* ]]; }

bound too-big n1 "$(asks 1000)"
check "more CPU than there is" soon refused too-big OutOfcpu "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: "
check "  whose Event says it without a prefix" soon event too-big "pod/too-big *Node didn't have enough resource: cpu"
shown() { k get pod "$1" --no-headers | found "0/1 *$2 "; }
check "  is shown as that" shown too-big OutOfcpu
bound too-early n1 "initContainers: [{name: i, image: '$image'}]"$'\n'"$(asks 1000)"
check "  also when it has init containers" soon shown too-early OutOfcpu
bound too-much n1 "containers: [{name: c, image: '$image', resources: {requests: {memory: 9Ti}}}]"
check "more memory than there is" soon refused too-much OutOfmemory 'resource: memory'
bound too-huge n1 "containers: [{name: c, image: '$image', resources: {limits: {hugepages-2Mi: 64Gi, memory: 1Mi, cpu: 1m}}}]"
check "more huge pages than there are" soon refused too-huge OutOfhugepages-2Mi 'resource: hugepages-2Mi, requested: 68719476736'
huge() { [ "$(k get node n1 -o 'jsonpath={.status.allocatable.hugepages-2Mi}')" = "$((2 * $(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)))" ]; }
[ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)" != 0 ] || check "  the Node says that there are none" huge
bound selects n1 "nodeSelector: {no: such}"$'\n'"$(asks 1m)"
check "a selector the node does not match" soon refused selects NodeAffinity "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
k label node n1 such=label >/dev/null
bound selected n1 "nodeSelector: {such: label}"$'\n'"$(asks 1m)"
check "  and one it matches since a moment ago" soon is selected .status.phase Running
check "  which is told to be scheduled" is selected '.status.conditions[?(@.type=="PodScheduled")].status' True
k label node n1 such- >/dev/null
# a label, and at once a pod that was bound for it: the node may hear of the pod first
cat >"$dir/hurried.py" <<'P'
import http.client, json, ssl, sys
pki, image = sys.argv[1:]
tls = ssl.create_default_context(cafile=f"{pki}/ca.crt")
tls.load_cert_chain(f"{pki}/admin.crt", f"{pki}/admin.key")
api = http.client.HTTPSConnection("10.77.0.1", 6443, context=tls)
def ask(method, path, kind, body):
    api.request(method, path, json.dumps(body), {"Content-Type": f"application/{kind}"})
    answer = api.getresponse()
    said = answer.read()
    assert answer.status < 300, said
for n in range(60):
    ask("PATCH", "/api/v1/nodes/n1", "merge-patch+json", {"metadata": {"labels": {f"hurried-{n}": "yes"}}})
    container = {"name": "c", "image": image, "command": ["true"]}
    spec = {"nodeName": "n1", "restartPolicy": "Never", "nodeSelector": {f"hurried-{n}": "yes"}, "containers": [container]}
    pod = {"metadata": {"name": f"hurried-{n}", "labels": {"of": "hurried"}}, "spec": spec}
    ask("POST", "/api/v1/namespaces/default/pods", "json", pod)
P
ip netns exec "pk$PIKELET_CLUSTER_ID-cp" python3 "$dir/hurried.py" "$dir/pki" "$image"
phases() { k get pod -l of=hurried -o 'jsonpath={.items[*].status.phase}' | tr ' ' '\n' | sort | uniq -c | xargs; }
over() { [[ $(phases) != *Pending* && $(phases) != *Running* ]]; }
soon over
check "  also when the pod is heard of before the label" [ "$(phases)" = "60 Succeeded" ]
k delete pod -l of=hurried --timeout=60s >/dev/null
# shellcheck disable=SC2046 # one word for each
k label node n1 $(seq -f 'hurried-%g-' 0 59) >/dev/null
port="containers: [{name: c, image: '$image', command: [sleep, '1000'], ports: [{containerPort: 80, hostPort: 8181}]}]"
bound port n1 "$port"
soon is port .status.phase Running
bound port-again n1 "$port"
check "a host port that is taken" soon refused port-again NodePorts "didn't have free ports"
k taint node n1 test=yes:NoExecute >/dev/null
tainted() { is selected .metadata.name ''; }
check "a taint: the control plane removes what does not tolerate it" soon not k get pod selected
bound intolerant n1 "$(asks 1m)"
# unless the control plane was quicker with that one too
untaken() { event intolerant "TaintToleration.*had taints that the pod didn't tolerate" || not k get pod intolerant; }
check "  and the node takes no such pod" soon untaken
check "  which never starts" not event intolerant Started
bound tolerant n1 "tolerations: [{key: test, operator: Exists}]"$'\n'"$(asks 1m)"
check "  but one that tolerates it" soon is tolerant .status.phase Running
k taint node n1 test- >/dev/null
bound windows n1 "os: {name: windows}"$'\n'"$(asks 1m)"
check "a pod of another operating system" soon refused windows PodOSNotSupported 'OS field'
k delete pod --all --grace-period=1 --timeout=60s >/dev/null

agent_with n3 --max-pods 2
bound one n3 "$(asks 1m)"; bound two n3 "$(asks 1m)"
soon is one .status.phase Running; soon is two .status.phase Running
bound three n3 "$(asks 1m)"
check "more pods than maxPods" soon refused three OutOfpods 'resource: pods, requested: 1, used: 2, capacity: 2'
$cluster stop agent-n3 KILL
$cluster start agent-n3
k wait --for=condition=Ready node/n3 --timeout=30s >/dev/null
sleep 2
both() { is one "$restarts" 0 && is two "$restarts" 0 && is one .status.phase Running && is two .status.phase Running; }
check "  those that were taken stay when the agent starts again" both
k delete pod three >/dev/null
in=kube-system bound critical n3 "priorityClassName: system-node-critical"$'\n'"$(asks 1m)"
runs() { [ "$(k get pod critical -n kube-system -o 'jsonpath={.status.phase}')" = Running ]; }
check "a critical pod is taken all the same" soon runs
preempted() { refused one Preempting 'Preempted in order to admit critical pod' || refused two Preempting 'Preempted in order to admit critical pod'; }
check "  and another one goes for it" soon preempted
victim=one; is two .status.reason Preempting && victim=two
check "  which was not its fault" soon is $victim '.status.conditions[?(@.type=="DisruptionTarget")].reason' TerminationByKubelet
check "  and an Event tells it" soon event $victim Preempting
k delete pod critical -n kube-system --grace-period=1 --timeout=60s >/dev/null
k delete pod --all --grace-period=1 --timeout=60s >/dev/null
agent_with n3

k apply -f - >/dev/null <<YAML
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: own}
handler: pikelet
overhead: {podFixed: {cpu: 100m, memory: 32Mi}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: other}
handler: no-such-handler
YAML
bound classed n1 "runtimeClassName: own"$'\n'"containers: [{name: c, image: '$image', command: [sleep, '1000'], resources: {limits: {cpu: 200m, memory: 32Mi}}}]"
bound unclassed n1 "runtimeClassName: other"$'\n'"$(asks 1m)"
check "a runtime class of this runtime" soon is classed .status.phase Running
uid=$(field classed .metadata.uid)
limit() { cat /sys/fs/cgroup/{memory,.}/"pk$PIKELET_CLUSTER_ID-n1/pod$uid"/{memory.limit_in_bytes,memory.max} 2>/dev/null | head -n 1; }
check "  its overhead is in the pod's cgroup" test "$(limit)" = $((64 << 20))
check "one of another runtime does not start, and an Event says why" soon event unclassed 'FailedCreatePodSandBox.*no runtime for "no-such-handler" is configured'
k delete pod --all --grace-period=1 --timeout=60s >/dev/null
k delete runtimeclass own other >/dev/null
container='.status.containerStatuses[0].containerID'
