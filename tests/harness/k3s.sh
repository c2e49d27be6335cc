# Sourced by tests with a cluster that is up ($dir): a server of tests/k3s-server in the control plane's namespace, in $k3s.

k3s=$dir/k3s
k3s_server=https://10.77.0.1:9443
mkdir "$k3s"
# build: makes the server
build() { (cd "$checkout/tests/k3s-server" && GOFLAGS=-p=2 go build -mod=readonly -o "$k3s/server" .); }
# serve [FLAG...]: starts it
serve() {
  proc_start "$dir/pids" "$dir/logs" k3s ip netns exec "pk$PIKELET_CLUSTER_ID-cp" "$k3s/server" -dir "$k3s" -pki "$dir/pki" \
    -listen 10.77.0.1:9443 -api https://10.77.0.1:6443 -password secret -bootstrap-token abcdef.0123456789abcdef "$@"
}
unserve() { proc_stop "$dir/pids" k3s; }
# tunnel QUERY: what the tunnel makes of it
tunnel() { curl -sS -m 60 --unix-socket "$k3s/egress.sock" "http://x/?$1"; }
# config [EGRESS]: what it tells its agents
config() {
  cat >"$k3s/config.json" <<JSON
{"ClusterDNS":"10.96.0.77","ClusterDNSs":["10.96.0.77"],"ClusterDomain":"k3s.test","ClusterIPRange":{"IP":"10.244.0.0","Mask":"//8AAA=="},
 "ClusterIPRanges":[{"IP":"10.244.0.0","Mask":"//8AAA=="}],"ServiceIPRange":{"IP":"10.96.0.0","Mask":"//8AAA=="},"FlannelBackend":"none",
 "EgressSelectorMode":"${1:-agent}","HTTPSPort":9443,"SupervisorPort":9443,"DisableCCM":true,"CipherSuites":null,"Rootless":false}
JSON
}
# k3s_token: the token that vouches for its CA
k3s_token() { until_true 10 test -s "$k3s/server-ca.crt"; echo "K10$(sha256sum <"$k3s/server-ca.crt" | cut -d' ' -f1)::server:secret"; }
echo '["10.77.0.1:9443"]' >"$k3s/apiservers.json"
