# Devices of a node as resources (`devices:` of its settings): counted, given, kept over a restart of the agent, lost.

line=/dev/pk$PIKELET_CLUSTER_ID
ln -sfn loop-control "$line-0"; ln -sfn fuse "$line-1"
cat >"$dir/n1/config.yaml" <<YAML
devices:
- {name: pikelet.io/loop, paths: [/dev/loop-contro?], count: 2}
- {name: pikelet.io/fuse, paths: [/dev/fuse], permissions: r}
- {name: example.com/line, paths: ["$line-*"], perDevice: true}
YAML
agent_with n1 --config "$dir/n1/config.yaml"
has() { [ "$(k get node n1 -o "jsonpath={.status.$1.${2//./\\.}}")" = "$3" ]; }
check "devices are resources of the Node" soon eval 'has capacity pikelet.io/loop 2 && has allocatable pikelet.io/fuse 1'
check "  each on its own where that was asked for" has allocatable example.com/line 2

# using NAME LIMITS [FIELDS]: a pod whose first container asks for those resources, and whose second does not
using() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  ${3:-}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: '$image', command: [sh, -c, 'trap exit TERM; sleep 1000 & wait'], resources: {limits: {$2}}}
  - {name: b, image: '$image', command: [sleep, '1000']}
YAML
}
inside() { k exec "$1" -c "$2" -- sh -c "$3" 2>&1; }
using one 'pikelet.io/loop: 1, pikelet.io/fuse: 1'
check "a pod that asks for them runs where they are" soon is one .status.phase Running
check "  on that node" is one .spec.nodeName n1
check "  its container opens the device" inside one a 'true <>/dev/loop-control'
check "  as far as it may" inside one a 'true </dev/fuse'
refused() { [[ $(inside one "$1" "$2") == *"Operation not permitted"* ]]; }
check "  and not further" refused a 'true <>/dev/fuse'
check "  another container of the pod has no such device" not inside one b 'test -e /dev/loop-control'
check "  and cannot open one it makes" refused b 'mknod /tmp/l c 10 237 && true </tmp/l'
shown() { on n1 "$(cat "$dir/pikelet")" inspect one -c a --state-dir "$dir/n1/run" | jq -e '.containers[0].devices | map(.path) == ["/dev/fuse", "/dev/loop-control"]' >/dev/null; }
check "  pikelet inspect shows what it has" shown
using two 'pikelet.io/loop: 1' 'securityContext: {runAsUser: 1000}'
check "a second one has its share, as an ordinary user" soon is two .status.phase Running
check "  who opens the device" inside two a 'true <>/dev/loop-control'
using three 'pikelet.io/loop: 1'
check "a third one is not scheduled" soon event three 'Insufficient pikelet.io/loop'
k delete pod three --timeout=30s >/dev/null
unfit() { is "$1" .status.reason UnexpectedAdmissionError && [[ $(field "$1" .status.message) == *"devices unavailable for pikelet.io/loop. Requested: 1, Available: 0"* ]]; }
using three 'pikelet.io/loop: 1' 'nodeName: n1'
check "  and is refused by a node it names itself" soon unfit three
k delete pod three --timeout=30s >/dev/null

$cluster stop agent-n1 KILL
$cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
using three 'pikelet.io/loop: 1' 'nodeName: n1'
check "an agent that was killed still knows who has them" soon unfit three
check "  whose pods went on" is one "$restarts" 0
k delete pod three --timeout=30s >/dev/null
inside one a 'kill -9 -1' >/dev/null
restarted() { is one "$restarts" 1 && is one '.status.containerStatuses[0].ready' true; }
check "  a container that starts again has its devices again" soon restarted
check "  and opens them" inside one a 'true <>/dev/loop-control'
k delete pod two --timeout=30s >/dev/null
using three 'pikelet.io/loop: 1'
check "what a pod had is given to the next one" soon is three .status.phase Running

using four 'example.com/line: 1'; using five 'example.com/line: 1'
check "devices of which each is given once" soon eval 'is four .status.phase Running && is five .status.phase Running'
lines() { { inside four a "ls $line-*"; inside five a "ls $line-*"; } | sort | tr '\n' ' '; }
check "  are given to one pod each" test "$(lines)" = "$line-0 $line-1 "
rm "$line-1"
check "a device that is gone is not allocatable any more" soon has allocatable example.com/line 1
check "  but was there" has capacity example.com/line 2
k delete pod --all --timeout=60s >/dev/null
check "nothing is held by pods that are gone" soon eval 'using six "pikelet.io/loop: 2" "nodeName: n1"; is six .status.phase Running'
k delete pod six --timeout=30s >/dev/null

sed -i '/fuse/d' "$dir/n1/config.yaml"
agent_with n1 --config "$dir/n1/config.yaml"
check "what the settings name no more is taken off the Node" soon has capacity pikelet.io/fuse ''
check "  the rest stays" has capacity pikelet.io/loop 2
printf 'port: 1\ndevices:\n- name: pikelet.io/x\n  paths: [/etc/passwd]\n' >"$layout/bad.yaml"
mistake() {
  [[ $("$(cat "$dir/pikelet")" check --config "$layout/bad.yaml" 2>&1) == *'bad.yaml: line 3 '*'devices: pikelet.io/x: path /etc/passwd: it is one below /dev'* ]]
}
check "a mistake names key, entry and line" mistake
agent_with n1
check "a node with no such settings has no devices" soon has capacity pikelet.io/loop ''
rm -f "$line"-*
