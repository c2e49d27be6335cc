# Resources changed while a pod runs, and resources of a whole pod.

resizable() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "$image"
    command: [sleep, "100000"]
    resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 64Mi}}
    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: ${2:-NotRequired}}]
YAML
  soon is "$1" .status.phase Running
}
# resize POD CPU_REQUEST CPU_LIMIT MEMORY
resize() {
  k patch pod "$1" --subresource resize --patch "{\"spec\": {\"containers\": [{\"name\": \"c\", \"resources\":
    {\"requests\": {\"cpu\": \"$2\", \"memory\": \"$4\"}, \"limits\": {\"cpu\": \"$3\", \"memory\": \"$4\"}}}]}}" >/dev/null
}
# in_cgroup POD V1_FILE V2_FILE [pod]: of its container, or of the pod
in_cgroup() {
  local uid id below=""; uid=$(field "$1" .metadata.uid) id=$(field "$1" "$container")
  [ "${4:-}" = pod ] || below=/${id#pikelet://}
  cat /sys/fs/cgroup/{cpu,memory,.}/"pk$PIKELET_CLUSTER_ID-n1"/{burstable,.}/"pod$uid$below"/{"$2","$3"} 2>/dev/null | head -n 1
}
quota() { [[ $(in_cgroup "$1" cpu.cfs_quota_us cpu.max "${3:-}") == $2* ]]; }
memory() { [ "$(in_cgroup "$1" memory.limit_in_bytes memory.max "${3:-}")" = $(($2 << 20)) ]; }
told() { is "$1" '.status.containerStatuses[0].resources.limits.cpu' "$2" && is "$1" '.status.containerStatuses[0].allocatedResources.cpu' "$3"; }
pod_condition() { field "$1" ".status.conditions[?(@.type==\"$2\")].$3"; }
says() { [[ $(pod_condition "$1" "$2" reason) == "$3" ]]; }

resizable live
before=$(field live "$container")
resize live 300m 500m 128Mi
check "a resize reaches the container's cgroup" soon quota live 50000
check "  memory too" soon memory live 128
check "  and the pod's" soon quota live 50000 pod
check "  and the pod's memory" memory live 128 pod
check "  the status tells it" soon told live 500m 300m
check "  the container was not started again" is live "$container" "$before"
over() { says live PodResizeInProgress '' && says live PodResizePending ''; }
check "  and no condition is left" soon over
observed() { [ "$(field live .status.observedGeneration)" = "$(field live .metadata.generation)" ]; }
check "  the generation was seen" soon observed
resize live 100m 150m 96Mi
check "it can be taken back" soon memory live 96
check "  CPU too" soon quota live 15000

# the API server looks at the Node before: here it is told of more than there is
k patch node n1 --subresource=status -p '{"status": {"capacity": {"cpu": "100"}, "allocatable": {"cpu": "100"}}}' >/dev/null
resize live 4900m 5000m 96Mi
check "what the node can never give is infeasible" soon says live PodResizePending Infeasible
message() { [[ $(pod_condition live PodResizePending message) == "Node didn't have enough capacity: cpu, requested: 4900, capacity: "* ]]; }
check "  and the condition says why" soon message
check "  nothing changed" quota live 15000
$cluster stop agent-n1 KILL
$cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
sleep 2
check "  also not when the agent starts again" quota live 15000
check "  the container is the same" is live "$container" "$before"
check "  and says what it has" soon told live 150m 100m
resize live 200m 250m 96Mi
check "afterwards it can be resized as before" soon quota live 25000
check "  and the condition goes" soon over

cpus=$(k get node n1 -o 'jsonpath={.status.allocatable.cpu}')
most=$((cpus * 1000 - 700))m
k run fills --image=$image --overrides="{\"spec\":{\"nodeName\":\"n1\",\"containers\":[{\"name\":\"c\",\"image\":\"$image\",
  \"command\":[\"sleep\",\"1000\"],\"resources\":{\"requests\":{\"cpu\":\"$most\"}}}]}}" >/dev/null
soon is fills .status.phase Running
resize live 900m 950m 96Mi
check "what the node cannot give now is deferred" soon says live PodResizePending Deferred
k delete pod fills --grace-period=1 --timeout=30s >/dev/null
check "  and given when it can" soon quota live 95000

resizable again RestartContainer
before=$(field again "$container")
resize again 100m 400m 64Mi
check "a resource whose policy wants no restart" soon quota again 40000
check "  is changed live" is again "$container" "$before"
resize again 100m 400m 96Mi
restarted() { [ "$(field again "$restarts")" = 1 ] && memory again 96; }
check "one whose policy wants it is changed by a restart" soon restarted
check "  and the pod's cgroup with it" soon memory again 96 pod

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  resources: {limits: {cpu: 300m, memory: 80Mi}}
  containers:
  - name: a
    image: "$image"
    command: [sh, -c, 'echo limit \$LIMIT; exec sleep 1000']
    env: [{name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}]
  - {name: b, image: "$image", command: [sleep, "1000"]}
YAML
check "resources of a whole pod" soon is whole .status.phase Running
check "  make its class" is whole .status.qosClass Guaranteed
check "  and are in its cgroup" memory whole 80 pod
check "  CPU too" quota whole 30000 pod
check "  and are those of its containers, which have none of their own" memory whole 80
check "    CPU too" quota whole 30000
limit_is() { k logs whole -c a | found "limit $((80 << 20))"; }
check "    and what those are told" limit_is
k patch pod whole --subresource resize --patch '{"spec": {"resources": {"requests": {"memory": "96Mi"}, "limits": {"memory": "96Mi"}}}}' >/dev/null
check "a whole pod is resized" soon memory whole 96 pod
check "  its containers with it" memory whole 96
check "  and its status says so" soon is whole '.status.resources.limits.memory' 96Mi
check "    also what it was given" is whole '.status.allocatedResources.memory' 96Mi

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: plain, image: "$image", command: [sleep, "1000"]}
  - {name: sized, image: "$image", command: [sleep, "1000"], resources: {requests: {cpu: 100m}}}
---
apiVersion: v1
kind: Pod
metadata: {name: initial}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  initContainers: [{name: i, image: "$image", command: [sleep, "1000"], resources: {requests: {cpu: 100m}}}]
  containers: [{name: c, image: "$image", command: [sleep, "1000"]}]
YAML
soon is mixed .status.phase Running
k patch pod mixed --subresource resize --patch '{"spec": {"containers": [{"name": "sized", "resources": {"requests": {"cpu": "150m"}}}]}}' >/dev/null
has() { is "$1" ".status.$2[?(@.name==\"$3\")].resources.requests.cpu" "$4"; }
check "a pod can be resized one of whose containers asks for nothing" soon has mixed containerStatuses sized 150m
begun() { [ -n "$(field initial '.status.initContainerStatuses[0].state.running.startedAt')" ]; }
soon begun
k patch pod initial --subresource resize --patch '{"spec": {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "150m"}}}]}}' >/dev/null
check "  and an init container" soon has initial initContainerStatuses i 150m
k delete pod live again whole mixed initial --grace-period=1 --timeout=60s >/dev/null
