# The Debian package: installed, upgraded while a pod runs, removed and purged, under a systemd that has nothing else to do.
. tests/harness/common.sh
. tests/harness/systemd.sh
. tests/harness/check.sh
dir=$(mktemp -d)
pod_image "$dir" deb/busybox:1
systemd_start "$dir"

dpkg_() { inside env DPKG_COLORS=never LC_ALL=C dpkg --no-triggers "$@" >"$dir/dpkg.log" 2>&1 || { cat "$dir/dpkg.log"; false; }; }
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
kill -KILL "$systemd"
verdict
