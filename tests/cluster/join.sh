# Joining as kubeadm does: discovery, bootstrap tokens, certificates by the cluster's signer, and their renewal.

url=https://10.77.0.1:6443
current() { echo "$dir/$1/lib/pki/kubelet-client-current.pem"; }
serial() { openssl x509 -in "$(current "$1")" -noout -serial; }
requests() { k get csr -o json | jq -r '.items[] | select(.spec.signerName == "kubernetes.io/kube-apiserver-client-kubelet")
  | select(.spec.request | @base64d | length > 0) | select(.status.conditions == null) | .metadata.name' | grep .; }
hash=$(ca_hash)
token=abcdef.0123456789abcdef

$cluster add n4 --server $url --token $token --ca-cert-hash "$hash"
$cluster start agent-n4
check "strangers may not read cluster-info: it says so" soon says n4 "does not show kube-public/cluster-info to strangers"
k create role -n kube-public cluster-info --verb=get --resource=configmaps --resource-name=cluster-info >/dev/null
k create rolebinding -n kube-public cluster-info --role=cluster-info --group=system:unauthenticated --user=system:anonymous >/dev/null
check "there is none: it says so" soon says n4 "has no ConfigMap cluster-info"
k create configmap cluster-info -n kube-public --from-literal=kubeconfig="$(cat <<YAML
apiVersion: v1
kind: Config
clusters: [{name: "", cluster: {server: "$url", certificate-authority-data: $(base64 -w0 "$dir/pki/ca.crt")}}]
YAML
)" >/dev/null
check "not signed: it says so" soon says n4 "cluster-info is not signed for the token abcdef"
bootstrap_token abcdef fedcba9876543210
check "signed with another secret: it says so" soon says n4 "was not made with this token (abcdef)"
k delete secret -n kube-system bootstrap-token-abcdef >/dev/null
flags n4 --server $url --token $token --ca-cert-hash "sha256:$(printf '0%.0s' {1..64})"
bootstrap_token abcdef 0123456789abcdef
signed() { k get configmap -n kube-public cluster-info -o json | jq -e '.data["jws-kubeconfig-abcdef"]'; }
soon signed
again n4
check "a CA with another hash is not joined" soon says n4 "none of the hashes of --ca-cert-hash"
flags n4 --server $url --token $token --ca-cert-hash "$hash"
again n4
check "a token without rights: it says so" soon says n4 "cannot create resource"
k create clusterrolebinding bootstrappers --clusterrole=system:node-bootstrapper --group=system:bootstrappers:test >/dev/null
check "nobody approves: it says what to do" soon says n4 "waiting for approval: kubectl certificate approve node-csr-"
first=$(requests)
# as a service manager hears it
proc_start "$dir/pids" "$dir/logs" notify-n4 python3 -c '
import socket, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(sys.argv[1])
while True: print(manager.recv(4096).decode(), flush=True)' "$dir/notify"
soon test -S "$dir/notify"
NOTIFY_SOCKET=$dir/notify again n4
heard() { grep -qx "$1" "$dir/logs/notify-n4.log"; }
check "after a restart it waits for the same request" soon says n4 "kubectl certificate approve $first"
check "  and is not up for its service manager" eval 'heard "STATUS=joining the cluster" && ! heard READY=1'
k certificate deny "$first" >/dev/null
check "denied: it says so" soon says n4 "request $first was refused (Denied)"
another() { [ "$(requests)" != "$first" ] && requests; }
check "  and asks again, with another key" soon another
k certificate approve "$(requests)" >/dev/null
check "approved: the node is Ready" soon ready n4
check "  and up for its service manager" soon heard READY=1
proc_stop "$dir/pids" notify-n4
check "its key is for root alone" test "$(stat -c %a "$(current n4)")" = 600
check "  and its certificate of the cluster's CA" openssl verify -CAfile "$dir/pki/ca.crt" "$(current n4)"

k create clusterrolebinding approve-bootstrappers --group=system:bootstrappers:test \
  --clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient >/dev/null
k create clusterrolebinding approve-nodes --group=system:nodes \
  --clusterrole=system:certificates.k8s.io:certificatesigningrequests:selfnodeclient >/dev/null

