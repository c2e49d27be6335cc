# Trust bundles and certificates of pods, by an API server that has both (they are off by default in 1.36).

printf '%s\n' --feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true,PodCertificateRequest=true \
  --runtime-config=certificates.k8s.io/v1beta1=true >"$dir/apiserver.flags"
again_with_flags() {
  $cluster stop apiserver
  api_up
  k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s >/dev/null
}
again_with_flags
soon k get clustertrustbundles

# bundle NAME SIGNER PEM-FILE...
bundle() {
  local name=$1 signer=$2; shift 2
  jq -n --arg name "$name" --arg signer "$signer" --arg pem "$(cat "$@")" \
    '{apiVersion: "certificates.k8s.io/v1beta1", kind: "ClusterTrustBundle", metadata: {name: $name, labels: {use: "test"}},
      spec: ({trustBundle: $pem} + if $signer == "" then {} else {signerName: $signer} end)}' | k apply -f - >/dev/null
}
ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$layout/$1.key" -subj "/CN=$1" -days 1 -out "$layout/$1.crt" 2>/dev/null; }
# projecting NAME SOURCE: a pod with one source at /t
projecting() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000}
  containers: [{name: c, image: "$image", command: [sleep, "1000"], volumeMounts: [{name: t, mountPath: /t}]}]
  volumes: [{name: t, projected: {sources: [$2]}}]
YAML
}
anchors() { k exec "$1" -- cat /t/ca.pem | grep -c BEGIN; }
has_anchors() { [ "$(anchors "$1")" = "$2" ]; }
ca one; ca two
bundle anchors "" "$layout/one.crt"
projecting named '{clusterTrustBundle: {name: anchors, path: ca.pem}}'
projecting signed '{clusterTrustBundle: {signerName: example.com/pods, labelSelector: {matchLabels: {use: test}}, path: ca.pem}}'
projecting without '{clusterTrustBundle: {name: nobody, optional: true, path: ca.pem}}'
soon is named .status.phase Running
check "a trust bundle by its name is in the pod" soon has_anchors named 1
same() { [ "$(k exec named -- cat /t/ca.pem | openssl x509 -noout -fingerprint)" = "$(openssl x509 -in "$layout/one.crt" -noout -fingerprint)" ]; }
check "  the certificate it has" same
owned() { [ "$(k exec named -- stat -L -c '%u %a' /t/ca.pem)" = "1000 600" ]; }
check "  for the user of the pod alone" owned
bundle anchors "" "$layout/one.crt" "$layout/two.crt"
check "a changed one is seen" until_true 5 has_anchors named 2
check "one that is not there is waited for" soon event signed 'matched zero ClusterTrustBundles'
bundle example.com:pods:one example.com/pods "$layout/two.crt"
signed() { is signed .status.phase Running && has_anchors signed 1; }
check "  and found by signer and labels" soon signed
check "an optional one may be missing" soon is without .status.phase Running
check "  and is an empty file" test -z "$(k exec without -- cat /t/ca.pem)"

# requests: those of the pods, as kubectl names them; sign NAME TYPE: what a signer does
requests() { k get podcertificaterequests -o "jsonpath={range .items[?(@.spec.podName==\"$1\")]}{.metadata.name}{\"\n\"}{end}"; }
asked() { [ -n "$(requests "$1")" ]; }
time_of() { openssl x509 -in "$layout/leaf.crt" -noout "-$1" -dateopt iso_8601 | sed 's/.*=//; s/ /T/'; }
sign() {
  local name; name=$(requests "$1")
  k get podcertificaterequest "$name" -o 'jsonpath={.spec.stubPKCS10Request}' | base64 -d |
    openssl req -inform DER -out "$layout/leaf.csr" &&
    openssl x509 -req -in "$layout/leaf.csr" -CA "$layout/one.crt" -CAkey "$layout/one.key" -CAcreateserial -days 1 \
      -out "$layout/leaf.crt" -extfile <(echo "subjectAltName=DNS:$1.example.com") 2>/dev/null
  jq -n --arg chain "$(cat "$layout/leaf.crt")" --arg from "$(time_of startdate)" --arg until "$(time_of enddate)" \
    --arg refresh "$(date -u -d '+12 hours' +%FT%TZ)" --arg now "$(date -u +%FT%TZ)" --arg type "$2" \
    '{status: ({conditions: [{type: $type, status: "True", reason: "Test", message: "by the test", lastTransitionTime: $now}]}
      + if $type == "Issued" then {certificateChain: $chain, notBefore: $from, notAfter: $until, beginRefreshAt: $refresh} else {} end)}' \
    >"$layout/status.json"
  k patch podcertificaterequest "$name" --subresource=status --type=merge --patch-file "$layout/status.json" >/dev/null
}
certificate='{podCertificate: {signerName: example.com/pods, keyType: ED25519, credentialBundlePath: both.pem, keyPath: key.pem, certificateChainPath: chain.pem}}'
projecting mine "$certificate"
projecting denied "$certificate"
projecting odd "${certificate/ED25519/RSA3072}"
check "a pod with a certificate waits until it is issued" soon event mine 'waiting for a certificate of signer example.com/pods'
check "  a signer is asked for it" soon asked mine
sign mine Issued
check "  and the pod starts when it has signed" soon is mine .status.phase Running
fits() {
  local key; key=$(k exec mine -- cat /t/key.pem | openssl pkey -pubout) &&
    [ "$key" = "$(k exec mine -- cat /t/chain.pem | openssl x509 -noout -pubkey)" ] &&
    [ "$(k exec mine -- cat /t/both.pem)" = "$(k exec mine -- cat /t/key.pem /t/chain.pem)" ] &&
    k exec mine -- cat /t/chain.pem | openssl verify -CAfile "$layout/one.crt" >/dev/null
}
check "  key and certificate belong together" fits
before=$(k exec mine -- cat /t/both.pem)
$cluster stop agent-n1 KILL
$cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
sleep 3
kept() { [ "$(k exec mine -- cat /t/both.pem)" = "$before" ] && [ "$(requests mine | wc -l)" = 1 ]; }
check "  another agent keeps it" soon kept
soon asked denied
for name in $(requests denied); do k delete podcertificaterequest "$name" >/dev/null; done
soon asked denied
sign denied Denied
check "a signer that says no is heard" soon event denied 'was denied: Test: by the test'
check "a kind of key this agent cannot make is said" soon event odd 'keyType RSA3072: this agent makes'
k delete pod named signed without mine denied odd --grace-period=1 --timeout=60s >/dev/null
k delete clustertrustbundle --all >/dev/null
rm "$dir/apiserver.flags"
again_with_flags
