#!/usr/bin/env bash
# Pods from a real API server on two pikelet nodes: the cases of the cluster tests. Prints `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")"
. harness/common.sh
export PIKELET_CLUSTER_ID=${PIKELET_CLUSTER_ID:-c$(($$ % 9999))}
cluster=scripts/cluster.sh
k() { $cluster kubectl "$@"; }
passed=0 failed=0
check() {
  local name=$1; shift
  if "$@"; then passed=$((passed + 1)); echo "ok   $name"; else failed=$((failed + 1)); echo "FAIL $name"; fi
}
finish() {
  check "nothing is left over after the cluster is taken down" $cluster down
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ]
  exit
}
trap finish EXIT

$cluster up 2 >/dev/null || { failed=1; exit; }
image=$(mktemp -d)
busybox_image "$image/oci" 1 >/dev/null 2>&1
for tag in 1 2; do push_image "pk$PIKELET_CLUSTER_ID-cp" "$image/oci" 1 "10.77.0.1:5000/busybox:$tag"; done
rm -rf "$image"

field() { k get pod "$1" -o "jsonpath={$2}"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
soon() { until_true 40 "$@"; }
event() { k get events --field-selector "involvedObject.name=$1" | grep -q "$2"; }

k apply -f manifests/cases.yaml >/dev/null
check "both nodes become Ready" k wait --for=condition=Ready node/n1 node/n2 --timeout=30s
check "a Deployment of 6 becomes Available" k rollout status deploy/web --timeout=60s
spread() { [ "$(k get pods -l app=web -o 'jsonpath={.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u | wc -l)" = 2 ]; }
check "its pods are on both nodes" spread
check "exit code 1 under Never is Failed" soon is exit1 .status.phase Failed
check "its code is reported" is exit1 '.status.containerStatuses[0].state.terminated.exitCode' 1
check "exit code 0 under OnFailure is Succeeded" soon is exit0 .status.phase Succeeded
reason='.status.containerStatuses[0].state.waiting.reason'
check "an unknown image backs off" soon is noimage "$reason" ImagePullBackOff
check "and an Event says what the registry answered" soon event noimage 'manifest unknown'
check "a missing ConfigMap is a config error" soon is nokey "$reason" CreateContainerConfigError
check "a command that does not exist is named" soon event badcmd 'no-such.*not found'
k create configmap cm --from-literal=k=v >/dev/null
check "the pod recovers when the ConfigMap is there" soon is nokey .status.phase Running
k set image deploy/web c=10.77.0.1:5000/busybox:2 >/dev/null
check "set image rolls over" k rollout status deploy/web --timeout=60s
k rollout undo deploy/web >/dev/null
check "rollout undo goes back" k rollout status deploy/web --timeout=60s

id() { field nokey '.status.containerStatuses[0].containerID'; }
before=$(id)
node=$(field nokey .spec.nodeName)
$cluster stop "agent-$node" KILL
$cluster start "agent-$node"
k wait --for=condition=Ready "node/$node" --timeout=30s >/dev/null
sleep 2
same() { [ "$(id)" = "$before" ] && is nokey '.status.containerStatuses[0].restartCount' 0; }
check "after kill -9 of the agent the container is the same" same

$cluster stop apiserver
sleep 5
$cluster start apiserver
until_true 60 k get --raw /readyz
check "after an API server outage the containers are the same" same
k delete pod nokey exit0 exit1 noimage badcmd --timeout=40s >/dev/null
gone() { ! k get pod nokey >/dev/null 2>&1; }
check "deleted pods go" soon gone
