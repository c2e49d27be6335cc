# Clients nobody knows, at the kubelet API of n1: however many, kubectl answers as before, and none is waited for long.

k run talks --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n1"}}' --command -- sh -c 'echo a line; exec sleep 1000' >/dev/null
soon is talks .status.phase Running
logged() { [ "$(timeout 20 $cluster kubectl logs talks)" = "a line" ]; }
check "kubectl logs" logged
pki=$dir/pki
# by a connection of its own: the API server may have one from before
enters() {
  ip netns exec "pk$PIKELET_CLUSTER_ID-cp" curl -fsk -m 20 -o /dev/null --cert "$pki/kubelet-client.crt" --key "$pki/kubelet-client.key" \
    https://10.77.0.11:10250/pods
}
stranger() { local node=$1; shift; ip netns exec "pk$PIKELET_CLUSTER_ID-$node" python3 harness/strangers.py 10.77.0.11 10250 "$@"; }
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$(proc_pid "$dir/pids" agent-n1)/status"; }
open_files() { ls "/proc/$(proc_pid "$dir/pids" agent-n1)/fd" | wc -l; }
files=$(open_files)

# crowded FROM KIND MOST: beside 2,000 connections a new one is let in and kubectl reads logs, three times; at most MOST of them stay
crowded() {
  local from=$1 kind=$2 most=$3 pid before i
  rm -f "$layout/crowd" "$layout/stayed"
  before=$(resident)
  stranger "$from" crowd "$kind" 2000 "$layout/crowd" >"$layout/stayed" & pid=$!
  until_true 60 test -e "$layout/crowd" || { kill $pid; return 1; }
  local logged=0
  for i in 1 2 3; do enters && logged && logged=$((logged + 1)); done
  local grown=$(($(resident) - before))
  rm -f "$layout/crowd"; wait $pid
  [ "$logged" = 3 ] && [ "$(cat "$layout/stayed")" -le "$most" ] && [ "$grown" -le 40000 ] ||
    { echo "     logged: $logged of 3, stayed: $(cat "$layout/stayed"), kB more: $grown"; false; }
}
for kind in tcp tls slow h2 reset; do
  check "2000 connections of a neighbour, $kind: kubectl logs answers, few stay, little memory" crowded n2 $kind 16
done
check "2000 connections from where the API server is: it is let in all the same" crowded cp tls 192
local_crowd() {
  local pid healthy=no
  rm -f "$layout/crowd" "$layout/stayed"
  on n1 python3 "$PWD/harness/strangers.py" 127.0.0.1 10248 crowd tcp 2000 "$layout/crowd" >"$layout/stayed" & pid=$!
  until_true 60 test -e "$layout/crowd" || { kill $pid; return 1; }
  [ "$(on n1 curl -s -m 10 http://127.0.0.1:10248/healthz)" = ok ] && healthy=yes
  rm -f "$layout/crowd"; wait $pid
  [ $healthy = yes ] && [ "$(cat "$layout/stayed")" -le 192 ] || { echo "     healthy: $healthy, stayed: $(cat "$layout/stayed")"; false; }
}
check "2000 connections of the node itself to /healthz: it answers, few stay" local_crowd
closed() { [ "$(stranger n2 closed "$@")" = closed ]; }
for kind in tcp tls slow h2 body; do
  check "one that goes no further is ended: $kind" closed $kind
done
let_in() { [ "$(stranger cp closed answered "$pki/kubelet-client.crt" "$pki/kubelet-client.key")" = open ]; }
check "one that was let in may be silent for longer" let_in

wrong() {
  local seen; seen=$(stranger n2 tokens 1000)
  [ "$seen" = "401 429" ] || { echo "     statuses: $seen"; false; }
}
k create serviceaccount reader >/dev/null
k create clusterrolebinding reader --clusterrole=system:kubelet-api-admin --serviceaccount=default:reader >/dev/null
token=$(k create token reader)
status() { ip netns exec "pk$PIKELET_CLUSTER_ID-n2" curl -sk -m 10 -o /dev/null -w '%{http_code}' "${@:2}" "https://10.77.0.11:10250$1"; }
answers() { [ "$(status "${@:2}")" = "$1" ]; }
check "a good token is taken" answers 200 /pods -H "Authorization: bearer $token"
check "1000 wrong tokens: refused, and soon not asked about" wrong
check "  the good one is known still" answers 200 /pods -H "Authorization: Bearer $token"
check "  and kubectl logs answers" logged
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$layout/mesh.key" -out "$layout/mesh.crt" \
  -days 1 -subj /O=system:masters/CN=admin 2>/dev/null
mesh=(--cert "$layout/mesh.crt" --key "$layout/mesh.key")
check "a certificate of another CA enters nowhere" answers 401 /pods "${mesh[@]}"
check "  and does not keep a good token out" answers 200 /pods "${mesh[@]}" -H "Authorization: Bearer $token"

pinned() {
  local before pid grown
  # memory that others have given back would be used again
  agent_with n1
  rm -f "$layout/held"
  before=$(resident)
  stranger cp unpaired "$pki/kubelet-client.crt" "$pki/kubelet-client.key" /portForward/default/talks "$layout/held" & pid=$!
  until_true 30 test -e "$layout/held" || { kill $pid; return 1; }
  grown=$(($(resident) - before))
  rm -f "$layout/held"; wait $pid
  # 1 MB was sent
  [ "$grown" -le 8000 ] || { echo "     kB more: $grown"; false; }
}
check "port-forwards hold no more than they were sent" pinned
ports=$(seq -s, 1 33)
# curl ends when the answer is there
upgrade() {
  ip netns exec "pk$PIKELET_CLUSTER_ID-cp" curl -sk -m 5 --http1.1 --cert "$pki/kubelet-client.crt" --key "$pki/kubelet-client.key" \
    -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' \
    -H 'Sec-WebSocket-Protocol: v4.channel.k8s.io' "https://10.77.0.11:10250/portForward/default/talks?ports=$1"
}
many() { [[ $(upgrade "$ports") == *"33 ports to forward by one websocket"* ]]; }
check "a websocket for too many ports is told so" many
over() { [ "$(open_files)" -le $((files + 8)) ]; }
check "all of them leave no open file" until_true 120 over
k delete pod talks --grace-period=1 --timeout=30s >/dev/null
k delete clusterrolebinding reader >/dev/null
k delete serviceaccount reader >/dev/null
