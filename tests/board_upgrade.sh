# Upgrades of the emulated board: the card has two systems, and a new one that does not work is given up (sourced by
# tests/board.sh, with the board Ready).

mkdir "$work/www"
proc_start "$work/pids" "$work/logs" www ip netns exec "$cp" python3 -m http.server --bind $server --directory "$work/www" 8099
echo no image >"$work/www/none"
none=http://$server:8099/none#sha256:$(sha256sum <"$work/www/none" | cut -d ' ' -f 1)
annotate "$none"
check "an upgrade that nobody signed: refused, in an Event" soon told UpgradeRefused 'it is not signed'
upgrade "${none%?????}00000"
check "an upgrade to what has another digest: refused, in an Event" soon told UpgradeFailed 'another image, or damaged'
upgrade "$none"
check "  to what is no image" soon told UpgradeFailed 'no image of a card'
check "  the card is as it was" chosen os_prefix=a/
before=$(boot_id)
upgrade "$image"
check "an upgrade by the Node's annotation: the board restarts" soon is_off
check "  with the new system" chosen 'os_prefix=b/ #trial=b'
# the next image can get onto the card only now
initramfs "$work/panics.zst" "rm init && mv bin/pikelet init && cp '$root/bin/busybox' bin/pikelet"
image panics "$work/panics.zst"
power_on
check "  which makes the old one the next" soon chosen 'os_prefix=a/ #trial=b'
check "  and says that it is tried" soon shows 'upgrade .*system b (system good) is being tried'
check "  it is Ready" soon ready_anew "$before"
check "  and confirmed" soon chosen os_prefix=b/
check "  in an Event" soon told Upgraded 'system b (system good) .* works'
check "  the pod is there" soon answers web

before=$(boot_id)
deployment host 1 true
check "a privileged pod with hostPID" soon running host
k exec deployment/host -- nsenter -t 1 -m -- pikelet upgrade "$image" >"$work/logs/upgrade" 2>&1
check "an upgrade by hand, to a system that panics" soon is_off
power_on
check "  it does" soon shows 'Kernel panic'
check "  the board restarts" soon is_off
initramfs "$work/mute.zst" "sed -i '/^cdc_ether/d; /^rndis_host/d' lib/modules/order"
image mute "$work/mute.zst"
settings "$good
upgradeTimeout: 90s
network: {address: 10.77.0.150/24, gateway: $server, nameServers: [$server]}"
power_on
check "  with the old system, which is Ready" soon ready_anew "$before"
check "  the console says so" shows 'upgrade .*FAILED: system a (system panics): it ended before the Node was Ready; this is system b again'
check "  the Event" soon told UpgradeFailed 'system a (system panics)'
check "  and the card" soon file_says 'FAILED: system a'
check "  it is not tried again" chosen os_prefix=b/
k delete deployment host --wait=false >/dev/null

before=$(boot_id)
upgrade "$image"
check "an upgrade to a system with no network" soon is_off
power_on
check "  it gives up after its time" soon shows 'system a failed: not Ready 90 s after its start'
check "  and restarts the board" soon is_off
image cut
power_on
check "  with the old system, which is Ready" soon ready_anew "$before"
check "  the Event says why" soon told UpgradeFailed 'system a (system mute).*not Ready 90 s after its start'

before=$(boot_id)
upgrade "$image"
check "an upgrade begins" soon told UpgradeStarted cut.img
check "  its files are written to the card" soon not mtype -i "$boot" ::a/image.txt
sleep "$((RANDOM % 3)).$((RANDOM % 10))"
power_cut
check "  the power is cut: the old system is the next" chosen os_prefix=b/
# what a cut between two sectors of the table leaves
head -c 1000000 /dev/urandom >"$work/half"
mcopy -D o -i "$boot" "$work/half" ::a/half.dtb
mdel -i "$boot" ::a/image.txt 2>/dev/null
check "  a chain of clusters is broken off" python3 tests/harness/broken_chain.py "$card" 1 A HALF.DTB
power_on
check "  it is Ready" soon ready_anew "$before"
check "  what was left is gone" soon not mtype -i "$boot" ::a/half.dtb
check "  it begins anew, to the end" soon is_off
dd if="$card" of="$work/boot.img" bs=1M skip=1 count=128 status=none
fsck.vfat -n "$work/boot.img" >"$work/logs/fsck.vfat"
check "  no two files share clusters, none has too few" not grep -E 'share|free cluster|chain length|bad start' "$work/logs/fsck.vfat"
power_on
check "  the power is cut in the trial" soon shows 'system a (system cut) is being tried'
power_cut
power_on
check "  the old system is Ready" soon ready_anew "$before"
check "  and stays" soon shows 'FAILED: system a (system cut)'
check "  the pod is there" soon answers web
