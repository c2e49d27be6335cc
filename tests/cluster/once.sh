# What runs once runs once: over restarts of the machine, with the API server and without, and with what an agent cannot read.

ran=$dir/n1/ran
mkdir -p "$ran"
# counted NAME [COMMAND]: a container that leaves a line in a file of its name when it starts
counted() {
  echo "{name: $1, image: \"$image\", command: [sh, -c, \"echo x >>/d/$1; ${2:-exec sleep 100000}\"], volumeMounts: [{name: d, mountPath: /d}]}"
}
pod() {
  cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $1, annotations: {$4}}
spec:
  nodeName: n1
  restartPolicy: $2
  terminationGracePeriodSeconds: 1
  volumes: [{name: d, hostPath: {path: $ran}}]
  $3
YAML
}
lines() { [ "$(wc -l <"$ran/$1" 2>/dev/null)" = "$2" ]; }
{
  pod never Never "containers: [$(counted once 'exit 0'), $(counted long)]" ""
  pod onfail OnFailure "containers: [$(counted did 'exit 0'), $(counted works)]" ""
  pod inits Always "initContainers: [$(counted init 'exit 0')]
  containers: [$(counted app)]" ""
  pod declined Always "containers: [$(counted asks)]" 'pikelet.io/offline-start: "false"'
  pod moved Always "containers: [$(counted moves)]" ""
} | k apply -f - >/dev/null
started() { lines once 1 && lines long 1 && lines did 1 && lines works 1 && lines init 1 && lines app 1 && lines asks 1 && lines moves 1; }
check "pods have started" soon started
k wait --for=condition=Ready pod/inits pod/declined pod/moved --timeout=30s >/dev/null
told() { is never '.status.containerStatuses[?(@.name=="once")].state.terminated.exitCode' 0 && is onfail '.status.containerStatuses[?(@.name=="did")].state.terminated.exitCode' 0; }
check "  and what has ended is told" soon told

# ---- the shim dies: a fresh sandbox is initialized anew ----
for file in "$dir"/n1/run/sandboxes/*/sandbox.json; do
  [ "$(jq -r .spec.pod_name "$file")" != inits ] || kill -9 "$(cut -d' ' -f1 "$(dirname "$file")/shim.pid")"
done
initialized() { lines init 2 && lines app 2; }
check "in a fresh sandbox init containers run again" soon initialized
k wait --for=condition=Ready pod/inits --timeout=30s >/dev/null

# ---- the machine restarts with the API server in reach, and a pod was moved meanwhile ----
$cluster stop agent-n1 KILL
k delete pod moved --force --grace-period=0 >/dev/null 2>&1
$cluster cut n1
$cluster start agent-n1
back() { lines asks 2 && lines app 3 && lines init 3 && lines works 2; }
check "after a restart of the machine pods go on" soon back
check "  one that is no longer this node's is not started" lines moves 1
check "  what runs once is not run again" is never .status.phase Failed
check "    neither what had completed" lines once 1
check "    nor what was cut off" lines long 1
unknown='.status.containerStatuses[?(@.name=="long")].state.terminated.reason'
check "    whose end nobody saw" soon is never "$unknown" ContainerStatusUnknown
check "  nor what had completed of a pod that goes on" lines did 1

# ---- the same with no API server ----
k wait --for=condition=Ready pod/inits pod/declined --timeout=30s >/dev/null
pod again Never "containers: [$(counted cut)]" "" | k apply -f - >/dev/null
k wait --for=condition=Ready pod/again --timeout=30s >/dev/null
$cluster stop agent-n1 KILL
$cluster stop apiserver
$cluster cut n1
$cluster start agent-n1
offline() { lines app 4 && lines works 3; }
check "with no API server they go on as well" soon offline
check "  what runs once is not run again" lines cut 1
check "  and one that declines to start so waits" lines asks 2
api_up
check "  until the API server is there" soon lines asks 3
check "  which is told what became of the others" soon is again .status.phase Failed
k wait --for=condition=Ready node/n1 pod/inits pod/declined --timeout=60s >/dev/null

# ---- a checkpoint that cannot be read ----
uid=$(field inits .metadata.uid) before=$(field inits "$container")
$cluster stop agent-n1
echo '{' >"$dir/n1/lib/pods/$uid/pod.json"
$cluster start agent-n1
adopted() { ready n1 && [ "$(field inits "$container")" = "$before" ] && lines app 4 && jq -e .spec "$dir/n1/lib/pods/$uid/pod.json" >/dev/null; }
check "a pod whose checkpoint cannot be read goes on, and is kept again" soon adopted
k delete pod --all --timeout=60s >/dev/null
rm -r "$ran"