# someone between the node and its server, with a certificate of their own
cat >"$dir/stranger.py" <<'PY'
import http.server, json, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.command, self.path, dict(self.headers), flush=True)
        if sys.argv[4] == "redirect":
            self.send_response(302); self.send_header("Location", "https://10.77.0.1:6443" + self.path); self.end_headers(); return
        try:
            if sys.argv[4] == "endless":
                self.send_response(200); self.end_headers()
                while True: self.wfile.write(b" " * 65536)
            data = {"kubeconfig": open(sys.argv[3]).read(), "jws-kubeconfig-abcdef": "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9..AAAA"}
            body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "data": data}).encode()
            self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
            self.wfile.write(body)
        except OSError: pass
    do_POST = do_GET
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("10.77.0.1", int(sys.argv[2])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(sys.argv[1] + ".crt", sys.argv[1] + ".key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
PY
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$dir/pki/stranger.key" -out "$dir/pki/stranger.crt" \
  -days 2 -subj /CN=stranger -addext subjectAltName=IP:10.77.0.1 2>/dev/null
cat >"$dir/stranger.yaml" <<YAML
{apiVersion: v1, kind: Config, clusters: [{name: "", cluster: {server: "https://10.77.0.1:7443",
  certificate-authority-data: $(base64 -w0 "$dir/pki/stranger.crt")}}]}
YAML
port=7443
for way in forged redirect endless; do
  proc_start "$dir/pids" "$dir/logs" "stranger-$way" ip netns exec "pk$PIKELET_CLUSTER_ID-cp" \
    python3 "$dir/stranger.py" "$dir/pki/stranger" $port "$dir/stranger.yaml" $way
  port=$((port + 1))
done
$cluster add n5 --server https://10.77.0.1:7443 --token $token
$cluster start agent-n5
check "a stranger's cluster-info is not believed" soon says n5 "was not made with this token"
flags n5 --server https://10.77.0.1:7444 --token $token; again n5
check "a redirect is not followed" soon says n5 "redirects elsewhere"
flags n5 --server https://10.77.0.1:7445 --token $token; again n5
check "an answer without end is not taken" soon says n5 "answers with more than"
untold() { ! grep -qiE 'authorization|0123456789abcdef' "$dir"/logs/stranger-*.log && grep -q cluster-info "$dir/logs/stranger-forged.log"; }
check "  and none of them was sent the token" untold
for way in forged redirect endless; do proc_stop "$dir/pids" "stranger-$way"; done

flags n5 --server $url --token $token --ca-cert-hash "$hash"
$cluster stop apiserver
again n5
check "with no server there it says so" soon says n5 "onnection refused"
api_up
check "  and joins once it is" soon ready n5

# a board that believes it is 1970, until a time server is reached
$cluster stop agent-n5
rm -r "$dir/n5/lib/pki" "$dir/n5/lib/kubeconfig"; : >"$dir/logs/agent-n5.log"
faketime=$(dpkg -L libfaketime | grep '/libfaketimeMT.so.1$')
echo '@1970-01-02 00:00:00' >"$dir/time"
LD_PRELOAD=$faketime FAKETIME_TIMESTAMP_FILE=$dir/time NO_FAKE_STAT=1 FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 $cluster start agent-n5
check "a clock of 1970 is waited for" soon says n5 "the clock of this machine says 1970-01-0"
seen() { log n5 | found -F "this machine has seen $(date -u +%Y)-" && log n5 | found -F "$dir/n5/lib/time is of then"; }
check "  as it was later when the agent ended" soon seen
check "  and what time the server has is said" says n5 "$url says it is $(date -u +%Y)-"
untouched() { [ "$(log n5 | grep -c 'waiting for time')" = 1 ]; }
check "  once" untouched
echo +0 >"$dir/time"
joined() { says n5 "joined: the cluster gave this node a certificate"; }
check "  and once it is right the node joins, without a restart" soon joined
check "  Ready" soon ready n5

# certificates of a minute: renewed, expired
echo --cluster-signing-duration=60s >"$dir/controller-manager.flags"
$cluster stop controller-manager; $cluster start controller-manager
sed "s/^users:.*/users: [{name: admin, user: {token: $token}}]/; s/user: admin/user: admin/" "$dir/admin.kubeconfig" |
  sed "s|server: \"[^\"]*\"|server: \"$url\"|" >"$dir/bootstrap.kubeconfig"
$cluster add n6 --bootstrap-kubeconfig "$dir/bootstrap.kubeconfig"
started=$(date +%s%N)
$cluster start agent-n6
check "a bootstrap kubeconfig joins as well" soon ready n6
echo "     start to Ready with a new certificate: $((($(date +%s%N) - started) / 1000000)) ms"
k run long --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n6"}}' --command -- sh -c 'while sleep 1; do date; done' >/dev/null
soon is long .status.phase Running
begin=$(serial n6)
k exec long -- sh -c 'i=0; while [ $i -lt 70 ]; do echo $i; i=$((i+1)); sleep 1; done; echo whole' >"$dir/exec.out" 2>&1 &
exec_pid=$!
renewed() { [ "$(serial n6)" != "$begin" ]; }
check "the certificate is renewed before it ends" soon renewed
second=$(serial n6)
renewed_again() { [ "$(serial n6)" != "$second" ]; }
check "  and again" soon renewed_again
wait $exec_pid
check "  no stream was cut" grep -q whole "$dir/exec.out"
check "  no watch was cut" not says n6 "trying again"
k run after --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n6"}}' --command -- true >/dev/null
check "  and new pods run" soon is after .status.phase Succeeded
$cluster stop agent-n6
mv "$dir/bootstrap.kubeconfig" "$dir/away.kubeconfig"
expired() { ! openssl x509 -in "$(current n6)" -noout -checkend 0; }
until_true 70 expired
: >"$dir/logs/agent-n6.log"; $cluster start agent-n6
check "expired while off, and nothing to join with: it says so" soon says n6 "has no valid certificate, and so no other way to join"
mv "$dir/away.kubeconfig" "$dir/bootstrap.kubeconfig"
back() { says n6 "joined: the cluster gave this node a certificate" && ready n6; }
check "once the bootstrap kubeconfig is there again it joins, without a restart" soon back
check "  and its pods went on" is long "$restarts" 0
k delete pod long after --grace-period=1 --timeout=60s >/dev/null
rm "$dir/controller-manager.flags"
$cluster stop controller-manager; $cluster start controller-manager
