# Secrets stay secret: another user of the node reads and executes nothing of the agent's, and what is planted here is found
# in no process list, log, Event, annotation or answer.

# recognizable, and nowhere else
mark=planted$RANDOM
bootstrap=$(printf '%06d.%s' $((RANDOM % 999999)) "$(printf '%sxxxxxxxxxxxxxxxx' $mark | cut -c-16)")
k create secret generic planted --from-literal=env="$mark-env" --from-literal=file="$mark-volume" >/dev/null
k create secret docker-registry login --docker-server=10.77.0.1:5000 --docker-username=somebody --docker-password="$mark-registry" >/dev/null
cat >"$dir/n1/planted.yaml" <<YAML
staticPodURL: http://10.77.0.1:9/pods
staticPodURLHeader: {Authorization: ["Bearer $mark-header"]}
YAML
chmod 600 "$dir/n1/planted.yaml"
agent_with n1 --config "$dir/n1/planted.yaml"
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: keeps}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [{name: login}]
  containers:
  - name: c
    image: "$image"
    imagePullPolicy: Always
    command: [sh, -c, "cp /bin/busybox /tmp/s; chmod 4755 /tmp/s; echo said >/tmp/f; chmod 666 /tmp/f; echo a line; exec sleep 1000"]
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: planted, key: env}}}]
    volumeMounts: [{name: s, mountPath: /s}, {name: e, mountPath: /e}]
    readinessProbe: {exec: {command: [cat, /s/file]}}
  volumes: [{name: s, secret: {secretName: planted}}, {name: e, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: mapped}
spec:
  nodeName: n1
  hostUsers: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "cp /bin/busybox /tmp/s; chmod 4755 /tmp/s; exec sleep 1000"]
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: planted, key: env}}}]
    volumeMounts: [{name: s, mountPath: /s}]
  volumes: [{name: s, secret: {secretName: planted}}]
---
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec:
  nodeName: n1
  imagePullSecrets: [{name: login}]
  containers:
  - {name: image, image: "10.77.0.1:5000/none:1"}
  - name: command
    image: "$image"
    command: [/not/there]
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: planted, key: env}}}]
YAML
soon is keeps '.status.containerStatuses[0].ready' true
soon is mapped .status.phase Running
soon event fails 'none:1'
k exec keeps -- sh -c 'test -n "$PASSWORD"' >/dev/null
k logs keeps >/dev/null
# n21 joins by a bootstrap token that only its agent's environment has
kubeadm_cluster "${bootstrap%.*}" "${bootstrap#*.}"
$cluster add n21 --server https://10.77.0.1:6443 --ca-cert-hash "$(ca_hash)" --cluster-cidr 10.244.0.0/16
K3S_TOKEN=$bootstrap $cluster start agent-n21
check "a node joins by a token of its environment" soon ready n21

walked() {
  local found
  found=$(on n1 python3 "$PWD/harness/walk.py" 65534 "$dir/n1/lib" "$dir/n1/run" "$dir/n1/log")
  grep -qE '^[0-9]{2,} names tried$' <<<"$found" && [ "$(wc -l <<<"$found")" = 1 ] ||
    { echo "$found" | cut -c-160 | tail -n 12 | sed 's/^/     /'; false; }
}
check "another user lists, reads and executes nothing of the node's state, data and logs" walked
setuid() {
  local file; file=$(on n1 find "$dir/n1/lib" "$dir/n1/run" -path '*/tmp/s' -perm -4000 2>/dev/null | head -n 1)
  [ -n "$file" ] && ! on n1 setpriv --reuid 65534 --regid 65534 --clear-groups "$file" id -u 2>/dev/null
}
check "  nor a set-user-id file that a container made" setuid
again_walked() {
  # an agent of before may have left them open
  on n1 chmod 755 "$dir/n1/lib" "$dir/n1/run" "$dir/n1/log"
  agent_with n1 --config "$dir/n1/planted.yaml"
  walked
}
check "  also after they were open, once the agent has started" again_walked

# hidden WHERE COMMAND...: what is planted is not in the output, which is not empty
hidden() {
  local text; text=$("${@:2}" 2>/dev/null)
  [ -n "$text" ] || { echo "     nothing to look at"; return 1; }
  text=$(grep -aoE ".{0,60}($mark|${bootstrap//./\\.}).{0,20}" <<<"$text")
  [ -z "$text" ] || { echo "$text" | sed -n '1,5s/^/     /p'; false; }
}
lines() { for file in /proc/[0-9]*/cmdline; do tr '\0' ' ' <"$file"; echo; done; }
shim_logs() { find "$dir"/n*/run "$dir"/n*/lib -name '*.log' -exec cat {} +; echo .; }
planted() { echo "a token: $bootstrap"; }
check "what was planted would be found" not hidden "what is planted" planted
check "no process list has what was planted" hidden "process lists" lines
check "  no agent's log" hidden logs cat "$dir"/logs/agent-n*.log
check "  no shim's log" hidden logs shim_logs
check "  no log of a container" hidden logs find "$dir/n1/log" -type f -exec cat {} +
check "  no Event" hidden events k get events -A -o json
check "  no Node" hidden nodes k get nodes -o json
check "  no status of a pod" hidden pods k get pods -A -o 'jsonpath={.items[*].status}'
check "  no /configz" hidden configz k get --raw /api/v1/nodes/n1/proxy/configz
check "  no /pods" hidden pods k get --raw /api/v1/nodes/n1/proxy/pods
check "  nor metrics" hidden metrics k get --raw /api/v1/nodes/n1/proxy/metrics/cadvisor
agent_with n1
k delete pod keeps mapped fails --grace-period=1 --timeout=30s >/dev/null
k delete secret planted login >/dev/null
