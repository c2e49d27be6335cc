# A systemd that has nothing else to do, for the subjects of an emulated machine (sourced after common.sh), and what they ask it.

# systemd_start DIR UNIT...: in namespaces of its own, with its own cgroups and /run; with these units beside the basic ones.
# What it would do for a whole machine is masked. Sets `systemd`, its pid.
systemd_start() {
  local dir=$1 machine=/sys/fs/cgroup/machine; shift
  # a partition of its own, as on many boards; what the guest has below can't be an overlay's upper layer
  mkdir -p /var/lib/pikelet
  mountpoint -q /var/lib/pikelet || mount -t tmpfs data /var/lib/pikelet
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
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=%s\nAllowIsolate=yes\n' "$*" >/run/systemd/system/test.target
ln -sf /dev/null /etc/fstab
# what it says at its end is for nobody
mount --bind /dev/null /dev/console
exec env -i container=test PATH="$PATH" /lib/systemd/systemd --unit=test.target --show-status=no --log-target=null
SH
  mkdir -p "$machine"
  # as the first system of a machine has them
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
  done
  (echo $BASHPID >"$machine/cgroup.procs" &&
    exec unshare --fork --pid --mount --uts --ipc --cgroup sh "$dir/boot" "$@" >"$dir/systemd.log" 2>&1) &
  until_true 10 pgrep -P $! || fail "no systemd"
  systemd=$(pgrep -P $!)
  until_true 180 systemd_up ||
    { cat "$dir/systemd.log"; inside systemctl list-jobs; fail "systemd is $(inside systemctl is-system-running)"; }
}
systemd_up() { inside systemctl is-system-running | grep -qE 'running|degraded'; }

# inside COMMAND...: where that systemd runs
inside() { nsenter -t "$systemd" -m -p -C -u -i "$@"; }

# state enabled|active STATE: of the unit
state() { [ "$(inside systemctl "is-$1" pikelet)" = "$2" ]; }
# property NAME: of the unit
property() { inside systemctl show --value -p "$1" pikelet; }
main_pid() { property MainPID; }

# the agent's only pod
pods() { inside pikelet ps | grep '^default'; }
running() { pods | grep -q '1/1 *Running *0'; }
ids() { inside pikelet inspect "$(pods | awk '{ print $2 }')" | jq -c '[.. | objects | (.containerID, .id, .pid) | values]'; }
is() { [ "$1" = "$2" ]; }

# pod_image DIR NAME: DIR/image.tar, an image of busybox
pod_image() {
  busybox_image "$1/layout" 1
  skopeo --insecure-policy copy --quiet "oci:$1/layout:1" "oci-archive:$1/image.tar:$2"
}
