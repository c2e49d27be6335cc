# The only node of a cluster, in the emulated machine: its agent, until the machine is ended. $kubeconfig is the admin's, $ca
# the CA of the API server's own certificate.
modprobe -a dummy virtio_net
ip addr add 10.77.0.20/24 dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1
"$PIKELET_BIN" run --kubeconfig "$kubeconfig" --node-name guest --node-ip 10.77.0.20 --client-ca-file "$ca" \
  --root-dir "$TMPDIR/lib" --state-dir "$TMPDIR/run" --pod-logs-dir "$TMPDIR/log" --cluster-cidr 10.244.0.0/16 \
  --cluster-dns 10.96.0.10 --cluster-domain cluster.local --insecure-registry 10.77.0.1:5000 \
  --eviction-hard 'memory.available<50Mi,nodefs.available<1%'
