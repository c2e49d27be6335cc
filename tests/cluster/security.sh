# What a container may do: seccomp, users and groups, sysctls; and pods that are refused.

mkdir -p "$dir/n1/lib/seccomp"
echo '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}' \
  >"$dir/n1/lib/seccomp/no-folders.json"
# pod NAME SECURITY CONTAINER-FIELDS: one that says what it may do and stays
pod() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  ${2:-}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "grep -w Seccomp: /proc/self/status; mkdir /tmp/d; id; trap 'exit 0' TERM; sleep 1000 & wait"]
    ${3:-}
YAML
}
pod free
pod default 'securityContext: {seccompProfile: {type: RuntimeDefault}}'
pod user 'securityContext: {runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}'
pod escalation 'securityContext: {seccompProfile: {type: RuntimeDefault}}' 'securityContext: {allowPrivilegeEscalation: false}'
pod own 'securityContext: {seccompProfile: {type: RuntimeDefault}}' 'securityContext: {seccompProfile: {type: Unconfined}}'
pod local 'securityContext: {seccompProfile: {type: Localhost, localhostProfile: no-folders.json}}'
pod lost 'securityContext: {seccompProfile: {type: Localhost, localhostProfile: none.json}}'
pod groups 'securityContext: {runAsUser: 1000, runAsGroup: 1001, supplementalGroups: [1002], fsGroup: 1003}'
pod port80 'securityContext: {runAsUser: 1000}'
pod sysctl 'securityContext: {sysctls: [{name: net.ipv4.tcp_keepalive_time, value: "123"}]}'
pod unsafe 'securityContext: {sysctls: [{name: net.core.somaxconn, value: "1024"}]}'
pod armor 'securityContext: {appArmorProfile: {type: Localhost, localhostProfile: strict}}'
pod root 'securityContext: {runAsNonRoot: true}'
logs() { k logs "$1" 2>/dev/null | found "$2"; }
check "seccomp: nothing is filtered unless asked" soon logs free $'^Seccomp:\t0'
check "  RuntimeDefault is" soon logs default $'^Seccomp:\t2'
confined='^(Cap|NoNewPrivs|Seccomp:)'
alike() {
  local own; own=$(k exec "$1" -- grep -E "$confined" /proc/self/status)
  [[ $own == *$'Seccomp:\t2'* ]] && [ "$own" = "$(k exec "$1" -- grep -E "$confined" /proc/1/status)" ]
}
for pod in default user escalation; do check "  what exec may do is what its container may: $pod" soon alike $pod; done
check "  a container's profile goes before its pod's" soon logs own $'^Seccomp:\t0'
check "  Localhost: a file of the node" soon logs local 'Operation not permitted'
check "  one that is missing is named" soon event lost 'cannot load seccomp profile .*/none.json'
check "users and groups" soon logs groups 'uid=1000 gid=1001 groups=1001,1002,1003'
soon is port80 .status.phase Running
serves() { [ "$(k exec port80 -- sh -c 'echo served >/tmp/f; httpd -p 80 -h /tmp; wget -qO- http://127.0.0.1/f')" = served ]; }
check "a port below 1024 is open to every user" serves
soon is sysctl .status.phase Running
tuned() { [ "$(k exec sysctl -- cat /proc/sys/net/ipv4/tcp_keepalive_time)" = 123 ]; }
check "sysctls of the pod" tuned
untouched() { [ "$(on n1 cat /proc/sys/net/ipv4/tcp_keepalive_time)" != 123 ]; }
check "  are not the node's" untouched
check "  those that are not safe are refused" soon is unsafe .status.reason SysctlForbidden
check "  and the pod has failed" soon is unsafe .status.phase Failed
if [ -e /sys/module/apparmor/parameters/enabled ]; then
  check "AppArmor: an unknown profile is said" soon event armor 'strict'
else
  check "AppArmor: refused where the kernel has none" soon is armor .status.reason AppArmor
fi
check "runAsNonRoot keeps root out" soon event root 'container has runAsNonRoot and image will run as root'

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: speaks}
spec:
  nodeName: n1
  restartPolicy: Never
  containers:
  - name: log
    image: "$image"
    command: [sh, -c, "echo the last words; exit 3"]
    terminationMessagePolicy: FallbackToLogsOnError
  - name: file
    image: "$image"
    command: [sh, -c, "echo the log; echo the file >/dev/termination-log; exit 3"]
    terminationMessagePolicy: FallbackToLogsOnError
  - name: well
    image: "$image"
    command: [echo, well]
    terminationMessagePolicy: FallbackToLogsOnError
---
apiVersion: v1
kind: Pod
metadata: {name: asked}
spec:
  nodeName: n1
  containers:
  - name: c
    image: "10.77.0.1:5000/busybox:usr1"
    command: [sh, -c, "trap 'echo asked by USR1; exit 0' USR1; trap '' TERM; echo ready; while true; do sleep 0.1; done"]
YAML
said() {
  [ "$(field speaks '.status.containerStatuses[*].state.terminated.message')" = $'the last words\n the file' ]
}
check "the termination message: file, or the log of a failure" soon said
check "the image's stop signal" soon logs asked ready
k logs -f asked >"$layout/asked" 2>/dev/null & asked=$!
# it is heard to its end only by who listens already
soon grep -q ready "$layout/asked"
k delete pod asked --timeout=20s >/dev/null
wait $asked
check "  asks its program to end" grep -q 'asked by USR1' "$layout/asked"
k delete pod free default user escalation own local lost groups port80 sysctl unsafe armor root speaks --timeout=60s >/dev/null
