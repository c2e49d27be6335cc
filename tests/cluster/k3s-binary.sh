# Joining real k3s servers, whose program PIKELET_K3S names: two of them on one etcd, in network namespaces of their own (those
# of n10 and n12), without agents. Not part of `make test`: no registry of modules or packages has that program.

[ -x "${PIKELET_K3S:-}" ] || fail "k3s-binary: PIKELET_K3S is to name the program of k3s"
parts=$(cat "$dir/controlplane")
# every server before 1.24 reaches its agents so
egress=$("$PIKELET_K3S" server --help | found -- --egress-selector-mode && echo --egress-selector-mode=agent)
# real_server NODE ADDRESS: starts one there
real_server() {
  mkdir -p "$dir/k3s-$1"
  proc_start "$dir/pids" "$dir/logs" "k3s-$1" nsenter --target "$(proc_pid "$dir/pids" "mounts-$1")" --mount --net \
    "$PIKELET_K3S" server --disable-agent --data-dir "$dir/k3s-$1" --write-kubeconfig "$dir/k3s-$1/kubeconfig" \
    --datastore-endpoint http://10.77.0.20:2479 --token real --node-ip "$2" --advertise-address "$2" --tls-san "$2" \
    --bind-address "$2" --flannel-backend=none --disable-network-policy \
    --disable traefik,servicelb,metrics-server,local-storage,coredns $egress
}
# r COMMAND...: kubectl for the server that is asked
r() { on "$asked" "$parts/kubectl" --kubeconfig "$dir/k3s-$asked/kubeconfig" "$@"; }
is_ready() { [ "$(r get node n11 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
machine n10 --max-pods 1
machine n12 --max-pods 1
machine n11 --server https://10.77.0.20:6443 --token wrong --unsafe-skip-ca-verification
proc_start "$dir/pids" "$dir/logs" etcd-n10 nsenter --target "$(proc_pid "$dir/pids" mounts-n10)" --net "$parts/etcd" \
  --data-dir "$dir/k3s-etcd" --listen-client-urls http://10.77.0.20:2479 --advertise-client-urls http://10.77.0.20:2479 \
  --listen-peer-urls http://127.0.0.1:2480 --initial-advertise-peer-urls http://127.0.0.1:2480 --initial-cluster default=http://127.0.0.1:2480
real_server n10 10.77.0.20
asked=n10
check "k3s is ready" until_true 120 r get --raw /readyz
"$PIKELET_K3S" --version | sed 's/^/     /;q'

again n11
check "a wrong token: it says so" soon says n11 "does not accept the token"
token=$(cat "$dir/k3s-n10/server/node-token")
flags n11 --server https://10.77.0.20:6443 --token "K10$(printf '0%.0s' {1..64})${token#K10????????????????????????????????????????????????????????????????}"
again n11
check "a token of another CA: it says so" soon says n11 "its CA is not the one the token was made for"
flags n11 --server https://10.77.0.20:6443 --token "$token" --node-label room=kitchen
started=$(date +%s%N)
again n11
check "the server's token: the node is Ready" until_true 60 is_ready
echo "     start to Ready, first join: $((($(date +%s%N) - started) / 1000000)) ms"
labelled() { [ "$(r get node n11 -o 'jsonpath={.metadata.labels.room}')" = kitchen ]; }
check "  with its label" labelled
until_true 60 r get serviceaccount default

r apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: "$image"
        command: [sh, -c, "echo hello; mkdir /www; echo page >/www/index.html; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
YAML
check "a Deployment is rolled out" r rollout status deployment/web --timeout=90s
served() { [ "$(r get endpoints web -o 'jsonpath={.subsets[0].addresses[*].ip}' | wc -w)" = 2 ]; }
check "  its Service has both addresses" soon served
tunnelled() {
  local port=$((20000 + RANDOM % 12000)) forward
  [ "$(r logs deploy/web)" = hello ] && [ "$(r exec deploy/web -- echo through)" = through ] || return 1
  rm -f "$dir/forward"
  r port-forward deploy/web $port:8080 >"$dir/forward" 2>&1 & forward=$!
  until_true 30 grep -q Forwarding "$dir/forward"
  [ "$(nsenter --target "$(proc_pid "$dir/pids" "mounts-$asked")" --net curl -fsS -m 10 "http://127.0.0.1:$port/")" = page ]
  local found=$?
  kill $forward; wait $forward 2>/dev/null
  return $found
}
check "kubectl logs, exec and port-forward by the tunnel" until_true 30 tunnelled
summary() { r get --raw /api/v1/nodes/n11/proxy/stats/summary | jq -e '.pods | length == 2' >/dev/null; }
check "  and the statistics that kubectl top is made of" soon summary
ids=$(r get pods -o 'jsonpath={.items[*].status.containerStatuses[0].containerID}')

proc_stop "$dir/pids" k3s-n10
real_server n10 10.77.0.20
check "the server starts again: ready" until_true 120 r get --raw /readyz
check "  the node too" until_true 60 is_ready
check "  the tunnel as well" until_true 60 tunnelled

# k3s makes its serving certificate anew when that is gone
serving() { nsenter --target "$(proc_pid "$dir/pids" mounts-n10)" --net openssl s_client -connect 10.77.0.20:6443 </dev/null 2>/dev/null | openssl x509 -noout -serial; }
old=$(serving)
proc_stop "$dir/pids" k3s-n10
rm -f "$dir"/k3s-n10/server/tls/{serving-kube-apiserver.*,dynamic-cert.json}
real_server n10 10.77.0.20
until_true 120 r get --raw /readyz
r -n kube-system delete secret k3s-serving >/dev/null 2>&1
proc_stop "$dir/pids" k3s-n10; rm -f "$dir/k3s-n10/server/tls/dynamic-cert.json"; real_server n10 10.77.0.20
until_true 120 r get --raw /readyz
renewed() { [ -n "$(serving)" ] && [ "$(serving)" != "$old" ]; }
check "the server has another certificate of its CA" until_true 30 renewed
check "  which the node takes" until_true 60 tunnelled

real_server n12 10.77.0.22
asked=n12
check "a second server is ready" until_true 120 r get --raw /readyz
to_second() { log n11 | grep "tunnel open" | found 10.77.0.22; }
check "  and gets a tunnel, with nobody telling the node" until_true 90 to_second
check "  kubectl by that one" until_true 60 tunnelled
proc_stop "$dir/pids" k3s-n10
check "without the first one the node goes over to it" soon says n11 "requests go to another server from now on"
sleep 45
check "  and stays Ready" is_ready
check "  kubectl goes on" until_true 60 tunnelled
same() { [ "$(r get pods -o 'jsonpath={.items[*].status.containerStatuses[0].containerID}')" = "$ids" ]; }
check "nothing was restarted meanwhile" same

mv "$dir/n11/etc/rancher/node/password" "$dir/n11/password"
$cluster stop agent-n11
rm -rf "$dir/n11/lib/pki"
flags n11 --server https://10.77.0.22:6443 --token "$token"
again n11
check "another password for the same name: it says what to do" soon says n11 "put the machine's old /etc/rancher/node/password back"
cp "$dir/n11/password" "$dir/n11/etc/rancher/node/password"
again n11
check "  which helps" until_true 60 is_ready
r delete deployment,service web --timeout=60s >/dev/null
no_pods() { [ -z "$(r get pods -o name)" ]; }
check "its pods end" soon no_pods
$cluster stop agent-n11
for name in k3s-n12 etcd-n10; do proc_stop "$dir/pids" $name; done
