# User namespaces (hostUsers: false): who a pod's root is on the node, what it sees of volumes, and over restarts.

k create configmap users --from-literal=word=configured >/dev/null
k create secret generic users --from-literal=word=hidden >/dev/null
mkdir -p "$dir/n1/share"
echo "of the host" >"$dir/n1/share/file"
chmod 600 "$dir/n1/share/file"
# own NAME [POD-FIELDS]: a pod with users of its own
own() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  hostUsers: false
  terminationGracePeriodSeconds: 1
  ${2:-}
  volumes:
  - {name: own, emptyDir: {}}
  - {name: config, configMap: {name: users}}
  - {name: secret, secret: {secretName: users, defaultMode: 0400}}
  - {name: share, hostPath: {path: $dir/n1/share}}
  - {name: part, image: {reference: "10.77.0.1:5000/busybox:2"}}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "echo made >/own/made; mkdir -p /own/sub; rm /bin/vi; sleep 1000"]
    volumeMounts:
    - {name: own, mountPath: /own}
    - {name: own, mountPath: /sub, subPath: sub}
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret}
    - {name: share, mountPath: /share}
    - {name: part, mountPath: /part}
  - name: user
    image: "$image"
    command: [sleep, "1000"]
    securityContext: {runAsUser: 1000, runAsGroup: 1000}
    volumeMounts: [{name: own, mountPath: /own}]
YAML
}
own first
own second
own outside 'securityContext: {runAsUser: 70000}'
# shared FIELD: a pod with users of its own and a namespace of the node
shared() {
  local said
  said=$(k apply -f - 2>&1 <<YAML
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec: {nodeName: n1, hostUsers: false, $1: true, containers: [{name: c, image: "$image"}]}
YAML
  )
  # the API writes HostPID
  [[ ${said,,} == *"${1,,}: forbidden"* ]]
}
for what in hostNetwork hostPID hostIPC; do check "the API refuses hostUsers: false with $what" shared $what; done
check "pods with users of their own run" soon is first .status.phase Running
soon is second .status.phase Running
map() { k exec "$1" -c "$2" -- sh -c 'read a b c </proc/self/uid_map; echo $a $b $c'; }
ids=$(map first c)
ranged() { read -r inner outer count <<<"$ids"; [ "$inner $count" = "0 65536" ] && [ "$outer" -ge 65536 ] && [ $((outer % 65536)) = 0 ]; }
check "  of 65536 ids, not the node's" ranged
check "  the same for all of its containers" [ "$(map first user)" = "$ids" ]
check "  others for other pods" [ "$(map second c)" != "$ids" ]
inside() { [ "$(k exec first -c c -- sh -c "$1" 2>&1)" = "$2" ]; }
check "its root reads volumes as root: configMap, Secret, hostPath, image" inside \
  'id -u; cat /config/word; echo; cat /secret/word; echo; cat /share/file; stat -c %u /part/bin/busybox /share/file /own/made' \
  $'0\nconfigured\nhidden\nof the host\n0\n0\n0'
check "  its root file system is root's, and can be written" inside 'stat -c %u /bin/busybox /etc /; ls /bin/vi 2>/dev/null; chown 7 /bin/sh; echo x >/bin/sh.new; stat -c %u /bin/sh.new' $'0\n0\n0\n0'
uid=$(field first .metadata.uid)
owners() { [ "$(on n1 find "$dir/n1/lib/pods/$uid/" -name made -exec stat -c %u {} +)" = 0 ]; }
check "what its root writes to a volume is the node's root's" owners
pid() { on n1 "$(pikelet_bin)" inspect "$1" --state-dir "$dir/n1/run" | jq ".containers[0].pid"; }
nobody() { local p; p=$(pid first); [ "$(stat -c %u "/proc/$p")" = "$(echo "$ids" | cut -d ' ' -f 2)" ]; }
check "  but its process is nobody of the node" nobody
check "an id it does not have is refused" soon event outside 'user or group 70000: the pod.s user namespace'
$cluster stop agent-n1 KILL; $cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
own third
soon is third .status.phase Running
fresh() { local third; third=$(map third c) && [ "$third" != "$ids" ] && [ "$third" != "$(map second c)" ]; }
check "an agent that starts again gives no range twice" fresh
check "  and exec goes on" [ "$(map first c)" = "$ids" ]
kept() { [ "$(jq -c '.uidMappings[0].hostId' "$dir/n1/lib/pods/$uid/userns")" = "$(echo "$ids" | cut -d ' ' -f 2)" ]; }
check "  as it is kept beside the checkpoint" kept
k delete pod first second third outside --timeout=60s >/dev/null
k delete configmap/users secret/users >/dev/null
check "a pod that is gone leaves no mount" not grep -q "$uid\|pikelet-mounts" "/proc/$(proc_pid "$dir/pids" mounts-n1)/mountinfo"
