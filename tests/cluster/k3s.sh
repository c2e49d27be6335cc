# Joining as an agent of k3s, and the tunnel. The server is tests/k3s-server: k3s's own tunnel server, the endpoints of its
# supervisor, and this cluster's API server, which reaches nodes that joined so by their tunnels only.

. harness/k3s.sh
server=$k3s_server
# forget NODE: what it has of its membership
forget() { $cluster stop "agent-$1"; rm -rf "$dir/$1/lib/pki" "$dir/$1/lib/k3s-config.json"; : >"$dir/logs/agent-$1.log"; }
steer() { touch "$k3s/$1"; }
unsteer() { rm "$k3s/$1"; }

build || check "the server is built" false
config
cat >"$k3s/egress.yaml" <<YAML
apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections: [{name: cluster, connection: {proxyProtocol: HTTPConnect, transport: {uds: {udsName: $k3s/egress.sock}}}}]
YAML
echo "--egress-selector-config-file=$k3s/egress.yaml" >"$dir/apiserver.flags"
serve
$cluster stop apiserver; api_up
token=$(k3s_token)
hash=${token%%::*} hash=${hash#K10}

machine n7 --server $server --token "K10$(printf '0%.0s' {1..64})::server:secret"
$cluster start agent-n7
check "a server with another CA than the token's is not joined" soon says n7 "its CA is not the one the token was made for"
unsent() { grep -q 'GET /cacerts' "$dir/logs/k3s.log" && ! grep -qE 'authorization="(Basic|Bearer)"' "$dir/logs/k3s.log"; }
check "  and the token not sent" unsent
flags n7 --server $server --token "$token"
for way in redirect endless; do
  steer $way; again n7
  case $way in redirect) said="redirects elsewhere" ;; endless) said="answers with more than" ;; esac
  check "hostile: $way" soon says n7 "$said"
  unsteer $way
done
check "  and the token not sent" unsent
flags n7 --server $server --token "K10$hash::server:wrong"; again n7
check "a wrong password: it says so" soon says n7 "does not accept the token (401)"
flags n7 --server $server --token "$token"
steer not-ready; again n7
check "a server that is not ready is waited for" soon says n7 "is not ready (503"
unsteer not-ready
echo '{"ClusterIPRange": {"IP": "10.244.0.0", "Mask": "AP8="}}' >"$k3s/config.json"; again n7
check "settings it does not understand: it says so" soon says n7 "/v1-k3s/config is not understood"
config
join() {
  on n7 "$(cat "$dir/pikelet")" join --root-dir "$dir/n7/lib" --state-dir "$dir/n7/run" --node-name n7 --node-ip 10.77.0.17 \
    --server $server "$@" >"$dir/said" 2>&1
}
$cluster stop agent-n7
refuses() { ! join --token "$2" && grep -qE "^MISSING +$1" "$dir/said"; }
check "pikelet join finds another CA" refuses 'cluster .*its CA is not the one' "K10$(printf '0%.0s' {1..64})::server:secret"
check "  a wrong password" refuses 'token .*does not accept the token' "K10$hash::server:wrong"
check "  and writes what is right" join --token "$token"
# as a file of `k3s agent` has them
cat >>"$dir/n7/etc/pikelet/config.yaml" <<YAML
node-external-ip: 198.51.100.7
flannel-iface: eth0
snapshotter: native
kubelet-arg:
- max-pods=31
- node-status-update-frequency=5s
- cgroup-driver=systemd
kube-proxy-arg: proxy-mode=ipvs
YAML
flags n7 --event-qps 50
started=$(date +%s%N)
again n7
check "the right token: the node is Ready" soon ready n7
echo "     start to Ready, first join: $((($(date +%s%N) - started) / 1000000)) ms"
check "its password is for root alone" test "$(stat -c %a "$dir/n7/etc/rancher/node/password")" = 600
check "  and its key" test "$(stat -c %a "$dir/n7/lib/pki/kubelet-client-current.pem")" = 600
annotated() { [ "$(k get node n7 -o 'jsonpath={.metadata.annotations.k3s\.io/internal-ip}')" = 10.77.0.17 ]; }
check "annotations for k3s's controllers" annotated
external() {
  [ "$(k get node n7 -o 'jsonpath={.metadata.annotations.k3s\.io/external-ip} {.status.addresses[?(@.type=="ExternalIP")].address}')" = \
    "198.51.100.7 198.51.100.7" ]
}
check "  and its address for others" soon external
check "flags of a kubelet in its file count" eval '[ "$(k get node n7 -o "jsonpath={.status.capacity.pods}")" = 31 ]'
moot() { local name; for name in flannel-iface snapshotter cgroup-driver kube-proxy-arg; do says n7 "$name has no meaning here" || return; done; }
check "  and what has no meaning is named" moot

