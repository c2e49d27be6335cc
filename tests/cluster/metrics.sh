# What rules and dashboards read (tests/metrics.txt), of a pod that has all there can be; and Events about the Node.

mkdir -p "$dir/n1/pv/measured"
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: measured}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  claimRef: {namespace: default, name: measured}
  local: {path: $dir/n1/pv/measured}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: measured}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: measured, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: measured}
spec:
  nodeName: n1
  volumes: [{name: data, persistentVolumeClaim: {claimName: measured}}]
  containers:
    - name: busy
      image: $image
      imagePullPolicy: Always
      command: [sh, -c, 'dd if=/dev/zero of=/data/file bs=1M count=2 conv=fsync; while true; do :; done']
      resources: {limits: {cpu: 100m, memory: 64Mi}}
      readinessProbe: {exec: {command: [test, -e, /data/file]}, periodSeconds: 1}
      volumeMounts: [{name: data, mountPath: /data}]
YAML
soon is measured '.status.containerStatuses[0].ready' true
pulled='Successfully pulled image "10.77.0.1:5000/busybox:1" in .*s (.*s including waiting). Image size: [0-9]* bytes.'
check "Events are in the kubelet's words" soon event measured "$pulled"
check "  of a start too" soon event measured 'Started .*Container started$'
scrape() { for place in metrics metrics/cadvisor metrics/resource metrics/probes; do
  k get --raw "/api/v1/nodes/n1/proxy/$place" >"$layout/${place//\//-}" || return 1
done; }
# on version 1 new kernels count what is read and written only where a limit is set
uncounted=none; [ -e /sys/fs/cgroup/cgroup.controllers ] || uncounted='container_fs_(reads|writes)'
listed() {
  scrape && /usr/bin/python3 - "$layout" "$uncounted" <<'P'
import re, sys
from prometheus_client.parser import text_string_to_metric_families
folder, uncounted = sys.argv[1:]
told = {}
def of(place):
    if place not in told:
        text, labels = open(folder + "/" + place[1:].replace("/", "-")).read(), {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                # the parser gives every counter an end it may not have
                for name in sample.name, sample.name.removesuffix("_total"):
                    labels.setdefault(name, set()).update(sample.labels)
        told[place] = labels
    return told[place]
missing = []
for line in open("metrics.txt"):
    if not line.strip() or line.startswith("#"):
        continue
    place, name, *labels = line.split()
    if place == "absent" or re.match(uncounted, name):
        continue
    if name not in of(place) or not set(labels) <= of(place)[name]:
        missing.append(line.strip())
sys.exit("missing: " + "; ".join(missing) if missing else 0)
P
}
check "all that rules and dashboards read is there, with its labels" soon listed || listed
# told PLACE PATTERN: the value of the one series that has it
told() { grep -E "^$2" "$layout/$1" | awk '{ print $NF }' | head -n 1; }
positive() { scrape && awk -v value="$(told "$@")" 'BEGIN { exit !(value > 0) }'; }
throttled='container_cpu_cfs_throttled_periods_total\{container="busy".*pod="measured"'
check "a container that is held up by its limit shows it" soon positive metrics-cadvisor "$throttled"
check "  and so does the machine, as id=/" positive metrics-cadvisor 'container_cpu_usage_seconds_total\{container="",id="/",'
claim='\{namespace="default",persistentvolumeclaim="measured"\}'
size() { [ "$(told metrics "kubelet_volume_stats_capacity_bytes$claim" | cut -d. -f1)" = "$(($(stat -fc '%b * %S' "$dir/n1/pv/measured")))" ]; }
check "a claim has the size of its file system" size
summary() { k get --raw /api/v1/nodes/n1/proxy/stats/summary | jq -e '.pods[] | select(.podRef.name == "measured") | .volume[] |
  select(.pvcRef.name == "measured" and .name == "data") | .capacityBytes > 0 and .usedBytes > 0' >/dev/null; }
check "  and is in the summary" summary
for name in client server; do
  check "the $name certificate's end is told" positive metrics "kubelet_certificate_manager_${name}_ttl_seconds "
done
check "starts of pods are timed" positive metrics kubelet_pod_start_duration_seconds_count
check "  and requests to the API server" positive metrics 'rest_client_requests_total\{code="201",.*method="POST"'
check "  and volumes" positive metrics 'storage_operation_duration_seconds_count\{.*status="success",volume_plugin="kubernetes.io/local-volume"'
k delete pod measured --grace-period=1 --timeout=60s >/dev/null
forgotten() { scrape && [ -z "$(told metrics "kubelet_volume_stats_capacity_bytes$claim")" ]; }
check "a claim that no pod here has is told of no more" soon forgotten
k delete pvc,pv measured --timeout=60s >/dev/null

# as the kernel writes it, on machines of today
echo 'ghost invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0' >/dev/kmsg
echo 'oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=ghost,pid=4242,uid=0' >/dev/kmsg
echo 'Out of memory: Killed process 4242 (ghost) total-vm:1kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0' >/dev/kmsg
ooms() { k get events --field-selector involvedObject.name=n1,reason=SystemOOM -o 'jsonpath={.items[*].message}' | grep -o 'ghost, pid: 4242' | wc -l; }
ooms_are() { [ "$(ooms)" = "$1" ]; }
check "a process that ended as the machine had no memory is an Event of the Node" soon ooms_are 1
again n1
soon ready n1; sleep 3
check "  and only once, also when the agent starts again" ooms_are 1
k cordon n1 >/dev/null
check "a cordon is an Event of the Node" soon event n1 'NodeNotSchedulable.*Node n1 status is now: NodeNotSchedulable'
k uncordon n1 >/dev/null
check "  and its end" soon event n1 NodeSchedulable
