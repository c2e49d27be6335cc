# A node whose API server, or another machine, speaks against it: what it says, and that pods go on.

bin=$(cat "$dir/pikelet")
# signed NAME CA SUBJECT: a client certificate by that CA, and FILE: a kubeconfig with it
signed() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$dir/pki/$1.key" -subj "$3" 2>/dev/null |
    openssl x509 -req -CA "$dir/pki/$2.crt" -CAkey "$dir/pki/$2.key" -CAcreateserial -days 2 -out "$dir/pki/$1.crt" \
      -extfile <(echo extendedKeyUsage=clientAuth,serverAuth; echo subjectAltName=IP:10.77.0.1) 2>/dev/null
}
user() {
  jq -n --arg ca "$(base64 -w0 "$dir/pki/ca.crt")" --arg crt "$(base64 -w0 "$dir/pki/$1.crt")" --arg key "$(base64 -w0 "$dir/pki/$1.key")" \
    '{apiVersion: "v1", kind: "Config", "current-context": "t", contexts: [{name: "t", context: {cluster: "t", user: "t"}}],
      clusters: [{name: "t", cluster: {server: "https://10.77.0.1:6443", "certificate-authority-data": $ca}}],
      users: [{name: "t", user: {"client-certificate-data": $crt, "client-key-data": $key}}]}' >"$dir/$1.kubeconfig"
}
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$dir/pki/ca2.key" -out "$dir/pki/ca2.crt" -days 2 \
  -subj /CN=another 2>/dev/null
signed revoked ca2 /O=system:nodes/CN=system:node:n14; user revoked
signed outsider ca /O=system:others/CN=system:node:n14; user outsider
signed other-server ca2 /CN=kube-apiserver

machine n14 --kubeconfig "$dir/revoked.kubeconfig"
$cluster start agent-n14
check "a certificate the API server does not take: it says so" soon says n14 "does not take this node's certificate"
often() { [ "$(log n14 | grep -c "node not registered.*does not take this")" = 1 ]; }
sleep 3
check "  once" often
flags n14 --kubeconfig "$dir/outsider.kubeconfig"; again n14
check "a user without a node's rights: it says what a node has to be" soon says n14 "has to be system:node:<node name> in the group system:nodes"
$cluster stop agent-n14

kubeadm_cluster qrstuv 0123456789abcdef
way=(--server https://10.77.0.1:6443 --ca-cert-hash "$(ca_hash)" --cluster-cidr 10.244.0.0/16)
token=qrstuv.0123456789abcdef current=$dir/n15/lib/pki/kubelet-client-current.pem
$cluster add n15 "${way[@]}" --token $token
$cluster start agent-n15
soon ready n15
k run endures --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n15"}}' --command -- sleep 100000 >/dev/null
soon is endures .status.phase Running
before=$(field endures "$container")
$cluster stop agent-n15
# what it has when the CA of clients was replaced while it was off
signed replaced ca2 /O=system:nodes/CN=system:node:n15
cat "$dir/pki/replaced.crt" "$dir/pki/replaced.key" >"$current"
flags n15 "${way[@]}"; again n15
check "one that is no longer taken, and no token: it says what to do" soon says n15 "does not take this node's certificate; this node has no valid certificate and no token: give it one with --token"
flags n15 "${way[@]}" --token zzzzzz.0123456789abcdef; again n15
check "  another token than the cluster's: it says so" soon says n15 "is not signed for the token zzzzzz"
joinable() {
  on n15 "$bin" join --dry-run --root-dir "$dir/n15/lib" --state-dir "$dir/n15/run" --node-name n15 "${way[@]:0:4}" --token $token >"$dir/said" 2>&1 &&
    grep -q 'its certificate is no longer accepted' "$dir/said" && grep -qE '^ok +token +accepted' "$dir/said"
}
check "  pikelet join sees it, and a token that would do" joinable
flags n15 "${way[@]}" --token $token; again n15
check "  by the right token it gets another one" soon says n15 "joined: the cluster gave this node a certificate"
check "  of the cluster's CA" openssl verify -CAfile "$dir/pki/ca.crt" "$current"
check "  its pods went on" is endures "$container" "$before"
check "  and it is their node again" k delete pod endures --grace-period=1 --timeout=60s
$cluster stop agent-n15

k run keeps --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n1"}}' --command -- sleep 100000 >/dev/null
soon is keeps .status.phase Running
before=$(field keeps "$container")
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/n14/etc/machine-id"
proc_start "$dir/pids" "$dir/logs" agent-n14 nsenter --target "$(proc_pid "$dir/pids" mounts-n14)" --mount --net "$bin" run \
  --kubeconfig "$dir/n1/kubeconfig" --node-name n1 --node-ip 10.77.0.24 --root-dir "$dir/n14/lib" --state-dir "$dir/n14/run" \
  --pod-logs-dir "$dir/n14/log" --cgroup-root "pk$PIKELET_CLUSTER_ID-n14" --insecure-registry 10.77.0.1:5000 -v 4
: >"$dir/logs/agent-n14.log"
check "another board with the name of a node that is up does not become it" until_true 30 says n14 "another machine is this Node, and up"
address() { [ "$(k get node n1 -o 'jsonpath={.status.addresses[0].address}')" = "$1" ]; }
none() { [ -z "$(on n14 "$bin" ps --state-dir "$dir/n14/run" -o json | jq -r '.items[]?.metadata.name')" ]; }
check "  its pods are not run twice" none
check "  and the Node stays as it was" address 10.77.0.11
$cluster stop agent-n1
check "  once that one is down it takes its place" until_true 60 says n14 "takes the place of another machine"
check "  as its Node" until_true 20 address 10.77.0.24
on n14 "$bin" drain-local --state-dir "$dir/n14/run"
$cluster start agent-n1
check "  and the first has it back when the other is gone" until_true 60 address 10.77.0.11
k delete pod keeps --grace-period=1 --timeout=60s >/dev/null

k run stands --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n2"}}' --command -- sleep 100000 >/dev/null
soon is stands .status.phase Running
before=$(field stands "$container")
printf '%s\n' --tls-cert-file="$dir/pki/other-server.crt" --tls-private-key-file="$dir/pki/other-server.key" >"$dir/apiserver.flags"
: >"$dir/logs/agent-n2.log"
$cluster stop apiserver; $cluster start apiserver
check "a server of another CA: it says so" until_true 60 says n2 "of another CA than the one this node joined with"
rm "$dir/apiserver.flags"
$cluster stop apiserver; api_up
check "  with the right one again the node is Ready" soon ready n2
check "  and its pods went on" is stands "$container" "$before"
k delete pod stands --grace-period=1 --timeout=60s >/dev/null
