#!/usr/bin/env bash
# The appliance's image, as it is written to cards, booted as an emulated Raspberry Pi 3 into a Node of a real control
# plane: settings file, DHCP, time, growing, pods, reboot, power cuts, mistakes, upgrades.
#
#   tests/board.sh [CUTS]       how often the power is cut (default 2), apart from upgrades
#
# PIKELET_IMAGE: an image to test [default: images/build.sh makes one]. Prints a line per case, and `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh
. tests/harness/check.sh
. tests/harness/card.sh
. images/packages.sh
export PIKELET_CLUSTER_ID=${PIKELET_CLUSTER_ID:-b$(($$ % 9999))}
cluster=tests/scripts/cluster.sh
cuts=${1:-2}
# seconds that an emulated board may take to be Ready; on a machine with nothing else to do it takes 20
patience=${PIKELET_BOARD_TIMEOUT:-240}
server=10.77.0.1
node=board

k() { timeout 60 $cluster kubectl "$@"; }
completed=""
soon() { until_true "$patience" "$@"; }
not() { ! "$@" >/dev/null 2>&1; }

programs qemu-system-aarch64:qemu-system-arm mcopy:mtools mkfs.vfat:dosfstools sfdisk:fdisk dnsmasq:dnsmasq-base tune2fs:e2fsprogs
if [ -z "${PIKELET_IMAGE:-}" ]; then
  images/build.sh rpi appliance
  PIKELET_IMAGE=${CARGO_TARGET_DIR:-target}/images/pikelet-appliance-rpi.img
fi

work=$(mktemp -d /tmp/pikelet-board.XXXXXX)
mkdir "$work/pids" "$work/logs"
finish() {
  [ -n "$completed" ] || check "every case was run" false
  for name in board dnsmasq sntp www; do proc_stop "$work/pids" $name; done
  $cluster down >/dev/null || check "nothing is left over" false
  if [ $failed = 0 ]; then rm -rf "$work"; else say "console and logs are kept in $work"; rm -f "$work/card.img"; fi
  verdict || exit 1
  exit 0
}
trap finish EXIT

new_card "$PIKELET_IMAGE"

# power_on: the board, with the card in it and a cable to the cluster's switch
power_on() {
  local netns=pk$PIKELET_CLUSTER_ID-sw
  ip -n "$netns" link show tap0 >/dev/null 2>&1 ||
    { ip -n "$netns" tuntap add tap0 mode tap && ip -n "$netns" link set tap0 master br0 up; }
  firmware bcm2710-rpi-3-b
  proc_start "$work/pids" "$work/logs" board ip netns exec "$netns" qemu-system-aarch64 -M raspi3b \
    -kernel "$work/firmware/kernel" -initrd "$work/firmware/initramfs" -dtb "$work/firmware/dtb" \
    -append "$(tr -d '\r\n' <"$work/firmware/cmdline.txt")" -drive "if=sd,format=raw,file=$card" \
    -netdev tap,id=n0,ifname=tap0,script=no,downscript=no -device usb-net,netdev=n0,mac=52:54:00:12:34:56 \
    -serial null -serial "file:$work/logs/console.$((boots += 1))" -display none -no-reboot
}
boots=0
# power_cut: no warning
power_cut() { proc_stop "$work/pids" board KILL; }
is_off() { gone "$work/pids" board; }
console() { tr -d '\r' <"$work/logs/console.$boots"; }
shows() { console | grep -q "$1"; }

field() { k get "$1" "$2" -o "jsonpath={$3}"; }
boot_id() { field node $node .status.nodeInfo.bootID 2>/dev/null; }
# ready_anew BOOT: Ready, and not by what was said before that boot
ready_anew() {
  [ "$(boot_id)" != "$1" ] && [ -n "$(boot_id)" ] &&
    [ "$(field node $node '.status.conditions[?(@.type=="Ready")].status')" = True ]
}
running() { [ "$(k get pods -l "app=$1" -o 'jsonpath={.items[*].status.containerStatuses[*].ready}')" = true ]; }
# the pod that runs now was started by this boot's agent, not only remembered by the API server
answers() { k exec "deployment/$1" -- true; }

$cluster up 0 >/dev/null || { failed=1; exit; }
dir=$($cluster dir)
cp=pk$PIKELET_CLUSTER_ID-cp

