# The kubelet API's certificate from the cluster's signer (n2), and its client CA from the cluster (n3).

issuer() {
  ip netns exec "pk$PIKELET_CLUSTER_ID-cp" openssl s_client -connect "$1:10250" -CAfile "$dir/pki/ca.crt" \
    -verify_return_error </dev/null 2>/dev/null
}
trusted() { issuer "$1" | found 'Verify return code: 0'; }
check "before approval the certificate is not of the cluster" not trusted 10.77.0.12
asked() { k get csr -o json | jq -r '.items[] | select(.spec.signerName == "kubernetes.io/kubelet-serving") | .metadata.name' | grep .; }
check "n2 asks for a serving certificate" soon asked
k certificate approve $(asked) >/dev/null
check "once approved it shows it, without a restart" soon trusted 10.77.0.12
serial() { issuer 10.77.0.12 | openssl x509 -noout -serial; }
before=$(serial)
$cluster stop agent-n2
$cluster start agent-n2
same() { [ "$(serial)" = "$before" ]; }
check "and again after a restart" soon same
none_asked() { [ "$(asked | wc -l)" = 1 ]; }
check "  with no second request" none_asked
on n2 ip addr add 10.77.0.112/24 dev eth0
agent_with n2 --node-ip 10.77.0.112
asked_times() { [ "$(asked | wc -l)" = "$1" ]; }
check "at another address it asks for a certificate of that" soon asked_times 2
k certificate approve $(asked) >/dev/null
is_for() { issuer "$1" | openssl x509 -noout -ext subjectAltName | found -F "IP Address:$1"; }
check "  and shows it once approved" soon is_for 10.77.0.112
agent_with n2
on n2 ip addr del 10.77.0.112/24 dev eth0
soon asked_times 3
k certificate approve $(asked) >/dev/null
check "  and back again" soon is_for 10.77.0.12
enters() {
  [ "$(ip netns exec "pk$PIKELET_CLUSTER_ID-cp" curl -sk -o /dev/null -w '%{http_code}' --cert "$dir/pki/kubelet-client.crt" \
    --key "$dir/pki/kubelet-client.key" https://10.77.0.13:10250/pods)" = 200 ]
}
check "n3 accepts client certificates of the CA it read from the cluster" soon enters
