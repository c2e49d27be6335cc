# Statistics and metrics, read as Prometheus and metrics-server read them.

k run busy --image=$image --overrides='{"spec":{"nodeName":"n1"}}' --command -- sh -c 'while true; do :; done' >/dev/null
k run quiet --image=$image --overrides='{"spec":{"nodeName":"n1"}}' --command -- sleep 1000 >/dev/null
soon is busy .status.phase Running; soon is quiet .status.phase Running
raw() { k get --raw "/api/v1/nodes/n1/proxy/$1"; }
summary() { raw stats/summary >"$layout/summary"; }
of() { jq -r --arg pod "$1" ".pods[] | select(.podRef.name == \$pod) | $2" "$layout/summary"; }
summary; sleep 1; summary
works() { [ "$(of busy .cpu.usageNanoCores)" -gt 100000000 ] && [ "$(of quiet .cpu.usageNanoCores)" -lt 50000000 ]; }
check "the summary tells a busy pod from a quiet one" works
whole() {
  jq -e '.node | .cpu.usageCoreNanoSeconds and .memory.workingSetBytes and .fs.usedBytes and .runtime.imageFs.usedBytes
    and .network.rxBytes and .rlimit.curproc' "$layout/summary" >/dev/null &&
    [ "$(of quiet '.containers[0] | .memory.workingSetBytes > 0 and .rootfs.usedBytes > 0 and .logs.capacityBytes > 0')" = true ] &&
    [ "$(of quiet '.volume[0].name')" != null ] && [ "$(of quiet '.network.name')" = eth0 ]
}
check "it has node, containers, volumes and networks" whole
short() { [ "$(raw 'stats/summary?only_cpu_and_memory=true' | jq '.pods[0] | has("network") or has("volume")')" = false ]; }
check "only_cpu_and_memory leaves the rest away" short
parsed() {
  raw "$1" >"$layout/metrics" && /usr/bin/python3 - "$layout/metrics" "$2" <<'P'
import sys
from prometheus_client.parser import text_string_to_metric_families
found = {s.name for f in text_string_to_metric_families(open(sys.argv[1]).read()) for s in f.samples}
missing = set(sys.argv[2].split()) - found
sys.exit(f"missing: {missing}" if missing else 0)
P
}
check "Prometheus reads /metrics" parsed metrics 'kubelet_running_pods process_cpu_seconds_total process_resident_memory_bytes'
check "/metrics/resource has what metrics-server asks for" parsed metrics/resource \
  'node_cpu_usage_seconds_total node_memory_working_set_bytes container_cpu_usage_seconds_total
   container_memory_working_set_bytes container_start_time_seconds pod_cpu_usage_seconds_total resource_scrape_error'
check "/metrics/cadvisor has what dashboards show" parsed metrics/cadvisor \
  'container_cpu_usage_seconds_total container_memory_working_set_bytes container_memory_rss machine_memory_bytes
   container_network_receive_bytes_total container_network_transmit_bytes_total container_oom_events_total'
check "/metrics/probes" parsed metrics/probes ''
configured() { [ "$(raw configz | jq -r .kubeletconfig.port)" = 10250 ]; }
check "/configz" configured
listed() { raw pods | jq -e '.items | length >= 2' >/dev/null && raw runningpods/ | jq -e '.items | length >= 2' >/dev/null; }
check "/pods and /runningpods" listed
folder() { raw logs/ | found '<a href="apt/">'; }
check "/logs/" folder
later() { [[ $(k create --raw /api/v1/nodes/n1/proxy/checkpoint/default/busy/busy -f /dev/null 2>&1) == *"not implemented"* ]]; }
check "/checkpoint says that it does not exist" later

local_top() {
  on n1 "$(cat "$dir/pikelet")" top --state-dir "$dir/n1/run" >"$layout/top" &&
    [ "$(awk '$2 == "busy" { print $3 + 0 }' "$layout/top")" -gt 100 ]
}
check "pikelet top, without an API server" local_top

# metrics-server reads /metrics/resource of every node as a user who may read statistics and nothing else
k apply -f cluster/metrics-server.yaml >/dev/null
$cluster start metrics-server
available() { k wait --for=condition=Available apiservice/v1beta1.metrics.k8s.io --timeout=60s; }
check "metrics-server is served by the API server" available
millicores() { k top pod "$1" --no-headers 2>/dev/null | awk '{ print $2 + 0 }'; }
shown() { [ "$(millicores busy)" -gt 100 ] && [ "$(millicores quiet)" -lt 50 ]; }
check "kubectl top pod tells a busy pod from a quiet one" soon shown
all_nodes() { [ "$(k top node --no-headers | awk '$2 ~ /m$/ && $4 ~ /Mi$/' | wc -l)" = 3 ]; }
check "kubectl top node has every node" soon all_nodes
$cluster stop metrics-server
k delete -f cluster/metrics-server.yaml >/dev/null
k delete pod busy quiet --timeout=60s --grace-period=1 >/dev/null