proc_start "$work/pids" "$work/logs" dnsmasq ip netns exec "$cp" dnsmasq --keep-in-foreground --log-facility=- --log-dhcp \
  --conf-file=/dev/null --pid-file= --user=root --interface=eth0 --bind-interfaces --no-resolv --no-hosts --local=/board.test/ --host-record=time.board.test,$server \
  --dhcp-range=10.77.0.100,10.77.0.110,2m --dhcp-option=3,$server --dhcp-option=6,$server --dhcp-leasefile="$work/leases"
proc_start "$work/pids" "$work/logs" sntp ip netns exec "$cp" python3 tests/harness/sntp.py $server

# an image of arm64: Debian's busybox, and data whose damage would be seen
arm64=$(packages tests/board.packages) || exit
root=$work/root
busybox_root "$root"
cp "$arm64/usr/bin/busybox" "$root/bin/busybox" 2>/dev/null || cp "$arm64/bin/busybox" "$root/bin/busybox"
# tag NAME: an image of its own, so that it is pulled anew
tag() {
  head -c 2000000 /dev/urandom >"$root/data"
  (cd "$root" && sha256sum data >data.sha256)
  pack_image "$work/layout" "$1" "$root"
  umoci config --image "$work/layout:$1" --architecture arm64
  push_image "$cp" "$work/layout" "$1" "$server:5000/busybox:$1"
}
tag 1

# as `kubeadm init` leaves a cluster that nodes can join
token=abcdef.0123456789abcdef
hash=sha256:$(openssl x509 -in "$dir/pki/ca.crt" -pubkey -noout | openssl pkey -pubin -outform der | sha256sum | cut -d' ' -f1)
{
  k create role -n kube-public cluster-info --verb=get --resource=configmaps --resource-name=cluster-info
  k create rolebinding -n kube-public cluster-info --role=cluster-info --group=system:unauthenticated --user=system:anonymous
  k create configmap cluster-info -n kube-public --from-literal=kubeconfig="$(cat <<YAML
apiVersion: v1
kind: Config
clusters: [{name: "", cluster: {server: "https://$server:6443", certificate-authority-data: $(base64 -w0 "$dir/pki/ca.crt")}}]
YAML
)"
  k create secret generic bootstrap-token-abcdef -n kube-system --type=bootstrap.kubernetes.io/token \
    --from-literal=token-id=abcdef --from-literal=token-secret=0123456789abcdef --from-literal=usage-bootstrap-authentication=true \
    --from-literal=usage-bootstrap-signing=true --from-literal=auth-extra-groups=system:bootstrappers:test
  k create clusterrolebinding bootstrap --clusterrole=system:node-bootstrapper --group=system:bootstrappers
  k create clusterrolebinding approve --clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient --group=system:bootstrappers
} >/dev/null

openssl genpkey -algorithm ed25519 -out "$work/upgrade.pem" 2>/dev/null
openssl pkey -in "$work/upgrade.pem" -pubout -out "$work/upgrade.pub"

