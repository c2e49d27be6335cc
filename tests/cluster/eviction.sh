# Evictions on n3: memory, disk and processes run short; pods use more local storage than they may.

# pod_on_n3 NAME COMMAND [SPEC]: with more fields of the spec, in JSON, and resources of its container in $resources
pod_on_n3() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n3
  restartPolicy: Never
  terminationGracePeriodSeconds: ${grace:-1}
  tolerations: [{operator: Exists, effect: NoExecute}]
  volumes: [{name: v, emptyDir: ${volume:-{\}}}]
  containers:
  - {name: c, image: "${from:-$image}", command: [sh, -c, "$2"], resources: ${resources:-{\}}, volumeMounts: [{name: v, mountPath: /v}]}
  ${more:-}
YAML
}
evicted() { is "$1" .status.phase Failed && is "$1" .status.reason Evicted; }
says_of() { [[ $(field "$1" .status.message) == *"$2"* ]]; }
disrupted() { is "$1" '.status.conditions[?(@.type=="DisruptionTarget")].reason' TerminationByKubelet; }
condition() { [ "$(k get node n3 -o "jsonpath={.status.conditions[?(@.type==\"$1\")].status}")" = "$2" ]; }
tainted() { k get node n3 -o 'jsonpath={.spec.taints[*].key}' | found "node.kubernetes.io/$1-pressure"; }
running_on_n3() { soon is "$1" .status.phase Running; }
gone() { k delete pod "$@" --grace-period=1 --timeout=60s >/dev/null; }
# what is left of memory, as the kubelet counts it, in KiB
left() { awk '/^(MemFree|Inactive\(file\)):/ { n += $2 } END { print n }' /proc/meminfo; }

# far enough below that what else goes on here (an emulated machine, a compiler) does not reach it
room=$(($(left) / 1024 / 3)); room=$((room < 4000 ? room : 4000))
threshold=$(($(left) / 1024 - room))
agent_with n3 --eviction-hard "memory.available<${threshold}Mi" --eviction-pressure-transition-period 15s \
  --kube-reserved memory=64Mi --system-reserved memory=32Mi,cpu=100m
kept() {
  local capacity allocatable
  capacity=$(k get node n3 -o 'jsonpath={.status.capacity.memory}') allocatable=$(k get node n3 -o 'jsonpath={.status.allocatable.memory}')
  [ $((${capacity%Ki} - ${allocatable%Ki})) = $(((threshold + 96) * 1024)) ]
}
check "allocatable is capacity less what is reserved and the hard threshold" soon kept
resources='{requests: {memory: 64Mi}}' pod_on_n3 modest 'sleep 1000'
running_on_n3 modest
volume='{medium: Memory, sizeLimit: 6Gi}' pod_on_n3 greedy 'i=0; while dd if=/dev/zero of=/v/$i bs=1M count=20 2>/dev/null; do i=$((i+1)); done; sleep 1000'
check "memory: what takes it all is evicted" until_true 60 evicted greedy
check "  and the message says of what there was too little" soon says_of greedy 'The node was low on resource: memory. Threshold quantity: '
check "  and who used it" soon says_of greedy 'Container c was using '
check "  and that it was not its fault" soon disrupted greedy
check "  and an Event tells it" soon event greedy Evicted
check "  what stays within its requests goes on" is modest .status.phase Running
check "the node has MemoryPressure" soon condition MemoryPressure True
check "  and its taint" soon tainted memory
pod_on_n3 best-effort 'sleep 1000'
check "  what asks for no memory is not taken" soon evicted best-effort
check "  and told why" soon says_of best-effort 'Pod was rejected: The node had condition: [MemoryPressure].'
resources='{requests: {memory: 16Mi}}' pod_on_n3 burstable 'sleep 1000'
check "  what asks for some is" running_on_n3 burstable
check "  until the transition period is over" soon condition MemoryPressure False
gone modest greedy best-effort burstable

agent_with n3 --eviction-hard= --eviction-soft 'memory.available<900Gi' --eviction-soft-grace-period memory.available=8s \
  --eviction-max-pod-grace-period 10 --eviction-pressure-transition-period 1s
resources='{requests: {memory: 64Mi}}' grace=60 pod_on_n3 polite "trap 'sleep 2; echo bye; exit 0' TERM; while true; do sleep 0.1; done"
check "a soft threshold is tolerated for its grace period" running_on_n3 polite
check "  then pods are evicted" soon evicted polite
bye() { [ "$(k logs polite)" = bye ]; }
check "  and have time to end" bye
gone polite

processes=$(awk -v most="$(sort -n /proc/sys/kernel/pid_max /proc/sys/kernel/threads-max | head -n 1)" '{ split($4, n, "/"); print most - n[2] - 300 }' /proc/loadavg)
agent_with n3 --eviction-hard "pid.available<$processes" --eviction-pressure-transition-period 1s
pod_on_n3 forks 'for i in $(seq 600); do sleep 1000 & done; wait'
check "processes: what has most of them is evicted" soon evicted forks
check "  and the message says so" soon says_of forks 'The node was low on resource: pids.'
gone forks

# limits of pods on a node that has plenty
agent_with n3
write() { echo "dd if=/dev/zero of=$1 bs=1M count=$2; sleep 1000"; }
volume='{sizeLimit: 10Mi}' pod_on_n3 volume "$(write /v/x 20)"
resources='{limits: {ephemeral-storage: 10Mi}}' pod_on_n3 layer "$(write /x 20)"
resources='{limits: {ephemeral-storage: 10Mi}}' more="- {name: d, image: \"$image\", command: [sleep, '1000'], resources: {limits: {ephemeral-storage: 100Mi}}}" \
  pod_on_n3 one "$(write /x 20)"
resources='{limits: {ephemeral-storage: 30Mi}}' volume='{sizeLimit: 30Mi}' pod_on_n3 frugal "$(write /v/x 10)"
resources='{limits: {ephemeral-storage: 2Mi}}' pod_on_n3 chatty 'yes $(seq 200) | head -c 4000000; sleep 1000'
check "an emptyDir beyond its sizeLimit" soon evicted volume
check "  is named" soon says_of volume 'Usage of EmptyDir volume "v" exceeds the limit "10Mi".'
check "a pod beyond its ephemeral-storage limit" soon evicted layer
check "  is told" soon says_of layer 'Pod ephemeral local storage usage exceeds the total limit of containers 10Mi.'
check "a container beyond its own" soon evicted one
check "  is named" soon says_of one 'Container c exceeded its local ephemeral storage limit "10Mi".'
check "logs count too" soon evicted chatty
check "who stays below goes on" is frugal .status.phase Running
gone volume layer one frugal chatty

# the node's folder on a small disk of its own
busybox_root "$layout/bulk" && dd if=/dev/urandom of="$layout/bulk/bulk" bs=1M count=80 2>/dev/null
pack_image "$layout/oci" bulk "$layout/bulk"
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" bulk 10.77.0.1:5000/bulk:1
$cluster stop agent-n3
truncate -s 900M "$dir/n3.img"
mkfs.ext4 -q -m 0 -N 20000 "$dir/n3.img"
mv "$dir/n3/lib" "$dir/n3/lib.whole"; mkdir "$dir/n3/lib"
on n3 mount -o loop "$dir/n3.img" "$dir/n3/lib"
agent_with n3 --eviction-hard 'nodefs.available<300Mi,nodefs.inodesFree<8000' --eviction-pressure-transition-period 10s \
  --minimum-image-ttl-duration 0s --image-gc-high-threshold 100
from=10.77.0.1:5000/bulk:1 pod_on_n3 once 'exit 0'
soon is once .status.phase Succeeded
pod_on_n3 other 'sleep 1000'; pod_on_n3 writer 'sleep 1000'
running_on_n3 other; running_on_n3 writer
k delete pod once >/dev/null
has_bulk() { on n3 "$(cat "$dir/pikelet")" images --state-dir "$dir/n3/run" | found bulk; }
check "an image nobody uses is there" has_bulk
mebibytes=$(($(on n3 stat -f -c '%a * %S' "$dir/n3/lib") / 1048576 - 270))
k exec writer -- dd if=/dev/zero of=/v/x bs=1M count="$mebibytes" 2>/dev/null
check "disk: what nobody uses goes first" soon not has_bulk
node_event() { k get events --field-selector involvedObject.kind=Node,involvedObject.name=n3 | found "$1"; }
check "  an Event of the node tells it" soon node_event 'EvictionThresholdMet.*Attempting to reclaim ephemeral-storage'
check "  the node has DiskPressure" soon condition DiskPressure True
sleep 3
check "  and that is enough" is writer .status.phase Running
pod_on_n3 late 'sleep 1000'
check "  but nothing new is taken" soon evicted late
k exec writer -- dd if=/dev/zero of=/y bs=1M count=150 2>/dev/null
check "then what wrote most is evicted" soon evicted writer
check "  and the message says why" soon says_of writer 'The node was low on resource: ephemeral-storage. Threshold quantity: 300Mi, available: '
check "  others go on" is other .status.phase Running
check "  and the disk has room again" soon condition DiskPressure False
pod_on_n3 files 'cd /v; seq 13000 | xargs touch; sleep 1000'
check "inodes: what has most of them is evicted" soon evicted files
check "  and the message says so" soon says_of files 'The node was low on resource: inodes.'
gone other writer late files
$cluster stop agent-n3
on n3 umount "$dir/n3/lib"
rmdir "$dir/n3/lib"; mv "$dir/n3/lib.whole" "$dir/n3/lib"; rm "$dir/n3.img"
agent_with n3
