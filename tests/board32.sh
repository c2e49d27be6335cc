#!/usr/bin/env bash
# The appliance's image for a 32-bit board, as it is written to cards, booted as an emulated one that has no cluster:
# settings file, mistakes, growing, DHCP and time, a pod of manifest and archive on the FAT partition, restart, power cut, and
# an upgrade to another processor's image.
#
#   tests/board32.sh BOARD      rpi2 or rpi0
#
# PIKELET_IMAGE: an image to test [default: images/build.sh makes one]. Needs no root. Prints a line per case, and
# `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
. tests/harness/check.sh
. tests/harness/card.sh
. images/packages.sh
board=${1:-}
# seconds that a step of an emulated board may take; on a busy machine none took more than 110
patience=${PIKELET_BOARD_TIMEOUT:-600}

# the machine, which device tree its firmware asks for, what uname(1) says, Debian's architecture, another processor's kernel,
# and what the emulator needs that boards do not
case $board in
rpi2) machine=raspi2b tree=bcm2709-rpi-2-b processor=armv7l architecture=armhf other=kernel8.img more="" ;;
# QEMU lacks what the power driver asks for
rpi0)
  machine=raspi0 tree=bcm2708-rpi-zero processor=armv6l architecture=armel other=kernel7.img
  more="initcall_blacklist=bcm2835_power_driver_init"
  ;;
*) fail "tests/board32.sh BOARD: rpi2 or rpi0" ;;
esac

completed=""
soon() { until_true "$patience" "$@"; }

programs qemu-system-arm:qemu-system-arm mcopy:mtools mkfs.vfat:dosfstools sfdisk:fdisk e2fsck:e2fsprogs
if [ -z "${PIKELET_IMAGE:-}" ]; then
  images/build.sh "$board" appliance || exit 1
  PIKELET_IMAGE=${CARGO_TARGET_DIR:-target}/images/pikelet-appliance-$board.img
fi

work=$(mktemp -d /tmp/pikelet-board.XXXXXX)
mkdir "$work/pids" "$work/logs"
finish() {
  [ -n "$completed" ] || check "every case was run" false
  for name in board sntp; do proc_stop "$work/pids" $name; done
  if [ $failed = 0 ]; then rm -rf "$work"; else say "console and logs are kept in $work"; rm -f "$work/card.img"; fi
  verdict || exit 1
  exit 0
}
trap finish EXIT
new_card "$PIKELET_IMAGE"

# free_port TYPE: one of this machine's that nobody has
free_port() {
  python3 -c 'import socket, sys
s = socket.socket(type=getattr(socket, sys.argv[1]))
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])' "$1"
}
http=$(free_port SOCK_STREAM) ntp=$(free_port SOCK_DGRAM)
proc_start "$work/pids" "$work/logs" sntp python3 tests/harness/sntp.py 127.0.0.1 "$ntp"

# power_on: the board, with the card in it, and a USB adapter at a network that gives addresses
boots=0
power_on() {
  firmware $tree
  since=$SECONDS
  proc_start "$work/pids" "$work/logs" board qemu-system-arm -M $machine \
    -kernel "$work/firmware/kernel" -initrd "$work/firmware/initramfs" -dtb "$work/firmware/dtb" \
    -append "$(tr -d '\r\n' <"$work/firmware/cmdline.txt") $more" -drive "if=sd,format=raw,file=$card" \
    -netdev "user,id=n0,hostfwd=tcp:127.0.0.1:$http-:8080" -device usb-net,netdev=n0 \
    -serial "file:$work/logs/console.$((boots += 1))" -display none -no-reboot
}
power_cut() { proc_stop "$work/pids" board KILL; }
is_off() { gone "$work/pids" board; }
console() { tr -d '\r' <"$work/logs/console.$boots"; }
shows() { console | grep -q "$1"; }
not() { ! "$@" >/dev/null 2>&1; }
complain() { console | tail -n 25; }