good="server: https://$server:6443
token: $token
caCertHash: [$hash]
clusterDNS: [10.96.0.10]
clusterCIDR: [10.244.0.0/16]
nodeName: $node
nodeLabels: {room: kitchen}
registerWithTaints: [card=new:PreferNoSchedule]
# the test's
evictionHard: {memory.available: 20Mi}
timeServers: [time.board.test]
# the emulator restarts as soon as it is armed
watchdog: false
keepSecretsOnCard: false
upgradeKey: $(sed '/-----/d' "$work/upgrade.pub")
registries:
  mirrors:
    $server:5000: {endpoint: [http://$server:5000]}"

# ---- a mistake of a person ----
settings "$good
wifi: {ssid: home}
nodeLabel: {a: b}"
power_on
check "wrong settings: said on the console" soon shows 'MISTAKE .*wifi: this image has no WiFi'
check "  all of them, with what was meant" soon shows 'MISTAKE .*nodeLabel'
reported() { mtype -i "$boot" ::pikelet-status.txt 2>/dev/null | grep -q 'MISTAKE .*wifi: this image has no WiFi'; }
check "  and in pikelet-status.txt on the card" soon reported
check "  the board got an address all the same" soon grep -q 'DHCPACK.*52:54:00:12:34:56' "$work/logs/dnsmasq.log"
power_cut
check "  no agent ran" not field node $node .metadata.name

# ---- the first boot with good ones ----
settings "$good"
secrets() { dd if="$card" bs=1M skip=1 count=128 status=none | grep -ac "$token"; }
secretless() { mtype -i "$boot" ::pikelet.yaml | grep -q '^# registries: moved' && not eval 'mtype -i "$boot" ::pikelet.yaml | grep -q "$token"'; }
secrets=$(secrets)
since=$SECONDS
power_on
check "the board joins the cluster and is Ready" soon ready_anew ""
[ $failed = 0 ] || { console; exit; }
say "Ready $((SECONDS - since)) s after power on"
address=$(field node $node '.status.addresses[?(@.type=="InternalIP")].address')
ip -n "$cp" route replace "$(field node $node .spec.podCIDR)" via "$address"
check "  with the settings' label" test "$(field node $node .metadata.labels.room)" = kitchen
check "  and taint" test "$(field node $node '.spec.taints[?(@.key=="card")].effect')" = PreferNoSchedule
disk=$(field node $node .status.capacity.ephemeral-storage)
check "  the data partition has grown to the card ($disk of 1 GiB)" test "${disk%Ki}" -gt 700000
check "  the console says so" soon shows 'state .*Ready'
check "  and which address it has" shows "network .*$address/24 on "
check "  by the image's own kernel and system" test "$(field node $node .status.nodeInfo.osImage | cut -c 1-8)" = "pikelet "
check "  token and registries have left the settings file" soon secretless
check "  and the FAT partition" test "$(secrets)" -lt "$secrets"
check "  the rest of the file stays" grep -q "^server: https://$server:6443" <(mtype -i "$boot" ::pikelet.yaml)
own_log() { k get --raw "/api/v1/nodes/$node/proxy/logs/pikelet.log" | grep "$1"; }
check "its log is read through the API server" soon own_log 'agent: started'

# deployment NAME TAG
deployment() {
  k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1}
spec:
  replicas: 1
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: $server:5000/busybox:$2
        command: [sh, -c, 'cd / && sha256sum -c data.sha256 && echo up and running && { trap "exit 0" TERM; sleep 100000 & wait; }']
        securityContext: {privileged: ${3:-false}}
      hostPID: ${3:-false}
YAML
}
deployment web 1
check "a pod of a Deployment is pulled and runs" soon running web
logged() { k logs "deployment/$1" | grep 'up and running'; }
check "  kubectl logs" soon logged web
check "  kubectl exec" test "$(k exec deployment/web -- uname -m)" = aarch64
clock() { local board; board=$(k exec deployment/web -- date +%s) && [ $((board - $(date +%s))) -ge -10 ] && [ $((board - $(date +%s))) -le 10 ]; }
check "  the clock is right" clock
# the lease is of two minutes: more is granted than was begun with a search
renewed() { awk '/DHCPDISCOVER/ { asked++ } /DHCPACK/ { given++ } END { exit !(given > asked) }' "$work/logs/dnsmasq.log"; }
check "  the lease was renewed" soon renewed

# ---- a reboot as the board is asked for it ----
deployment host 1 true
check "a privileged pod with hostPID runs" soon running host
before=$(boot_id)
pod=$(k get pod -l app=web -o 'jsonpath={.items[0].metadata.uid}')
k exec deployment/host -- kill -TERM 1 >/dev/null 2>&1
check "SIGTERM to the first process restarts the board" until_true 90 is_off
unmounted() { shows 'pikelet: restarting' && not shows 'still in use'; }
check "  with the card unmounted" unmounted
k delete deployment host --wait=false >/dev/null
power_on
check "the second boot comes back by itself" soon ready_anew "$before"
check "  with the same pod" test "$(k get pod -l app=web -o 'jsonpath={.items[0].metadata.uid}')" = "$pod"
check "  which answers" soon answers web
check "  by the same address" test "$(field node $node '.status.addresses[?(@.type=="InternalIP")].address')" = "$address"

# ---- power cuts: at a pull, at the start of a pod, ... ----
blobs() { grep -c 'GET.*busybox/blobs' "$dir/logs/registry.log"; }
pulling() { [ "$(blobs)" -gt "$asked" ]; }
for ((n = 1; n <= cuts; n++)); do
  before=$(boot_id)
  if [ $((n % 2)) = 1 ]; then
    what="a pull"; tag "cut$n"; asked=$(blobs); deployment "cut$n" "cut$n"
    check "cut $n comes at a pull" until_true 60 pulling
  else
    what="the start of a pod"; deployment "cut$n" 1
  fi
  sleep "$((RANDOM % 5)).$((RANDOM % 10))"
  power_cut
  power_on
  check "cut $n, at $what: Ready again" soon ready_anew "$before"
  check "  the pod runs, its image is whole" soon running "cut$n"
  check "  and the one of before" soon answers web
  k delete deployment "cut$n" >/dev/null
done

before=$(boot_id)
power_cut
dd if="$card" of="$work/data.img" bs=1M skip=129 conv=sparse status=none
# as at the next boot: the journal first
check "the card's file system is whole" fsck_clean "$work/data.img"

# image NAME [INITRAMFS]: the image's system as another one, which says NAME of itself. Without the firmware, which upgrades
# leave alone: it is put on the FAT partition, as the emulated network would take ten minutes for it; sets what is asked for
image() {
  rm -rf "$work/new"; mkdir -p "$work/new/a"
  mcopy -i "$PIKELET_IMAGE@@1M" '::a/*' "$work/new/a/"
  sed -i "1s/.*/system $1/" "$work/new/a/image.txt"
  [ -z "${2:-}" ] || cp "$2" "$work/new/a/initrd.zst"
  small_image "$work/new/a" "$work/new/img"
  zstd -q -1 "$work/new/img" -o "$work/new/$1.img.zst"
  mdel -i "$boot" '::*.zst' 2>/dev/null
  mcopy -i "$boot" "$work/new/$1.img.zst" ::
  image=/boot/$1.img.zst#sha256:$(sha256sum <"$work/new/$1.img.zst" | cut -d ' ' -f 1)
  rm -r "$work/new"
}
# initramfs FILE COMMAND: the image's, changed by the command, which runs in its root
initramfs() {
  rm -rf "$work/initramfs"; mkdir "$work/initramfs"
  mcopy -n -i "$PIKELET_IMAGE@@1M" ::a/initrd.zst "$work/initrd.zst"
  (cd "$work/initramfs" && zstd -qdc ../initrd.zst | busybox cpio -idm 2>/dev/null && eval "$2" &&
    find . | busybox cpio -o -H newc -R 0:0 2>/dev/null | zstd -q -1 -f -o "$1")
}
# upgrade IMAGE: asks for it, signed
upgrade() {
  printf %s "${1#*#}" >"$work/said"
  annotate "$1,ed25519:$(openssl pkeyutl -sign -inkey "$work/upgrade.pem" -rawin -in "$work/said" | base64 -w0)"
}
annotate() { k annotate node $node --overwrite "pikelet.io/upgrade=$1" >/dev/null; }
choice() { mtype -i "$boot" ::choice.txt | tr -d '\r' | awk '/^(os_prefix=|#trial=)/' | xargs; }
chosen() { [ "$(choice)" = "$1" ]; }
told() { k get events -A --field-selector "reason=$1" -o 'jsonpath={.items[*].message}' | grep -q "$2"; }
file_says() { mtype -i "$boot" ::pikelet-status.txt | grep -q "$1"; }

# ---- errors the kernel met in the file system, and an address of one's own ----
debugfs -w -R 'set_super_value state 2' "$card?offset=$((129 << 20))" >/dev/null 2>&1
settings "$good
network: {address: 10.77.0.150/24, gateway: $server, nameServers: [$server]}"
image good
power_on
check "a card with errors is mended" soon shows 'has errors: mending it'
by_fixed_address() {
  ready_anew "$before" && [ "$(field node $node '.status.addresses[?(@.type=="InternalIP")].address')" = 10.77.0.150 ]
}
check "  the board is Ready again, by a fixed address" soon by_fixed_address
ip -n "$cp" route replace "$(field node $node .spec.podCIDR)" via 10.77.0.150
check "  and so is its pod" soon answers web

. tests/board_upgrade.sh
# last: pods may then be elsewhere
. tests/board_pair.sh
completed=1
