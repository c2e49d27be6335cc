# The unit under a real systemd, with D-Bus and logind: readiness, watchdog, an agent that is killed or stopped, pods' cgroups,
# and a shutdown that waits for pods.
. tests/harness/common.sh
. tests/harness/systemd.sh
. tests/harness/check.sh
dir=$(mktemp -d)
pod_image "$dir" sd/busybox:1
unit=/etc/systemd/system/pikelet.service
sed "s|^ExecStart=[^ ]*|ExecStart=$PIKELET_BIN|" systemd/pikelet.service >"$unit"
ln -sfn "$PIKELET_BIN" /usr/local/bin/pikelet
# a board's is a minute
mkdir -p "$unit.d" /var/log/journal
printf '[Service]\nWatchdogSec=15\n' >"$unit.d/watchdog.conf"
# kept when that systemd has ended
journal=/var/log/journal
settings() { mkdir -p /etc/pikelet/manifests && cat >/etc/pikelet/config.yaml; }
log() { inside journalctl -u pikelet -o cat --no-pager "$@"; }

settings <<'YAML'
nodeName: sd
server: https://127.0.0.1:1
token: abcdef.0123456789abcdef
caCertHash: ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]
YAML
systemd_start "$dir" dbus.service systemd-logind.service
echo "     $(inside systemd-analyze security --no-pager pikelet | sed -n 's/.*\(Overall .*\)/\1/p')"

# ---- ready only when it is ----
inside systemctl start --no-block pikelet
waits() { state active activating && [ -n "$(property StatusText)" ]; }
check "it is not active while its server is away" until_true 60 waits
echo "     $(property StatusText)"
sleep 10
check "  however long that takes" waits
settings <<'YAML'
nodeName: sd
staticPodPath: /etc/pikelet/manifests
podCIDR: 10.92.0.0/24
shutdownGracePeriod: 40s
shutdownGracePeriodCriticalPods: 30s
YAML
mkdir -p /var/lib/pikelet/images-import /var/lib/pikelet-test
cp "$dir/image.tar" /var/lib/pikelet/images-import/
cat >/etc/pikelet/manifests/one.yaml <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 25
  volumes: [{name: out, hostPath: {path: /var/lib/pikelet-test}}]
  containers:
  - name: a
    image: "sd/busybox:1"
    command: [sh, -c, "trap 'sleep 8; echo gently >/out/ended; exit 0' TERM; while :; do sleep 1; done"]
    volumeMounts: [{name: out, mountPath: /out}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
YAML
check "it is active once it is up" inside systemctl restart pikelet
check "  and runs a pod" until_true 120 running || log -n 40
# what a container could take from the agent
counts() { awk 'FNR == 1 { n += $1 >= 1048576 } END { exit n != 3 }' /proc/sys/fs/epoll/max_user_watches /proc/sys/fs/inotify/max_user_{instances,watches}; }
check "  with counts that containers cannot use up" counts
check "  and no keyring of its own" test "$(property KeyringMode)" = inherit
before=$(ids)
container=$(inside pikelet inspect "$(pods | awk '{ print $2 }')" | jq '[.. | objects | .pid | values][0]')
# limits and controllers of every cgroup of pods, and which folder each is
cgroups() {
  inside sh -c 'cd /sys/fs/cgroup && find . -path "*kubepods*" -type d | sort | while read -r dir; do
    stat -c "%n %i" "$dir"; grep -H . "$dir"/cgroup.controllers "$dir"/cgroup.subtree_control "$dir"/memory.max "$dir"/cpu.max; done'
}
limits=$(cgroups)
untouched() { is "$(ids)" "$before" && is "$(cgroups)" "$limits" && inside kill -0 "$container"; }
check "  with the limits it asked for" grep -q '/memory.max:67108864' <<<"$limits"

# ---- an agent that hangs, and one that is killed ----
# anew COMMAND...: the agent is another process, up, and has its pod
anew() { state active active && [ "$(main_pid)" != "$agent" ] && running; }
agent=$(main_pid)
inside kill -STOP "$agent"
check "an agent that hangs is ended by the watchdog, and started again" until_true 180 anew
check "  which systemd says" is "$(property NRestarts)" 1
check "  its pod goes on as it was" untouched
agent=$(main_pid)
inside kill -KILL "$agent"
check "an agent that was killed is started again" until_true 120 anew
check "  its pod goes on as it was" untouched

# ---- systemd's own doings ----
check "daemon-reload" inside systemctl daemon-reload
check "  leaves the pods' cgroups alone" untouched
check "a restart" inside systemctl restart pikelet
check "  leaves them alone" eval 'until_true 60 running && untouched'
check "without an agent" inside systemctl stop pikelet
alone() { is "$(cgroups)" "$limits" && inside kill -0 "$container"; }
check "  pods go on" alone
check "  and daemon-reload takes nothing from them" eval 'inside systemctl daemon-reload && alone'
check "it is started" inside systemctl start pikelet
check "  and has its pod as it was" eval 'until_true 60 running && untouched'

# ---- a shutdown ----
holds() { inside systemd-inhibit --list --no-pager --no-legend | grep -q '^pikelet .* shutdown .* delay'; }
check "it holds up a shutdown" until_true 60 holds
longest() { inside busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager InhibitDelayMaxUSec; }
check "  for longer than logind would by itself" is "$(longest)" "t 40000000"
check "  the pod did not end yet" [ ! -e /var/lib/pikelet-test/ended ]
inside systemctl poweroff
off() { ! kill -0 "$systemd"; }
check "the machine goes down" until_true 120 off
check "  when the pod had ended by itself" is "$(cat /var/lib/pikelet-test/ended)" gently
said=$(journalctl -D "$journal" -u pikelet -o cat --no-pager | grep -oE 'shutting down: ending pods|pods have ended.*|did not end in the time')
check "  with an agent that saw it" is "$said" $'shutting down: ending pods\npods have ended, or had their time: the shutdown goes on' || echo "$said"
kill -KILL "$systemd" 2>/dev/null
verdict
