# Joining a real k3s server, whose program PIKELET_K3S names: in a network namespace of its own (that of n10), without an agent.

[ -x "${PIKELET_K3S:-}" ] || fail "k3s-binary: PIKELET_K3S is to name the program of k3s"
data=$dir/k3s-binary
mkdir "$data"
$cluster add n10 --max-pods 1
proc_start "$dir/pids" "$dir/logs" k3s nsenter --target "$(proc_pid "$dir/pids" mounts-n10)" --mount --net \
  "$PIKELET_K3S" server --disable-agent --data-dir "$data" --write-kubeconfig "$data/kubeconfig" --node-ip 10.77.0.20 \
  --advertise-address 10.77.0.20 --tls-san 10.77.0.20 --flannel-backend=none --disable-network-policy \
  --disable traefik,servicelb,metrics-server,local-storage,coredns --egress-selector-mode=agent
k3s_kubectl() { on n10 "$(cat "$dir/controlplane")/kubectl" --kubeconfig "$data/kubeconfig" "$@"; }
check "k3s is ready" until_true 120 k3s_kubectl get --raw /readyz
$cluster add n11 --server https://10.77.0.20:6443 --token "$(cat "$data/server/node-token")"
cp -a /etc "$dir/n11/etc" && rm -rf "$dir/n11/etc/rancher" && on n11 mount --bind "$dir/n11/etc" /etc
$cluster start agent-n11
check "the node is Ready" k3s_kubectl wait --for=condition=Ready node/n11 --timeout=60s
until_true 60 k3s_kubectl get serviceaccount default
k3s_kubectl run real --image=$image --restart=Never --command -- sh -c 'echo hello; sleep 100000'
check "its pods run" k3s_kubectl wait --for=jsonpath=.status.phase=Running pod/real --timeout=60s
real_logs() { [ "$(k3s_kubectl logs real)" = hello ]; }
real_exec() { [ "$(k3s_kubectl exec real -- echo through)" = through ]; }
check "kubectl logs by the tunnel" soon real_logs
check "kubectl exec by the tunnel" soon real_exec
k3s_kubectl delete pod real --grace-period=1 --timeout=60s >/dev/null
