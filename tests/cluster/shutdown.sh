# Graceful node shutdown: a real D-Bus and a real systemd-logind in the node's namespaces. Only what logind asks of systemd itself
# (pid 1) is answered by tests/harness/manager.py, which does not switch anything off.

bin=$(cat "$dir/pikelet")
machine n16
mkdir "$dir/n16/bus"
on n16 mount --bind "$dir/n16/bus" /run/dbus
# All they could write to is their own: /run but for the socket, /var, /tmp, /home, /root.
proc_start "$dir/pids" "$dir/logs" logind-n16 nsenter --target "$(proc_pid "$dir/pids" mounts-n16)" --mount --net \
  unshare --mount --propagation private bash -c '
    mount --bind /run/dbus /mnt || exit 1
    for own in /tmp /var /home /root /run; do mount -t tmpfs tmpfs "$own" || exit 1; done
    mkdir -p /run/dbus /run/systemd /var/lib/systemd && mount --move /mnt /run/dbus || exit 1
    dbus-daemon --system --nofork --nopidfile & bus=$!
    until [ -S /run/dbus/system_bus_socket ]; do sleep 0.1; done
    /lib/systemd/systemd-logind & logind=$!
    python3 -c "$1" 6 $logind & manager=$!
    trap "kill $manager $logind $bus" TERM
    wait' bash "$(cat harness/manager.py)"
logind() { on n16 busctl "$@" 2>&1; }
of_logind() { logind get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager "$1"; }
asked() { grep -q "$1" "$dir/logs/logind-n16.log"; }
check "logind and its bus are up" soon of_logind InhibitDelayMaxUSec
soon asked '^up'
printf '%s\n' --shutdown-grace-period 14s --shutdown-grace-period-critical-pods 6s >"$dir/n16/flags"
$cluster start agent-n16
soon ready n16
inhibits() { logind call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager ListInhibitors | found '"shutdown" "pikelet" .* "delay"'; }
check "the agent holds up shutdowns" soon inhibits
longer() { of_logind InhibitDelayMaxUSec | found -x 't 14000000'; }
check "  for as long as pods may take, which logind was told" longer

# late NAME NAMESPACE GRACE PRIORITYCLASS: writes when SIGTERM comes, and ends SECONDS later
late() {
  k apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: $1, namespace: $2}, spec: {nodeName: n16, terminationGracePeriodSeconds: $3,
  priorityClassName: "$4", restartPolicy: Always, containers: [{name: c, image: $image, terminationMessagePath: /m,
  command: [sh, -c, 'trap "date +%s >/m; sleep $5; exit 0" TERM; while :; do sleep 0.1; done']}]}}
YAML
}
late gentle default 30 "" 1
late stubborn default 60 "" 100
late needed kube-system 30 system-node-critical 1
running() { [ "$(k get pod -n "$2" "$1" -o 'jsonpath={.status.phase}')" = Running ]; }
soon running gentle default; soon running stubborn default; soon running needed kube-system
begin=$(date +%s)
logind call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager PowerOff b false >/dev/null
condition() { k get node n16 -o "jsonpath={.status.conditions[?(@.type==\"Ready\")].$1}"; }
unready() { [ "$(condition status) $(condition message)" = "False node is shutting down" ]; }
check "the Node is not Ready while the machine shuts down" until_true 5 unready
k run toolate --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n16","tolerations":[{"operator":"Exists"}]}}' --command -- true >/dev/null
check "  new pods are not taken" until_true 5 is toolate .status.reason NodeShutdown
check "    and say so" is toolate .status.message "Pod was rejected: Pod was rejected as the node is shutting down."
check "the shutdown goes on when pods have ended" until_true 20 asked '^StartUnit poweroff.target'
took=$(($(awk '/^StartUnit/ { print int($3) }' "$dir/logs/logind-n16.log") - begin))
echo "     shutdown held up for $took s"
check "  no later than logind lets it" test $took -le 14
of() { k get pod -n "$2" "$1" -o "jsonpath={$3}"; }
for pod in "gentle default" "stubborn default" "needed kube-system"; do
  # shellcheck disable=SC2086
  set -- $pod
  terminated() {
    [ "$(of "$1" "$2" .status.phase) $(of "$1" "$2" .status.reason): $(of "$1" "$2" .status.message)" = \
      "Failed Terminated: Pod was terminated in response to imminent node shutdown." ]
  }
  check "pod $1: Failed, Terminated, with the kubelet's message" soon terminated "$1" "$2"
  disrupted() { [ "$(of "$1" "$2" '.status.conditions[?(@.type=="DisruptionTarget")].reason')" = TerminationByKubelet ]; }
  check "  and the condition DisruptionTarget" disrupted "$1" "$2"
done
set --
code='.status.containerStatuses[0].state.terminated.exitCode'
check "who ends by itself does so" test "$(of gentle default $code)" = 0
check "  who does not is killed when the time of its group is over" test "$(of stubborn default $code)" = 137
told=$(of needed kube-system '.status.containerStatuses[0].state.terminated.message')
killed=$(date -d "$(of stubborn default '.status.containerStatuses[0].state.terminated.finishedAt')" +%s)
check "  critical pods are asked after that" test "$told" -ge "$killed"
check "  and end by themselves" test "$(of needed kube-system $code)" = 0
check "a shutdown that does not come after all: the node is Ready again" until_true 20 ready n16
check "  holds up the next one" soon inhibits
pod=again
k run $pod --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n16"}}' --command -- true >/dev/null
check "  and takes pods" soon is $pod .status.phase Succeeded
k delete pod gentle stubborn toolate again --grace-period=1 --timeout=60s >/dev/null
k delete pod -n kube-system needed --grace-period=1 --timeout=60s >/dev/null
$cluster stop agent-n16
proc_stop "$dir/pids" logind-n16
