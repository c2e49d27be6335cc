# Startup, readiness and liveness probes: exec, httpGet, tcpSocket, grpc; and readiness gates.

k apply -f cluster/probes.yaml >/dev/null
ready='.status.containerStatuses[0].ready'
started='.status.containerStatuses[0].started'
for pod in ready live slow never-up hangs; do soon is $pod .status.phase Running; done
check "readiness: what has not said so is not ready" is ready "$ready" false
k exec ready -- touch /tmp/ok
check "  and is once it says so" soon is ready '.status.conditions[?(@.type=="Ready")].status' True
before=$(field ready "$container")
$cluster stop agent-n1 KILL
$cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
sleep 1
check "  and stays so when the agent is started again" is ready "$ready" true
k exec ready -- rm /tmp/ok
check "  until it says otherwise" soon is ready "$ready" false
check "  with no restart" is ready "$container" "$before"
check "startup: nothing is started before" is slow "$started" false
k exec slow -- touch /tmp/go
check "  liveness waits for it" soon is slow "$started" true
check "  and kills nothing meanwhile" is slow "$restarts" 0
restarted() { [ "$(field "$1" "$restarts")" -ge 1 ]; }
check "startup: what does not come up is started again" soon restarted never-up
check "liveness: what answers is left alone" is live "$restarts" 0
k exec live -- rm /www/healthz
check "  what answers wrongly is started again" soon restarted live
check "  and an Event says why" soon event live 'Liveness probe failed: HTTP probe failed with statuscode: 404'
check "  and another that it was killed" soon event live 'failed liveness probe, will be restarted'
check "a probe that cannot ask says so" soon event misnamed 'Liveness probe errored and resulted in unknown state'
check "  and that is no failure of the program" is misnamed "$restarts" 0
check "a command that hangs has failed" soon event hangs 'Readiness probe failed: no answer within 1 s'
few() { [ "$(processes_naming_command 'sleep 4242' | wc -l)" -le 1 ]; }
processes_naming_command() { grep -lzx 4242 /proc/[0-9]*/cmdline 2>/dev/null; }
check "  and is killed" few
counted() {
  k get --raw "/api/v1/nodes/$node/proxy/metrics/probes" | grep '^prober_probe_total{' | grep "pod=\"$1\"" |
    grep "probe_type=\"$2\"" | found "result=\"$3\".* [1-9]"
}
node=$(field hangs .spec.nodeName)
check "probes are counted: those that fail" soon counted hangs Readiness failed
node=$(field live .spec.nodeName)
check "  and those that do not" soon counted live Liveness successful
since_start() {
  local ready running
  ready=$(field delayed '.status.conditions[?(@.type=="Ready")].lastTransitionTime')
  running=$(field delayed '.status.containerStatuses[0].state.running.startedAt')
  [ $(($(date -d "$ready" +%s) - $(date -d "$running" +%s))) -le 12 ]
}
soon is delayed "$ready" true
check "initialDelaySeconds begins with the container, not when it has come up" since_start
soon is drains "$ready" true
drains=$(field drains '.status.containerStatuses[0].state.running.startedAt')
check "grpc" soon is speaks-grpc "$ready" true
k delete pod drains --wait=false >/dev/null
serves() { [ "$(field drains '.status.conditions[?(@.type=="Ready")].status}{.status.containerStatuses[0].state.running.startedAt')" = "$1$drains" ]; }
check "readiness of what ends is asked on" soon serves False
$cluster stop agent-n1 KILL
$cluster start agent-n1
check "  also by the next agent" soon serves True
k delete pod drains --timeout=40s >/dev/null
k run gated --image=$image --overrides='{"spec": {"readinessGates": [{"conditionType": "example.com/open"}]}}' \
  --command -- sleep 1000 >/dev/null
conditions() { field gated ".status.conditions[?(@.type==\"$1\")].$2"; }
waits() { [ "$(conditions ContainersReady status) $(conditions Ready status) $(conditions Ready reason)" = "True False ReadinessGatesNotReady" ]; }
check "readiness gates: a pod waits for conditions that others set" soon waits
k patch pod gated --subresource=status --type=strategic \
  -p '{"status": {"conditions": [{"type": "example.com/open", "status": "True"}]}}' >/dev/null
check "  and is ready with them" soon is gated '.status.conditions[?(@.type=="Ready")].status' True
# a controller that is as quick as the node: each writes what the other has not seen yet
for n in $(seq 40); do
  k apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: gated-$n, labels: {of: gated}}, spec: {nodeName: n$((n % 3 + 1)), terminationGracePeriodSeconds: 1,
  readinessGates: [{conditionType: example.com/open}], containers: [{name: c, image: "$image", command: [sleep, "1000"]}]}}
YAML
  k patch pod gated-$n --subresource=status --type=strategic \
    -p '{"status": {"conditions": [{"type": "example.com/open", "status": "True", "observedGeneration": 77}]}}' >/dev/null
done
all_ready() { [ "$(k get pod -l of=gated -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {end}' | tr ' ' '\n' | grep -c True)" = 40 ]; }
check "  however early they are set" soon all_ready
as_set() { k get pod gated-1 -o 'jsonpath={.status.conditions[?(@.type=="example.com/open")].observedGeneration}' | found -x 77; }
check "  and they stay as they were set" as_set
k delete pod gated --grace-period=1 >/dev/null
k delete pod -l of=gated --grace-period=1 --timeout=60s >/dev/null
k delete -f cluster/probes.yaml --ignore-not-found --timeout=60s >/dev/null
check "  until the pod is gone" soon not counted live Liveness successful
