#!/usr/bin/env bash
# The image with Debian's system (VARIANT=debian): what is in it, and an emulated Raspberry Pi 3 that it is booted on, with
# a pod from a manifest and an archive on its FAT partition, and no control plane: wrong and right settings, login by key,
# restarts that leave a clean card, changes that are kept and that are not, a power cut.
#
# PIKELET_IMAGE: an image to test [default: images/build.sh makes one]. Prints a line per case, and `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
. tests/harness/check.sh
. tests/harness/card.sh
. images/packages.sh
# seconds that an emulated board may take for anything
patience=${PIKELET_BOARD_TIMEOUT:-600}
soon() { until_true "$patience" "$@"; }
not() { ! "$@" >/dev/null 2>&1; }

programs qemu-system-aarch64:qemu-system-arm mcopy:mtools sfdisk:fdisk unsquashfs:squashfs-tools ssh:openssh-client e2fsck:e2fsprogs curl:curl
if [ -z "${PIKELET_IMAGE:-}" ]; then
  images/build.sh rpi debian || exit 1
  PIKELET_IMAGE=${CARGO_TARGET_DIR:-target}/images/pikelet-debian-rpi.img
fi

work=$(mktemp -d /tmp/pikelet-debian.XXXXXX)
mkdir "$work/pids" "$work/logs"
completed=""
finish() {
  [ -n "$completed" ] || check "every case was run" false
  proc_stop "$work/pids" board
  rm -f "$work"/{card.img,data.img,system}
  if [ $failed = 0 ]; then rm -rf "$work"; else say "console and logs are kept in $work"; fi
  verdict || exit 1
  exit 0
}
trap finish EXIT

# ---- what is in it ----
table=$(sfdisk -d "$PIKELET_IMAGE")
# field NUMBER NAME: of a partition
field() { sed -n "s/.*img$1 : .*$2= *\([0-9a-f]*\).*/\1/p" <<<"$table"; }
check "a FAT partition" test "$(field 1 type)" = c
check "  one with the system's root" test "$(field 2 type)" = 83
check "  and the data partition, which is the last" test "$(field 3 type)" = 83
check "  by the identifier that the command line names" grep -q 'label-id: 0x70696b65' <<<"$table"
dd if="$PIKELET_IMAGE" of="$work/system" bs=512 skip="$(field 2 start)" count="$(field 2 size)" status=none
listed=$(unsquashfs -lln "$work/system")
# there MODE OWNER/GROUP PATH: a grep pattern each
there() { grep -qE "^$1 $2 .* squashfs-root$3( -> |\$)" <<<"$listed"; }
content() { unsquashfs -cat "$work/system" "$1"; }
check "the root has systemd" there l.+ 0/0 /usr/sbin/init
check "  the agent, of the package" there -rwxr-xr-x 0/0 /usr/bin/pikelet
check "  which dpkg knows" grep -qx 'Package: pikelet' <(content var/lib/dpkg/status)
check "  and the unit" there -rw-r--r-- 0/0 /usr/lib/systemd/system/pikelet.service
wanted() { there l.+ 0/0 "/etc/systemd/system/$1.wants/$2"; }
check "enabled: network" wanted multi-user.target systemd-networkd.service
check "  names" wanted sysinit.target systemd-resolved.service
check "  time" wanted sysinit.target systemd-timesyncd.service
check "  what is said of the board" wanted multi-user.target pikelet-card.service
check "  not the agent, which the settings decide about" not wanted multi-user.target pikelet.service
check "  nor a way in" not wanted multi-user.target ssh.service
check "nobody has a password" not grep -qvE '^[^:]+:\*:' <(content etc/shadow)
check "  and the file is not for all" there -rw-r----- 0/42 /etc/shadow
check "what needs an owner's rights has them" there -rwsr-xr-- "0/[1-9][0-9]*" /usr/lib/dbus-1.0/dbus-daemon-launch-helper
check "no machine id and no host key are in it" not grep -qE 'squashfs-root/etc/(machine-id|ssh/ssh_host.*)$' <<<"$listed"
check "WiFi's firmware" there l.+ 0/0 /usr/lib/firmware/brcm/brcmfmac43455-sdio.bin
check "  which is another name" there -rw-r--r-- 0/0 /usr/lib/firmware/cypress/cyfmac43455-sdio.bin
check "  and driver" grep -q '/brcmfmac.ko' <<<"$listed"
unsquashfs -q -n -d "$work/root" "$work/system" etc var usr/lib/systemd >/dev/null 2>&1
check "nothing names this machine's folders" not grep -rqF -e "$checkout" -e "$cache" -e "$(dirname "$(realpath "$PIKELET_IMAGE")")" "$work/root"
rm -rf "$work/root"
boot=$PIKELET_IMAGE@@1M
check "the firmware is told what to start" grep -qx 'kernel=kernel8.img' <(mtype -i "$boot" ::config.txt)
check "  with no choice of two systems" not grep -q 'choice' <(mtype -i "$boot" ::config.txt)
check "the settings file offers keys" grep -q '^#sshKey: ' <(mtype -i "$boot" ::pikelet.yaml)
check "  and no upgrades" not grep -q upgradeTimeout <(mtype -i "$boot" ::pikelet.yaml)
rm "$work/system"

