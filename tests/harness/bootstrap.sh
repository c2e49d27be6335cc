# Sourced by tests with a cluster that is up: what `kubeadm init` and `kubeadm token create` leave for nodes that join. They
# have k (kubectl) and $dir (the cluster's folder).

# ca_hash: the cluster's CA, as --ca-cert-hash wants it
ca_hash() {
  echo "sha256:$(openssl x509 -in "$dir/pki/ca.crt" -pubkey -noout | openssl pkey -pubin -outform der | sha256sum | cut -d' ' -f1)"
}

# bootstrap_token ID SECRET [signing]: a token as `kubeadm token create` makes it
bootstrap_token() {
  k create secret generic "bootstrap-token-$1" -n kube-system --type=bootstrap.kubernetes.io/token \
    --from-literal=token-id="$1" --from-literal=token-secret="$2" --from-literal=usage-bootstrap-authentication=true \
    --from-literal=usage-bootstrap-signing="${3:-true}" --from-literal=auth-extra-groups=system:bootstrappers:test >/dev/null
}

# applied kubectl create ...: makes an object that may be there already
applied() { "$@" --dry-run=client -o yaml | k apply -f - >/dev/null 2>&1; }

# kubeadm_cluster ID SECRET: nodes may join by that token, and nobody has to approve them
kubeadm_cluster() {
  applied k create role -n kube-public cluster-info --verb=get --resource=configmaps --resource-name=cluster-info
  applied k create rolebinding -n kube-public cluster-info --role=cluster-info --group=system:unauthenticated --user=system:anonymous
  applied k create clusterrolebinding bootstrappers --clusterrole=system:node-bootstrapper --group=system:bootstrappers:test
  applied k create clusterrolebinding approve-bootstrappers --group=system:bootstrappers:test \
    --clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient
  k get configmap -n kube-public cluster-info >/dev/null 2>&1 || k create configmap cluster-info -n kube-public --from-literal=kubeconfig="{apiVersion: v1,
    kind: Config, clusters: [{name: '', cluster: {server: 'https://10.77.0.1:6443', certificate-authority-data: $(base64 -w0 "$dir/pki/ca.crt")}}]}" >/dev/null
  bootstrap_token "$1" "$2"
  until_true 60 token_signed "$1"
}
token_signed() { k get configmap -n kube-public cluster-info -o json | jq -e --arg id "jws-kubeconfig-$1" '.data[$id]'; }
