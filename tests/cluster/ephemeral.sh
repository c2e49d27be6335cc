# Ephemeral containers, as kubectl debug makes them.

k run debugged --image=$image --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":1}}' --command -- sleep 4243 >/dev/null
soon is debugged .status.phase Running
of='.status.ephemeralContainerStatuses[?(@.name=='
k debug debugged --image=$image --container=looks --target=debugged -- sh -c 'ps; exec sleep 1000' >/dev/null 2>&1
started() { [ -n "$(field debugged "$of\"looks\")].state.running.startedAt")" ]; }
check "kubectl debug adds a container" soon started
sees() { k logs debugged -c looks | found 'sleep 4243'; }
check "  and sees the processes of its target" soon sees
entered() { [ "$(k exec debugged -c looks -- echo in)" = in ]; }
check "  exec reaches it" entered
locally() { [ "$(on n1 "$(cat "$dir/pikelet")" exec --state-dir "$dir/n1/run" debugged -c looks -- echo here)" = here ]; }
check "  and so does pikelet exec" locally
check "  the pod's own container is untouched" is debugged "$restarts" 0
k debug debugged --image=$image --container=ends -- sh -c 'exit 3' >/dev/null 2>&1
over() { [ "$(field debugged "$of\"ends\")].state.terminated.exitCode") $(field debugged "$of\"ends\")].restartCount")" = "3 0" ]; }
check "one that ends is not started again" soon over
before=$(field debugged "$of\"looks\")].containerID")
$cluster stop agent-n1 KILL
$cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
sleep 2
kept() { [ -n "$before" ] && [ "$(field debugged "$of\"looks\")].containerID")" = "$before" ]; }
check "an agent started again finds them" kept
k delete pod debugged --timeout=30s >/dev/null

for why in 'sleep 1000' 'exit 1'; do
  k delete pod stuck --timeout=30s >/dev/null 2>&1
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: stuck}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  initContainers: [{name: i, image: "$image", command: [sh, -c, "$why"]}]
  containers: [{name: c, image: "$image", command: [sleep, "1000"]}]
YAML
  begun() { [ -n "$(field stuck '.status.initContainerStatuses[0].containerID')" ]; }
  soon begun
  k debug stuck --image=$image --container=looks -- sleep 1000 >/dev/null 2>&1
  looks() { [ -n "$(field stuck "$of\"looks\")].state.running.startedAt")" ]; }
  check "a pod whose init container does not succeed can be debugged ($why)" until_true 15 looks
done
k delete pod stuck --timeout=30s >/dev/null