pod() { k run "$1" --image=$image --restart=Never --overrides="{\"spec\":{\"nodeName\":\"$2\"}}" --command -- sh -c 'echo hello; sleep 100000' >/dev/null; }
pod inside n7
soon is inside .status.phase Running
answers() { [ "$(k exec inside -- echo through 2>&1)" = through ]; }
check "kubectl exec by the tunnel" soon answers
logged() { [ "$(k logs inside)" = hello ]; }
check "kubectl logs" soon logged
k exec inside -- sh -c 'mkdir /www; echo served >/www/index.html; httpd -p 8080 -h /www'
proc_start "$dir/pids" "$dir/logs" forwarded "$(cat "$dir/controlplane")/kubectl" --kubeconfig "$dir/admin.kubeconfig" \
  port-forward inside :8080
forwards() {
  local port; port=$(sed -n 's/.*127.0.0.1:\([0-9]*\) ->.*/\1/p' "$dir/logs/forwarded.log" | head -n 1)
  [ -n "$port" ] && [ "$(curl -fsS -m 5 "http://127.0.0.1:$port/")" = served ]
}
check "kubectl port-forward" soon forwards
proc_stop "$dir/pids" forwarded
resolv() { k exec inside -- cat /etc/resolv.conf; }
named() { resolv | found -x "nameserver 10.96.0.77" && resolv | found "^search default.svc.k3s.test svc.k3s.test k3s.test"; }
check "name server and domain are the server's" named
dump() { k exec inside -- dd if=/dev/zero bs=1M count=200 2>/dev/null | wc -c; }
check "200 MiB come through whole" test "$(dump)" = $((200 << 20))
check "another target is refused" grep -q "connect not allowed" <(tunnel "node=n7&target=127.0.0.1:22&seconds=10")
check "  and one in the network" grep -q "connect not allowed" <(tunnel "node=n7&target=10.77.0.1:6443&seconds=10")
opened() { [ "$(log n7 | grep -c "tunnel open")" = "$1" ]; }
check "  with the tunnel as it was" opened 1
check "  which carries on" answers

before=$(field inside "$container")
unserve
check "without the server there is no way in" not answers
serve
check "when it is back the tunnel is, too" soon answers
check "  and the pod went on" is inside "$container" "$before"
started=$(date +%s%N)
k delete node n7 >/dev/null
again n7
check "started again, a member is Ready" soon ready n7
echo "     start to Ready, as a member: $((($(date +%s%N) - started) / 1000000)) ms"
unserve; again n7
recovers() { on n7 curl -fsS -m 2 http://127.0.0.1:10248/healthz && is inside "$container" "$before"; }
check "started with no server there, it finds its pods" soon recovers
serve
check "  and its server later" soon answers

# a second server of the same cluster
mkdir "$k3s/2" && cp "$k3s"/{server-ca.*,nodes.json,config.json,apiservers.json} "$k3s/2/"
second=https://10.77.0.1:9444
echo '["10.77.0.1:9443","10.77.0.1:9444"]' >"$k3s/apiservers.json"
echo '["10.77.0.1:9444"]' >"$k3s/2/apiservers.json"
proc_start "$dir/pids" "$dir/logs" k3s-2 ip netns exec "pk$PIKELET_CLUSTER_ID-cp" "$k3s/server" -dir "$k3s/2" -pki "$dir/pki" \
  -listen 10.77.0.1:9444 -api https://10.77.0.1:6443 -password secret
to_second() { log n7 | grep "tunnel open" | found $second; }
check "a second server gets a tunnel" until_true 80 to_second
unserve
check "without the first one the second is asked" soon says n7 "requests go to another server from now on"
lease() { k get lease -n kube-node-lease n7 -o 'jsonpath={.spec.renewTime}'; }
renewal=$(lease)
newer() { [ "$(lease)" != "$renewal" ]; }
check "  and the node stays alive" soon newer
check "  with its pods" is inside "$container" "$before"
serve
# servers of before there was a list: the addresses of the Service `kubernetes` are meant, which the API server has
touch "$k3s/legacy" "$k3s/2/legacy"
check "a server that is no longer listed loses its tunnel" until_true 80 says n7 "no longer a server"
proc_stop "$dir/pids" k3s-2
check "  and the first is asked again" soon answers
unsteer legacy
echo '["10.77.0.1:9443"]' >"$k3s/apiservers.json"

mv "$dir/n7/etc/rancher/node/password" "$dir/n7/password"
forget n7; $cluster start agent-n7
check "another password for the same name: it says what to do" soon says n7 "put the machine's old /etc/rancher/node/password back"
cp "$dir/n7/password" "$dir/n7/etc/rancher/node/password"
check "  with the old one it joins" soon answers

variable() { [[ $(K3S_NODE_NAME=a_b "$(cat "$dir/pikelet")" check 2>&1) == *'node name "a_b"'* ]]; }
check "K3S_NODE_NAME is the node's name" variable
machine n8 --max-pods 20
unserve; rm -f "$dir/logs/k3s.log"; serve
for secret in secret abcdef.0123456789abcdef; do
  K3S_URL=$server K3S_TOKEN=$secret $cluster start agent-n8
  check "a bare token ($secret) is for no server that nothing vouches for" soon says n8 "nothing vouches for its CA, and the token does not say"
  check "  and is not sent" unsent
  forget n8
done
flags n8 --max-pods 20 --unsafe-skip-ca-verification
K3S_URL=$server K3S_TOKEN=secret K3S_NODE_NAME=ignored $cluster start agent-n8
check "a bare password, from the variables of k3s, joins if a person says so" soon ready n8
check "  and says that any server is believed" says n8 "whoever answers there gets the token"
forget n8
flags n8 --max-pods 20
echo "K10$hash::abcdef.0123456789abcdef" >"$k3s/token"
K3S_URL=$server K3S_TOKEN_FILE=$k3s/token $cluster start agent-n8
check "a bootstrap token, from a file, joins" soon says n8 "tunnel open"
bearer() { grep -q 'GET /v1-k3s/config authorization="Bearer"' "$dir/logs/k3s.log"; }
check "  as a bearer" bearer
forget n8; steer legacy
flags n8 --server $server --token "$token"; $cluster start agent-n8
check "a server that makes the keys itself is joined" soon says n8 "tunnel open"
unsteer legacy

# certificates of a minute, and pods reached by the server
config cluster
unserve; serve -life 60s
forget n8; $cluster start agent-n8
soon says n8 "tunnel open"
pod short n8
soon is short .status.phase Running
serial() { openssl x509 -in "$dir/n8/lib/pki/kubelet-client-current.pem" -noout -serial; }
shown() { ip netns exec "pk$PIKELET_CLUSTER_ID-cp" openssl s_client -connect 10.77.0.18:10250 </dev/null 2>/dev/null | openssl x509 -noout -serial; }
begin=$(serial) begin_shown=$(shown)
: >"$dir/logs/agent-n8.log"
k exec short -- sh -c 'i=0; while [ $i -lt 70 ]; do echo $i; i=$((i+1)); sleep 1; done; echo whole' >"$dir/exec.out" 2>&1 &
exec_pid=$!
renewed() { [ "$(serial)" != "$begin" ] && [ "$(shown)" != "$begin_shown" ]; }
check "certificates are renewed before they end" soon renewed
wait $exec_pid
check "  no stream was cut" grep -q whole "$dir/exec.out"
check "  no watch was cut" not says n8 "trying again"
egress_label() { [ "$(k get node n8 -o 'jsonpath={.metadata.labels.egress\.k3s\.io/cluster}')" = true ]; }
check "egress mode cluster is offered" egress_label
pid() { cut -d' ' -f1 "$dir/pids/agent-n8"; }
rss() { awk '/VmRSS/ { print $2 }' "/proc/$(pid)/status"; }
# the half-close of a target ends a connection of this protocol: their input stays open
on n8 sh -c 'sleep 60 | busybox nc -l -p 7000 >/dev/null' &
sleep 1
fast=$(tunnel "node=n8&target=10.77.0.18:7000&send=$((200 << 20))&seconds=60")
echo "     200 MiB to a node's port: $fast"
check "a target that reads gets all" grep -q '^whole' <<<"$fast"
on n8 sh -c 'sleep 60 | busybox nc -l -p 7001 | sleep 15' &
sleep 1; first=$(rss)
stalled=$(tunnel "node=n8&target=10.77.0.18:7001&send=$((500 << 20))&seconds=8")
echo "     $stalled; the agent grew by $(($(rss) - first)) KiB"
check "a target that does not read holds up the server, not the agent's memory" test $(($(rss) - first)) -lt 24576
check "  and the server is told to pause" test "$(sed 's/.*sent=\([0-9]*\).*/\1/' <<<"$stalled")" -lt $((64 << 20))
$cluster stop agent-n8
expired() { ! openssl x509 -in "$dir/n8/lib/pki/kubelet-client-current.pem" -noout -checkend 0; }
until_true 70 expired
flags n8 --server $server; : >"$dir/logs/agent-n8.log"; $cluster start agent-n8
check "expired while off, and no token: it says what to do" soon says n8 "no valid certificate and no token"
flags n8 --server $server --token "$token"; again n8
check "with the token it joins again" soon says n8 "tunnel open"
annotation() { k get node n8 -o "jsonpath={.metadata.annotations.k3s\.io/$1}"; }
of_args() { annotation node-args | jq -e 'index("--server") and index("********")' && [[ $(annotation node-config-hash) == ????????*==== ]]; }
check "annotations say how it was started, without the token" soon of_args
in_list() {
  local words; words=$(tr '\0' ' ' <"/proc/$(proc_pid "$dir/pids" agent-n8)/cmdline")
  [[ $words == *--token\ \*\*\*\** ]] && [[ $words != *secret* ]] || { say "$words"; false; }
}
check "  nor does the process list have it" in_list
untold() { ! k get node n8 -o yaml | found "$token"; }
check "  nowhere" untold
config pod
unserve; serve
forget n8; $cluster start agent-n8
soon says n8 "tunnel open"
k apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: List, items: [
 {apiVersion: v1, kind: Pod, metadata: {name: own}, spec: {nodeName: n8, terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: $image, command: [sh, -c, 'while :; do sleep 600 | nc -l -p 7003 >/dev/null; done']}]}},
 {apiVersion: v1, kind: Pod, metadata: {name: host}, spec: {nodeName: n8, hostNetwork: true, terminationGracePeriodSeconds: 1, containers: [
  {name: c, image: $image, ports: [{containerPort: 7004}], command: [sh, -c, 'while :; do sleep 600 | nc -l -p 7004 >/dev/null; done']}]}}]}
YAML
soon is own .status.phase Running; soon is host .status.phase Running
reached() { tunnel "node=n8&target=$1&send=100000&seconds=10" | found '^whole'; }
check "egress mode pod: a pod of the node is reached" soon reached "$(field own .status.podIP):7003"
check "  and a declared port of one that has the node's address" soon reached 10.77.0.18:7004
check "  but no other port of the node" grep -q "connect not allowed" <(tunnel "node=n8&target=10.77.0.18:7005&seconds=10")
check "  nor pods of others" grep -q "connect not allowed" <(tunnel "node=n8&target=$(field inside .status.podIP):8080&seconds=10")
check "  which the Node offers" egress_label
: >"$dir/logs/agent-n8.log"; steer forget-certificates
check "a certificate the server no longer takes is replaced, by the token" soon says n8 "the server gave this node its certificates"
check "  and the node is a member again" k delete pod own host --grace-period=1 --timeout=60s
unsteer forget-certificates
config
unserve; serve
k delete pod inside short --grace-period=1 --timeout=60s >/dev/null
rm "$dir/apiserver.flags"
$cluster stop apiserver; api_up
