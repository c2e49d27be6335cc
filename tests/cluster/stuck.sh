# Pods that are stuck, each in a way of its own, beside twenty ordinary ones, which hear nothing of it.

# shim POD: the process id of its shim
shim() {
  local file
  for file in "$dir"/n1/run/sandboxes/*/sandbox.json; do
    [ "$(jq -r .spec.pod_name "$file")" != "$1" ] || cut -d' ' -f1 "$(dirname "$file")/shim.pid"
  done
}
# freeze POD: its shim does nothing any more, as with a disk that does not answer
freeze() { local pid; pid=$(shim "$1"); [ -n "$pid" ] && kill -STOP "$pid"; }
ordinary() {
  local i
  for i in $(seq 20); do
    cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: plain$i, labels: {app: plain}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "$image"
    command: [sleep, "100000"]
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
YAML
  done
}
# round: how long twenty pods take to be up and probed, and to go again, in milliseconds
round() {
  local began; began=$(date +%s%N)
  ordinary | k apply -f - >/dev/null
  k wait --for=condition=Ready pod -l app=plain --timeout=120s >/dev/null || return 1
  k delete pod -l app=plain --timeout=120s >/dev/null || return 1
  echo $((($(date +%s%N) - began) / 1000000))
}
# the first one has what comes later in its caches
round >/dev/null
usual=$(round)

k apply -f - >/dev/null <<'YAML'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: held}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [DELETE], resources: [pods]}]}
  validations:
  - expression: "!(request.userInfo.username.startsWith('system:node:') && request.name == 'held')"
    message: nobody lets it go
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: held}
spec: {policyName: held, validationActions: [Deny]}
YAML
for pod in held frozen again; do
  k run $pod --image=$image --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":2}}' --command -- sleep 100000 >/dev/null
done
k run making --image=10.77.0.1:5000/later:1 --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":2}}' --command -- sleep 100000 >/dev/null
k wait --for=condition=Ready pod/held pod/frozen pod/again --timeout=60s >/dev/null
check "a pod whose image is not there has its sandbox" soon shim making
freeze making
check "  and its shim hangs when the image comes" push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" 1 10.77.0.1:5000/later:1
check "  so that its container is not made" until_true 60 event making Pulled
freeze frozen
freeze again
k delete pod held --wait=false >/dev/null
refused() { event held 'nobody lets it go'; }
check "an Event says why a pod is not let go" soon refused
for i in $(seq 90); do k annotate pod held "n=$i" --overwrite >/dev/null; done

busy=$(round)
echo "     (twenty pods: $usual ms, beside the stuck ones $busy ms)"
check "twenty pods beside them start, are probed and stop within twice the usual time" test "${busy:-999999}" -le $((2 * usual))
# gone POD SECONDS: deleted within that time
gone() { k delete pod "$1" --timeout="$2s"; }
check "one whose shim is stuck is gone within its grace period and 10 s" gone frozen 12
check "  as is one whose container is being made" gone making 12
healthy() { [ "$(on n1 busybox wget -qO- http://127.0.0.1:10248/healthz)" = ok ]; }
check "the agent is well" healthy

before=$(field again "$container")
other=$(k run other --image=$image --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":1}}' --command -- sleep 100000 >/dev/null &&
  k wait --for=condition=Ready pod/other --timeout=60s >/dev/null && field other "$container")
again n1
up() { says n1 'agent is up'; }
check "an agent that starts waits for no stuck shim" until_true 30 up
anew() { [ "$(field again "$container")" != "$before" ] && is again '.status.containerStatuses[0].ready' true; }
check "  whose pod is made anew" until_true 60 anew
kept() { [ "$(field other "$container")" = "$other" ] && is other "$restarts" 0; }
check "  and the others are adopted" kept
k delete validatingadmissionpolicybinding held >/dev/null; k delete validatingadmissionpolicy held >/dev/null
check "a pod goes once the API server lets it" k wait --for=delete pod/held --timeout=60s
k delete pod again other --timeout=30s >/dev/null
