# Containers of a pod: localhost, init containers, exit codes and restart policies, environment, network, token.

k apply -f cluster/containers.yaml >/dev/null
ready() { [ "$(field "$1" '.status.conditions[?(@.type=="Ready")].status')" = True ]; }
check "three containers run in one pod" soon ready trio
says() { [ "$(k logs "$1" -c "$2" 2>/dev/null)" = "$3" ]; }
check "and share one localhost" soon says trio asks $'from-web\nfrom-other'

hairpin() { on n1 bridge -d link show | grep -A2 'veth.*master pikelet0' | found 'hairpin on'; }
check "a pod's link lets traffic back to where it came from (hairpin)" hairpin

# asker NAME NODE: reads the web container of trio from another pod
asker() {
  k run "$1" --image=$image --restart=Never --overrides="{\"spec\":{\"nodeName\":\"$2\"}}" --command -- \
    wget -qO- "http://$(field trio .status.podIP):8080/" >/dev/null
}
asker near n1; asker far n2
check "a pod reaches another one of its node" soon says near near from-web
check "and one of another node" soon says far far from-web

check "an init container that fails once is run again" soon is init .status.phase Running
check "its restart is counted" soon is init '.status.initContainerStatuses[0].restartCount' 1
check "under Never it fails the pod" soon is init-never .status.phase Failed
check "with its exit code" soon is init-never '.status.initContainerStatuses[0].state.terminated.exitCode' 4

for policy in Always OnFailure Never; do
  for code in 0 1 137; do
    k run "exit-${policy,,}-$code" --image=$image --restart=$policy --command -- \
      sh -c "[ $code != 137 ] || { sleep 100 & kill -9 \$!; wait \$!; }; exit $code" >/dev/null
  done
done
phase() { soon is "$1" .status.phase "$2"; }
restarted() { [ "$(field "$1" "$restarts")" -ge 1 ] && is "$1" '.status.containerStatuses[0].lastState.terminated.exitCode' "$2"; }
check "Never, 0: Succeeded" phase exit-never-0 Succeeded
for code in 1 137; do
  check "Never, $code: Failed" phase exit-never-$code Failed
  check "  and the code is reported" soon is exit-never-$code "$ended" $code
done
check "OnFailure, 0: Succeeded" phase exit-onfailure-0 Succeeded
check "  and never restarted" is exit-onfailure-0 "$restarts" 0
for code in 1 137; do check "OnFailure, $code: restarted" soon restarted exit-onfailure-$code $code; done
for code in 0 1 137; do check "Always, $code: restarted" soon restarted exit-always-$code $code; done
check "and then backed off" soon is exit-always-1 "$waiting" CrashLoopBackOff

seen="sees green value secret sees-value-\$(KEY) /tmp 1000:2000 filesecret touch: /x: Read-only file system CapEff: 0000000000000000"
check "environment, volumes, user, root file system and capabilities are as asked" soon says sees c "$seen"
host() { k logs host 2>/dev/null | found 10.77.0.12/24; }
check "a pod with hostNetwork sees the node's address" soon host
lists() { k logs token 2>/dev/null | found -x pod/token; }
check "a pod lists its namespace with its service account token" soon lists

k run expands --image=$image --restart=Never --env=OWN=mine --overrides='{"spec":{"nodeName":"n1"}}' --command -- \
  echo 'sees $(OWN) $(PATH) $(HOSTNAME) $(KUBERNETES_SERVICE_PORT)' >/dev/null
check "\$(VAR) of a command line is the pod's, or stays as it is" soon says expands expands 'sees mine $(PATH) $(HOSTNAME) 443'

# ---- /dev/shm is one of the pod, or the node's ----
sleeps() { echo "{name: $1, image: \"$image\", command: [sleep, '1000']${2:-}}"; }
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: shares}
spec: {nodeName: n1, terminationGracePeriodSeconds: 1, containers: [$(sleeps a), $(sleeps b)]}
---
apiVersion: v1
kind: Pod
metadata: {name: shares-host}
spec: {nodeName: n1, terminationGracePeriodSeconds: 1, hostIPC: true, containers: [$(sleeps a)]}
---
apiVersion: v1
kind: Pod
metadata: {name: shares-more}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 128Mi}}]
  containers: [$(sleeps a ", volumeMounts: [{name: m, mountPath: /dev/shm}]")]
YAML
k wait --for=condition=Ready pod/shares pod/shares-host pod/shares-more --timeout=60s >/dev/null
k exec shares -c a -- sh -c 'echo from-a >/dev/shm/a'
there() { k exec "$1" -c "$2" -- cat "/dev/shm/$3" | found -x "$4"; }
check "containers of a pod share /dev/shm" there shares b a from-a
mounted() { k exec "$1" -c a -- grep ' /dev/shm ' /proc/mounts | found "$2"; }
size() { k exec "$1" -c a -- df -k /dev/shm | found " $2 "; }
check "  of 64 MiB" size shares 65536
check "  with no programs and no devices" mounted shares nosuid,nodev,noexec
on n1 "$(cat "$dir/pikelet")" stop --state-dir "$dir/n1/run" shares >/dev/null
again() { [ "$(field shares "$restarts")" -ge 1 ] && there shares a a from-a; }
check "  which stays when they are started again" soon again
echo host >"/dev/shm/pk$PIKELET_CLUSTER_ID"
check "with hostIPC it is the node's" there shares-host a "pk$PIKELET_CLUSTER_ID" host
rm "/dev/shm/pk$PIKELET_CLUSTER_ID"
check "a volume takes its place" size shares-more 131072
uid=$(field shares .metadata.uid)
k delete pod shares shares-host shares-more --timeout=30s >/dev/null
gone_with() { ! on n1 grep -q "$uid" /proc/self/mountinfo; }
check "  and nothing of it stays mounted" gone_with

# answers every connection with the address it came from
cat >"$dir/listener.py" <<'P'
import socketserver
class Answer(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(self.client_address[0].encode() + b"\n")
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("10.77.0.1", 7777), Answer).serve_forever()
P
proc_start "$dir/pids" "$dir/logs" listener ip netns exec "pk$PIKELET_CLUSTER_ID-cp" python3 "$dir/listener.py"
k run outward --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n1"}}' --command -- \
  sh -c 'until a=$(nc -w 5 10.77.0.1 7777 2>/dev/null | grep .); do sleep 0.2; done; echo $a' >/dev/null
check "what leaves the cluster has the node's address" soon says outward outward 10.77.0.11
proc_stop "$dir/pids" listener
k delete pod --all --timeout=60s >/dev/null
k delete -f cluster/containers.yaml --ignore-not-found >/dev/null 2>&1
