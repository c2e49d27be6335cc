# What a node writes to its card: nothing while it is idle, and nothing of containers and logs where they are in memory.
# All that n2 keeps lies on a disk of its own here, whose counters are the kernel's. PIKELET_IDLE: seconds, 60 unless set.

seconds=${PIKELET_IDLE:-60}
$cluster stop agent-n2
card=$dir/n2/card
mkdir -p "$card" "$dir/n2/lib" "$dir/n2/log"
truncate -s 2G "$dir/n2/card.img"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$dir/n2/card.img"
block=$(losetup -f --show "$dir/n2/card.img")
on n2 mount "$block" "$card"
for part in lib log; do
  on n2 mkdir -p "$card/$part"
  on n2 mount --bind "$card/$part" "$dir/n2/$part"
done
# sectors: how much was written to the card so far, all that waits for it included
sectors() { on n2 sync -f "$card"; awk '{ print $7 }' "/sys/block/${block#/dev/}/stat"; }
agent_with n2

k create configmap idle --from-literal=key=value >/dev/null
# runs NAME COPIES COMMAND: pods of n2 with a probe and what pods usually mount
runs() {
  k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1}
spec:
  replicas: $2
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      nodeName: n2
      terminationGracePeriodSeconds: 1
      volumes: [{name: settings, configMap: {name: idle}}, {name: scratch, emptyDir: {}}]
      containers:
      - name: c
        image: '$image'
        command: [sh, -c, '$3']
        readinessProbe: {exec: {command: [test, -e, /settings/key]}, periodSeconds: 10}
        volumeMounts: [{name: settings, mountPath: /settings}, {name: scratch, mountPath: /scratch}]
YAML
  k rollout status "deployment/$1" --timeout=60s >/dev/null
}
check "ten pods run on a card" runs idle 10 'echo up; sleep 100000'
sleep 5
before=$(sectors); before_log=$(wc -c <"$dir/logs/agent-n2.log")
sleep "$seconds"
after=$(sectors)
echo "     $(((after - before) * 512)) bytes written to the card in $seconds s with 10 pods; $(($(wc -c <"$dir/logs/agent-n2.log") - before_log)) to the agent's log"
check "an idle node writes nothing to it" test "$after" = "$before"
[ "$after" = "$before" ] || on n2 find "$card" -newermt "-$seconds seconds" -type f | head
on n2 touch "$card/written"
check "  of what is counted, if there is any" test "$(sectors)" -gt "$after"
k delete deployment idle --timeout=60s >/dev/null
gone() { [ -z "$(k get pods -l app="$1" -o name)" ]; }
soon gone idle

agent_with n2 --container-storage memory --log-storage memory --memory-storage-size 16Mi
check "write layers and logs are put into memory" test "$(on n2 stat -f -c %T "$dir/n2/lib/containers" "$dir/n2/log" | sort -u)" = tmpfs
check "pods run there" runs busy 2 'while :; do date; date >/written; sleep 0.1; done'
sleep 2
before=$(sectors)
sleep 10
check "  and what they write and log is not written to the card" test "$(sectors)" = "$before"
pod=$(k get pods -l app=busy -o 'jsonpath={.items[0].metadata.name}')
check "  logs are where they always are" eval '[ "$(k logs $pod | wc -l)" -gt 50 ]'
full() { [[ $(k exec "$pod" -- sh -c 'dd if=/dev/zero of=/big bs=1M count=20; rm /big' 2>&1) == *"No space left"* ]]; }
check "  and no more of them than was allowed" full
$cluster stop agent-n2 KILL
agent_with n2
same() { k get pods -l app=busy -o 'jsonpath={.items[*].status.containerStatuses[0].restartCount}' | found -x '0 0'; }
check "an agent that shall use the disk again lets what runs stay in memory" same
check "  and says so" soon grep -q 'it moves between disk and memory' "$dir/logs/agent-n2.log"
k delete deployment busy --timeout=60s >/dev/null
soon gone busy
agent_with n2
check "  with no containers it does" test "$(on n2 stat -f -c %T "$dir/n2/lib/containers" "$dir/n2/log" | sort -u)" = ext2/ext3
k delete configmap idle >/dev/null
$cluster stop agent-n2
on n2 umount "$dir/n2/lib" "$dir/n2/log" "$card"
losetup -d "$block"
$cluster start agent-n2
k wait --for=condition=Ready node/n2 --timeout=30s >/dev/null