# ---- the card, as a person prepares it ----
new_card "$PIKELET_IMAGE"
firmware bcm2710-rpi-3-b
ssh-keygen -q -t ed25519 -N "" -C test -f "$work/key"
arm64=$(packages tests/board.packages) || exit
busybox_root "$work/busybox"
cp "$arm64/usr/bin/busybox" "$work/busybox/bin/busybox" 2>/dev/null || cp "$arm64/bin/busybox" "$work/busybox/bin/busybox"
pack_image "$work/layout" 1 "$work/busybox"
umoci config --image "$work/layout:1" --architecture arm64
skopeo --insecure-policy copy --quiet "oci:$work/layout:1" "oci-archive:$work/busybox.tar:card/busybox:1"
cat >"$work/pod.yaml" <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: hello}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: kept, hostPath: {path: /var/lib/pikelet/test, type: DirectoryOrCreate}}, {name: scratch, emptyDir: {}}]
  containers:
  - name: c
    image: card/busybox:1
    command: [sh, -c, 'echo up and running; echo started | tee -a /kept/starts >>/kept/scratch/starts; sync; trap "sleep 3; echo gently >>/kept/ends; exit 0" TERM;
      httpd -f -p 80 -h /kept & wait']
    ports: [{containerPort: 80, hostPort: 8080}]
    volumeMounts: [{name: kept, mountPath: /kept}, {name: scratch, mountPath: /kept/scratch}]
YAML
mmd -i "$boot" ::manifests ::images
mcopy -i "$boot" "$work/pod.yaml" ::manifests/
mcopy -i "$boot" "$work/busybox.tar" ::images/

# ports that nobody has
port=$((20000 + $$ % 10000)) http=$((30000 + $$ % 10000))
boots=0
power_on() {
  proc_start "$work/pids" "$work/logs" board qemu-system-aarch64 -M raspi3b \
    -kernel "$work/firmware/kernel" -initrd "$work/firmware/initramfs" -dtb "$work/firmware/dtb" \
    -append "$(tr -d '\r\n' <"$work/firmware/cmdline.txt")" -drive "if=sd,format=raw,file=$card" \
    -netdev "user,id=n0,hostfwd=tcp:127.0.0.1:$port-:22,hostfwd=tcp:127.0.0.1:$http-:8080" -device usb-net,netdev=n0,mac=52:54:00:12:34:56 \
    -serial null -serial "file:$work/logs/console.$((boots += 1))" -display none -no-reboot
  since=$SECONDS
}
power_cut() { proc_stop "$work/pids" board KILL; }
is_off() { gone "$work/pids" board; }
shows() { tr -d '\r' <"$work/logs/console.$boots" | grep -q "$1"; }
file_says() { mtype -i "$boot" ::pikelet-status.txt | grep -q "$1"; }
on() {
  timeout 120 ssh -q -F none -i "$work/key" -p "$port" -o BatchMode=yes -o UserKnownHostsFile="$work/known" -o ConnectTimeout=20 \
    -o StrictHostKeyChecking=accept-new root@127.0.0.1 "$@"
}
# kept FILE: how many lines the pod's file has, by the pod
kept() { curl -sf -m 60 "http://127.0.0.1:$http/$1" | wc -l; }
has() { [ "$(kept "$1")" = "$2" ]; }
# data: the data partition, as the board left it
data() { rm -f "$work/data.img"; dd if="$card" of="$work/data.img" bs=1M skip="$(($(field 3 start) / 2048))" conv=sparse status=none; }
# unmounted: its journal has nothing that is not written yet
unmounted() { data; dumpe2fs -h "$work/data.img" 2>&1 | grep '^Filesystem features:' | not grep -w needs_recovery; }
complain() { tail -n 40 "$work/logs/console.$boots" 2>/dev/null; }

good="staticPodPath: /boot/manifests
imageImportDir: /boot/images
podCIDR: 10.42.0.0/24
nodeName: card
evictionHard: {memory.available: 20Mi}
sshKey: $(cat "$work/key.pub")
# the emulator restarts as soon as it is armed
watchdog: false"

# ---- mistakes of a person ----
settings "$good
upgradeTimeout: 5m
wifi: {sid: home}
nodeLabel: {a: b}"
power_on
check "wrong settings: said on the console" soon shows 'MISTAKE .*wifi: unknown field `sid`'
check "  all of them" shows 'MISTAKE .*nodeLabel'
check "  those that are the appliance's too" shows 'MISTAKE .*upgradeTimeout: this image is not upgraded by pikelet: use apt'
check "  and in pikelet-status.txt on the card" soon file_says 'MISTAKE .*upgradeTimeout: this image is not upgraded'
say "said after $((SECONDS - since)) s"
check "  the key lets one in all the same" soon on true
say "login after $((SECONDS - since)) s"
check "  the agent was not started" test "$(on systemctl is-active pikelet.service)" = inactive
on systemctl poweroff
check "  the board turns itself off" until_true 120 is_off

# ---- good ones ----
settings "$good"
power_on
check "the console says that the agent is up" soon shows 'state .*running'
say "agent up after $((SECONDS - since)) s"
check "  login by key" soon on true
running() { on pikelet ps | grep -q 'hello.* Running'; }
check "the manifest's pod runs" soon running
say "pod Running at most $((SECONDS - since)) s after power on"
check "  its log" grep -q 'up and running' <(on pikelet logs hello-card || on pikelet logs hello)
check "systemd is at multi-user.target" test "$(on systemctl is-active multi-user.target)" = active
check "  with no failed unit" test "$(on 'systemctl --failed --plain --no-legend && echo none')" = none
check "  the agent is the unit's" test "$(on systemctl is-active pikelet.service)" = active
check "the root is not the card's" test "$(on findmnt -n -o FSTYPE /)" = overlay
check "  nor is the journal" test "$(on ls /var/log/journal 2>/dev/null)" = ""
check "  and no swap" test "$(on cat /proc/swaps | wc -l)" = 1
check "the FAT partition is read-only" grep -q '\bro\b' <(on findmnt -n -o OPTIONS /boot)
disk=$(on df --output=size /var/lib/pikelet | tail -n 1)
check "the data partition has grown to the card ($disk KiB of 1 GiB)" test "${disk:-0}" -gt 600000
check "dpkg finds nothing amiss" test "$(on 'dpkg --audit && echo nothing')" = nothing
check "pikelet upgrade says what to do" grep -q 'apt installs what is newer' <(on pikelet upgrade /boot/x.img 2>&1)
check "  the status file says that all is well" soon file_says 'settings  no mistakes'
address() { file_says 'network .*10.0.2.15/24 on '; }
check "  and the address" address
on 'echo first >/etc/changed'
on reboot
check "it restarts when it is told to" until_true 180 is_off
check "  nothing was still in use" not shows 'Failed unmounting\|still in use'
check "  not even at the very end" shows 'pikelet: restarting'
check "  so the data partition was unmounted" unmounted
check "  and is whole" fsck_clean "$work/data.img"

# ---- again, and what is changed is to be kept ----
settings "$good
keepChanges: true"
power_on
check "the second boot comes back, with the same host key" soon on true
check "  and the pod, which answers" soon has starts 2
say "the pod answers $((SECONDS - since)) s after power on"
check "  it had ended in its own time" has ends 1
check "  and has what was in its volume" has scratch/starts 2
check "  with no failed unit" test "$(on 'systemctl --failed --plain --no-legend && echo none')" = none
check "  what was changed was in memory" test "$(on 'test -e /etc/changed || echo gone')" = gone
on 'echo second >/etc/changed'
on reboot
check "with keepChanges it restarts" until_true 180 is_off
check "  nothing was still in use" not shows 'Failed unmounting\|still in use'
check "  the data partition, where its root is, was unmounted" unmounted
check "  and is whole" fsck_clean "$work/data.img"
power_on
check "  it comes back" soon on true
check "  what was changed is as it was left" test "$(on cat /etc/changed)" = second
check "  and the pod answers, having ended in its own time" eval 'soon has starts 3 && has ends 2'

# ---- a power cut, and no warning ----
on 'echo third >/etc/changed; sync'
power_cut
check "the power is cut while the pod runs" not unmounted
check "  the data partition is whole once its journal was replayed" fsck_clean "$work/data.img"
power_on
check "  the board comes back, and its agent is up" soon shows 'state .*running'
say "agent up after $((SECONDS - since)) s"
check "  the pod answers" soon has starts 4
say "the pod answers $((SECONDS - since)) s after power on"
check "  it had no time to end" has ends 2
check "  and has what was in its volume" has scratch/starts 4
check "  what was changed is as it was written" eval 'soon on true && test "$(on cat /etc/changed)" = third'
check "  with no failed unit" test "$(on 'systemctl --failed --plain --no-legend && echo none')" = none

# ---- pods that nobody ends before ----
on systemctl stop pikelet
on systemctl poweroff
check "without an agent it turns itself off" until_true 180 is_off
check "  the data partition was unmounted all the same" unmounted
check "  and is whole" fsck_clean "$work/data.img"
completed=1