# the pod's image: a web server of programs, which do what a person would
arm=$(packages tests/board.packages $architecture) || exit
root=$work/root
busybox_root "$root"
find "$arm" -name busybox -type f -exec cp {} "$root/bin/busybox" \;
mkdir -p "$root/www/cgi-bin"
cat >"$root/www/cgi-bin/state" <<'SH'
#!/bin/sh
echo
echo "processor $(uname -m)"
echo "boots $(wc -l </kept/boots)"
echo "disk $(df -k /kept | awk 'END { print $2 }')"
echo "memory $(awk '$1 == "MemTotal:" { all = $2 } $1 == "MemAvailable:" { print $2 " of " all }' /proc/meminfo)"
echo "clock $(date +%s)"
echo "uptime $(cut -d ' ' -f 1 /proc/uptime)"
SH
cat >"$root/www/cgi-bin/restart" <<'SH'
#!/bin/sh
echo
kill -TERM 1
SH
cat >"$root/www/cgi-bin/upgrade" <<'SH'
#!/bin/sh
echo
nsenter -t 1 -m -- pikelet upgrade /boot/other.img 2>&1
SH
chmod 755 "$root"/www/cgi-bin/*
pack_image "$work/layout" 1 "$root"
umoci config --image "$work/layout:1" --architecture arm
mkdir "$work/images" "$work/manifests"
skopeo --insecure-policy copy --quiet "oci:$work/layout:1" "oci-archive:$work/images/busybox.tar:board/busybox:1"
cat >"$work/manifests/web.yaml" <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  hostPID: true
  terminationGracePeriodSeconds: 1
  volumes: [{name: kept, hostPath: {path: /var/lib/kept, type: DirectoryOrCreate}}]
  containers:
  - name: web
    image: board/busybox:1
    command: [sh, -c, 'echo started >>/kept/boots; sync; exec httpd -f -p 80 -h /www']
    ports: [{containerPort: 80, hostPort: 8080}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    securityContext: {privileged: true}
    volumeMounts: [{name: kept, mountPath: /kept}]
YAML
mcopy -s -i "$boot" "$work/images" "$work/manifests" ::
# another processor's image
mkdir -p "$work/other/a"
for file in initrd.zst cmdline.txt image.txt $other; do echo "of another board" >"$work/other/a/$file"; done
small_image "$work/other/a" "$work/other.img"
mcopy -i "$boot" "$work/other.img" ::

# asks PAGE, says WORD: what the pod answers
asks() { curl -s -m 60 "http://127.0.0.1:$http/cgi-bin/$1"; }
says() { asks state | awk -v word="$1" '$1 == word { $1 = ""; print substr($0, 2) }'; }
is() { [ "$(says "$1")" = "$2" ]; }

good="nodeName: board
podManifestPath: /boot/manifests
imageImportDir: /boot/images
podCIDR: 10.88.0.0/24
timeServers: [10.0.2.2:$ntp]
# the emulator restarts as soon as it is armed
watchdog: false"

# ---- a mistake of a person ----
settings "$good
wifi: {ssid: home}
nodeLabel: {a: b}"
power_on
check "$board: wrong settings are said on the console" soon shows 'MISTAKE .*wifi: this image has no WiFi' || exit
say "the first console line of the settings $((SECONDS - since)) s after power on"
check "  all of them, with what was meant" soon shows 'MISTAKE .*nodeLabel'
reported() { mtype -i "$boot" ::pikelet-status.txt 2>/dev/null | grep -q 'MISTAKE .*wifi: this image has no WiFi'; }
check "  and in pikelet-status.txt on the card" soon reported
check "  the data partition has grown to the card" shows 'data partition grown to 8[0-9][0-9] MiB'
check "  the board got an address all the same" soon shows 'network .*10\.0\.2\.15/24 on '
check "  no agent runs" shows 'state .*waits for pikelet.yaml'
power_cut

# ---- with good ones ----
settings "$good"
power_on
check "a pod of a manifest and an archive on the card runs" soon is boots 1 || exit
say "the pod answers $((SECONDS - since)) s after power on, $(says memory) KiB of memory are left"
check "  on the board's processor" is processor $processor
check "  on the data partition, which has grown" test "$(says disk)" -gt 700000
clock() { local board; board=$(says clock) && [ $((board - $(date +%s))) -ge -10 ] && [ $((board - $(date +%s))) -le 10 ]; }
check "  the clock is right" soon clock
check "  the console says so" soon shows 'pods .*1 running of 1'
check "  and that nothing is wrong" shows 'settings .*no mistakes'
check "another processor's image is refused" grep -q "for other processors: its kernel is $other" <(asks upgrade)
check "  the card is as it was" eval 'mtype -i "$boot" ::choice.txt | grep -q "^os_prefix=a/"'

# ---- a restart, and no warning ----
asks restart >/dev/null
check "SIGTERM to the first process restarts the board" soon is_off
check "  with the card unmounted" eval "shows 'pikelet: restarting' && not shows 'still in use'"
power_on
check "the second boot comes back with its pod" soon is boots 2
say "the pod answers $((SECONDS - since)) s after power on"
power_cut
power_on
check "after a power cut as well" soon is boots 3
power_cut
dd if="$card" of="$work/data.img" bs=1M skip=129 conv=sparse status=none
check "the card's file system is whole" fsck_clean "$work/data.img"
completed=1
