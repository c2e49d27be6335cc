# The Debian package: installed, upgraded while a pod runs, removed and purged, under a systemd that has nothing else to do.
. tests/harness/common.sh
passed=0 failed=0
check() {
  local name=$1; shift
  if "$@"; then passed=$((passed + 1)); echo "ok   $name"; else failed=$((failed + 1)); echo "FAIL $name"; return 1; fi
}
dir=$(mktemp -d)
busybox_image "$dir/layout" 1
skopeo --insecure-policy copy --quiet "oci:$dir/layout:1" "oci-archive:$dir/image.tar:deb/busybox:1"

# a partition of its own, as on many boards; what the guest has below can't be an overlay's upper layer
mkdir -p /var/lib/pikelet
mount -t tmpfs data /var/lib/pikelet

# systemd in namespaces of its own, with its own cgroups and /run; what it would do for a whole machine is masked
cat >"$dir/boot" <<'SH'
mount --make-rprivate /
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/systemd/system
for unit in tmpfiles-setup tmpfiles-setup-dev udevd udev-trigger modules-load sysctl random-seed update-utmp remount-fs \
  machine-id-commit hwdb-update sysusers binfmt firstboot; do ln -s /dev/null /run/systemd/system/systemd-$unit.service; done
for unit in apparmor keyboard-setup console-setup resolvconf networking ifupdown-pre; do
  ln -s /dev/null /run/systemd/system/$unit.service
done
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >/run/systemd/system/test.target
ln -sf /dev/null /etc/fstab
exec env -i container=test PATH="$PATH" /lib/systemd/systemd --unit=test.target --show-status=no --log-target=null
SH
machine=/sys/fs/cgroup/machine
mkdir "$machine"
(echo $BASHPID >"$machine/cgroup.procs" && exec unshare --fork --pid --mount --uts --ipc --cgroup sh "$dir/boot" >"$dir/systemd.log" 2>&1) &
until_true 10 pgrep -P $! || fail "no systemd"
systemd=$(pgrep -P $!)
inside() { nsenter -t "$systemd" -m -p -C -u -i "$@"; }
ready() { inside systemctl is-system-running | grep -qE 'running|degraded'; }
until_true 180 ready || { cat "$dir/systemd.log"; inside systemctl list-jobs; fail "systemd is $(inside systemctl is-system-running)"; }

dpkg_() { inside env DPKG_COLORS=never LC_ALL=C dpkg --no-triggers "$@" >"$dir/dpkg.log" 2>&1 || { cat "$dir/dpkg.log"; false; }; }
state() { [ "$(inside systemctl "is-$1" pikelet)" = "$2" ]; }
pods() { inside pikelet ps | grep '^default'; }
running() { pods | grep -q '1/1 *Running *0'; }
ids() { inside pikelet inspect "$(pods | awk '{ print $2 }')" | jq -c '[.. | objects | (.containerID, .id, .pid) | values]'; }
main_pid() { inside systemctl show --value -p MainPID pikelet; }
is() { [ "$1" = "$2" ]; }
gone() { ! inside test -e "$1"; }

check "it installs" dpkg_ -i "$debs"/pikelet_*-1_amd64.deb
check "  and neither enables nor starts anything" eval 'state enabled disabled && state active inactive'
check "  every file is as it was packed" inside dpkg --verify pikelet
check "  with units, manual pages, completions" eval 'for file in lib/systemd/system/pikelet.service \
  share/man/man1/{pikelet,pikelet-run}.1.gz share/bash-completion/completions/pikelet; do inside test -s /usr/$file || exit; done'
check "the settings it brings are valid" eval '! inside pikelet check 2>&1 | grep config.yaml'

mkdir -p /etc/pikelet/manifests /var/lib/pikelet/images-import
cp "$dir/image.tar" /var/lib/pikelet/images-import/
cat >>/etc/pikelet/config.yaml <<'YAML'
nodeName: deb
staticPodPath: /etc/pikelet/manifests
podCIDR: 10.91.0.0/24
YAML
cat >/etc/pikelet/manifests/one.yaml <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: a, image: "deb/busybox:1", command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1; done"]}]
YAML
check "it is enabled and started" inside systemctl --quiet enable --now pikelet
check "  and runs a pod" until_true 120 running || inside journalctl -u pikelet --no-pager -n 40
before=$(ids) agent=$(main_pid)
check "it is upgraded" dpkg_ -i "$debs"/pikelet_*-2_amd64.deb
anew() { state active active && [ "$(main_pid)" != "$agent" ] && running; }
check "  its agent starts anew" until_true 120 anew
check "  the pod goes on as it was" is "$(ids)" "$before"
check "  and so do the settings" inside grep -q '^nodeName: deb' /etc/pikelet/config.yaml
check "a stopped agent leaves the pod alone" eval 'inside systemctl stop pikelet && inside systemctl start pikelet &&
  until_true 60 running && is "$(ids)" "$before"'
check "it is removed" dpkg_ -r pikelet
check "  with the agent and every pod" is "$(inside pgrep -x pikelet; inside ls /run/pikelet/sandboxes)" ""
check "  but not what is kept on disk" eval 'inside test -d /var/lib/pikelet/images && inside test -f /etc/pikelet/config.yaml'
check "it comes back" dpkg_ -i "$debs"/pikelet_*-2_amd64.deb
check "  with its settings and images" eval 'inside systemctl --quiet enable --now pikelet && until_true 120 running'
check "it is purged while the pod runs" dpkg_ -P pikelet
check "  leaving no file" eval '[ -z "$(ls -A /var/lib/pikelet)" ] && gone /run/pikelet && gone /usr/bin/pikelet && gone /etc/pikelet/config.yaml'
left() {
  inside pgrep -x pikelet
  inside grep -E ' /(var/lib|run)/pikelet/' /proc/mounts
  inside find /sys/fs/cgroup -name '*kubepods*'
  ip -o link show | grep -E 'pikelet0|pk[0-9a-f]{11}'
  nft list ruleset | grep pikelet
}
said=$(left)
check "  no process, mount, cgroup, link or rule${said:+: $said}" [ -z "$said" ]
echo "$passed passed, $failed failed"
kill -KILL "$systemd"
[ $failed = 0 ]
