#!/usr/bin/env bash
# A Kubernetes cluster on one machine, in network namespaces of its own: a real control plane and pikelet nodes.
#
#   cluster.sh up [NODES]              starts it (default 2 nodes; 0: control plane only), prints `export KUBECONFIG=...`
#   cluster.sh down                    drains and removes everything; what was left behind is reported as an error
#   cluster.sh add NODE [FLAG...]      one more node, its agent not started; FLAGs instead of a kubeconfig and addresses
#   cluster.sh kubectl ...             as the cluster's admin; KUBECTL names another program
#   cluster.sh start|stop NAME [SIGNAL]  one process: etcd apiserver controller-manager scheduler agent-n1 ...
#   cluster.sh cut NODE                ends all of a node at once and leaves what a reboot leaves; its agent is not started
#   cluster.sh logs NAME               what it said
#
# PIKELET_CLUSTER_ID (at most 6 letters) tells clusters of one machine apart.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/common.sh"

id=${PIKELET_CLUSTER_ID:-t}
[ ${#id} -le 6 ] || fail "PIKELET_CLUSTER_ID=$id is longer than 6 letters"
dir=/tmp/pikelet-cluster-$id
pki=$dir/pki
pids=$dir/pids
logs=$dir/logs
cp_ip=10.77.0.1
registry=$cp_ip:5000

ns() { echo "pk$id-$1"; }
node_ip() { echo "10.77.0.$((10 + ${1#n}))"; }
nodes() { cat "$dir/nodes" 2>/dev/null; }
kubectl() { "${KUBECTL:-$(cat "$dir/controlplane")/kubectl}" --kubeconfig "$dir/admin.kubeconfig" "$@"; }

# certificate NAME SUBJECT [SAN]: EC key and certificate signed by the cluster's CA
certificate() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/$1.key" &&
    openssl req -new -key "$pki/$1.key" -subj "$2" -out "$pki/$1.csr" &&
    openssl x509 -req -in "$pki/$1.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days 7 \
      -out "$pki/$1.crt" -extfile <(
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=serverAuth,clientAuth"
        [ -z "${3:-}" ] || echo "subjectAltName=$3"
      ) 2>>"$logs/openssl.log" || fail "certificate $1: see $logs/openssl.log"
}

# kubeconfig FILE NAME SERVER: for the holder of certificate NAME
kubeconfig() {
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "$3", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}}]
contexts: [{name: test, context: {cluster: test, user: $2}}]
users: [{name: $2, user: {client-certificate-data: $(base64 -w0 "$pki/$2.crt"), client-key-data: $(base64 -w0 "$pki/$2.key")}}]
YAML
}

certificates() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/ca.key" &&
    openssl req -x509 -new -key "$pki/ca.key" -subj /CN=pikelet-test-ca -days 7 -out "$pki/ca.crt" || fail "making the CA"
  certificate apiserver /CN=kube-apiserver "IP:$cp_ip,IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  certificate admin /O=system:masters/CN=admin
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate front-proxy-client /CN=front-proxy-client
  certificate metrics-server /CN=metrics-server
  certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/sa.key"
  openssl ec -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>>"$logs/openssl.log"
  local node
  for node in $(nodes); do certificate "$node" "/O=system:nodes/CN=system:node:$node"; done
}

# namespace NAME: with its loopback up
namespace() { ip netns add "$(ns "$1")" && ip -n "$(ns "$1")" link set lo up || fail "making network namespace $(ns "$1")"; }

# join NAME ADDRESS: connects the namespace to the switch
join() {
  ip -n "$(ns sw)" link add "$1" type veth peer name eth0 netns "$(ns "$1")" &&
    ip -n "$(ns sw)" link set "$1" master br0 up &&
    ip -n "$(ns "$1")" addr add "$2/24" dev eth0 &&
    ip -n "$(ns "$1")" link set eth0 up || fail "joining $(ns "$1") to the switch"
}

network() {
  namespace sw
  ip -n "$(ns sw)" link add br0 type bridge && ip -n "$(ns sw)" link set br0 up || fail "making the switch"
  namespace cp; join cp $cp_ip
  local node
  for node in $(nodes); do plug "$node"; done
}

# plug NODE: its network namespace, at the switch
plug() {
  namespace "$1"; join "$1" "$(node_ip "$1")"
  ip -n "$(ns "$1")" route add default via $cp_ip
}

# routes: every node's pod range, on all other nodes and the control plane
routes() {
  local a b range
  for b in $(nodes); do
    until_true 30 has_range "$b" || fail "node $b got no podCIDR in 30 s"
    range=$(kubectl get node "$b" -o 'jsonpath={.spec.podCIDR}')
    for a in cp $(nodes); do
      [ "$a" = "$b" ] || ip -n "$(ns "$a")" route replace "$range" via "$(node_ip "$b")"
    done
  done
}
has_range() { [ -n "$(kubectl get node "$1" -o 'jsonpath={.spec.podCIDR}')" ]; }

# launch NAME: starts one of the cluster's processes
launch() {
  local name=$1 bin node
  bin=$(cat "$dir/controlplane")
  proc_pid "$pids" "$name" >/dev/null && return
  local in_cp=(ip netns exec "$(ns cp)")
  case $name in
    etcd) proc_start "$pids" "$logs" etcd "${in_cp[@]}" "$bin/etcd" --data-dir "$dir/etcd" --unsafe-no-fsync \
      --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
      --listen-peer-urls http://127.0.0.1:2380 --log-level warn ;;
    apiserver)
      local more=()
      [ ! -e "$dir/apiserver.flags" ] || mapfile -t more <"$dir/apiserver.flags"
      proc_start "$pids" "$logs" apiserver "${in_cp[@]}" "$bin/kube-apiserver" \
      --authorization-mode=Node,RBAC --enable-bootstrap-token-auth --enable-admission-plugins=NodeRestriction --client-ca-file="$pki/ca.crt" \
      --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
      --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range=10.96.0.0/16 \
      --service-account-issuer=https://kubernetes.default.svc.cluster.local \
      --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
      --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
      --kubelet-preferred-address-types=InternalIP --bind-address=$cp_ip --advertise-address=$cp_ip --secure-port=6443 \
      --cert-dir="$dir/apiserver" --allow-privileged=true --enable-aggregator-routing \
      --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client \
      --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
      --requestheader-extra-headers-prefix=X-Remote-Extra- \
      --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" "${more[@]}" ;;
    controller-manager)
      local more=()
      [ ! -e "$dir/controller-manager.flags" ] || mapfile -t more <"$dir/controller-manager.flags"
      proc_start "$pids" "$logs" controller-manager "${in_cp[@]}" "$bin/kube-controller-manager" \
      --kubeconfig="$dir/controller-manager.kubeconfig" --allocate-node-cidrs --cluster-cidr=10.244.0.0/16 \
      --node-cidr-mask-size=24 --service-cluster-ip-range=10.96.0.0/16 --use-service-account-credentials \
      --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --root-ca-file="$pki/ca.crt" \
      --service-account-private-key-file="$pki/sa.key" --bind-address=127.0.0.1 --leader-elect=false \
      --controllers='*,bootstrapsigner,tokencleaner' "${more[@]}" ;;
    scheduler) proc_start "$pids" "$logs" scheduler "${in_cp[@]}" "$bin/kube-scheduler" \
      --kubeconfig="$dir/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false ;;
    metrics-server)
      "$here/controlplane.sh" metrics-server >/dev/null || exit 1
      kubeconfig "$dir/metrics-server.kubeconfig" metrics-server "https://$cp_ip:6443"
      local config=$dir/metrics-server.kubeconfig
      # nodes make their serving certificates themselves, as most clusters' kubelets do
      proc_start "$pids" "$logs" metrics-server "${in_cp[@]}" "$bin/metrics-server" --kubeconfig="$config" \
        --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" --bind-address=$cp_ip \
        --secure-port=4443 --cert-dir="$dir/metrics-server" --kubelet-insecure-tls \
        --kubelet-preferred-address-types=InternalIP --metric-resolution=10s --kubelet-request-timeout=5s ;;
    registry) proc_start "$pids" "$logs" registry "${in_cp[@]}" docker-registry serve "$dir/registry.yaml" ;;
    forward) proc_start "$pids" "$logs" forward python3 "$here/../harness/forward.py" "/run/netns/$(ns cp)" $cp_ip 6443 "$dir/port" ;;
    mounts-n*)
      # Holds the node's mount namespace, so that an agent started again finds the mounts of the one before.
      # nsenter, not `ip netns exec`: that one mounts another /sys, without the cgroups.
      proc_start "$pids" "$logs" "$name" nsenter --net="/run/netns/$(ns "${name#mounts-}")" \
        unshare --mount --propagation private sh -c 'mount --make-rshared / && exec sleep infinity' ;;
    agent-n*)
      node=${name#agent-}
      # each node in its own way: n2 asks the cluster for a serving certificate, n3 for the CA of its clients
      local own=(--client-ca-file "$pki/ca.crt") way=(--kubeconfig "$dir/$node/kubeconfig"
        --cluster-cidr 10.244.0.0/16 --cluster-dns 10.96.0.10 --cluster-domain cluster.local)
      case $node in
        n2) own+=(--rotate-server-certificates) ;;
        n3) own=() ;;
      esac
      [ ! -e "$dir/$node/way" ] || { own=(); mapfile -t way <"$dir/$node/way"; }
      # what a case wants of this node: one argument a line
      grep -qs eviction-hard "$dir/$node/flags" || own+=(--eviction-hard 'memory.available<50Mi,nodefs.available<1%')
      grep -qs -e --node-ip "$dir/$node/flags" || own+=(--node-ip "$(node_ip "$node")")
      [ ! -f "$dir/$node/flags" ] || mapfile -t -O ${#own[@]} own <"$dir/$node/flags"
      proc_start "$pids" "$logs" "$name" nsenter --target "$(proc_pid "$pids" "mounts-$node")" --mount --net \
        "$(cat "$dir/pikelet")" run "${way[@]}" --node-name "$node" \
        --root-dir "$dir/$node/lib" --state-dir "$dir/$node/run" \
        --pod-logs-dir "$dir/$node/log" --cgroup-root "$(ns "$node")" --bridge pikelet0 \
        "${own[@]}" --container-log-max-size 1Mi -v 4 \
        --pod-manifest-path "$dir/$node/manifests" --insecure-registry $registry ;;
    *) fail "no process is called $name" ;;
  esac
}

# report_failure WHAT NAME: the end of the log beside the complaint
report_failure() { tail -n 20 "$logs/$2.log" >&2; fail "$1 (log: $logs/$2.log; end it with: $0 down)"; }

is_ready() { kubectl get --raw /readyz; }
registry_answers() { ip netns exec "$(ns cp)" curl -fsS "http://$registry/v2/"; }

up() {
  [ "$(id -u)" = 0 ] || fail "network namespaces need root"
  mkdir "$dir" 2>/dev/null || fail "$dir exists: that cluster is up, or was not ended: $0 down"
  mkdir -p "$pids" "$logs" "$pki"
  local count=${1:-2} node
  seq -f 'n%.0f' 1 "$count" >"$dir/nodes"
  "$here/controlplane.sh" >"$dir/controlplane" || exit 1
  [ "$count" = 0 ] || pikelet_bin >"$dir/pikelet" || exit 1
  network
  certificates
  kubeconfig "$dir/controller-manager.kubeconfig" controller-manager "https://$cp_ip:6443"
  kubeconfig "$dir/scheduler.kubeconfig" scheduler "https://$cp_ip:6443"
  registry_config "$dir" $registry
  launch etcd; launch apiserver; launch registry; launch forward
  until_true 10 test -s "$dir/port" || report_failure "the loopback forwarder did not start" forward
  kubeconfig "$dir/admin.kubeconfig" admin "https://127.0.0.1:$(cat "$dir/port")"
  until_true 90 is_ready || report_failure "the API server is not ready after 90 s" apiserver
  launch controller-manager; launch scheduler
  until_true 30 kubectl get serviceaccount default || report_failure "no default service account after 30 s" controller-manager
  until_true 20 registry_answers || report_failure "the registry does not answer" registry
  kubectl create rolebinding nodes-read-client-ca -n kube-system --role=extension-apiserver-authentication-reader \
    --group=system:nodes >/dev/null || report_failure "no role for the nodes" apiserver
  for node in $(nodes); do
    mkdir -p "$dir/$node"
    kubeconfig "$dir/$node/kubeconfig" "$node" "https://$cp_ip:6443"
    launch "mounts-$node"
    until_true 5 node_mounts_ready "$node" || report_failure "no mount namespace for $node" "mounts-$node"
    launch "agent-$node"
  done
  for node in $(nodes); do
    until_true 30 kubectl get node "$node" || report_failure "node $node did not register in 30 s" "agent-$node"
  done
  routes
  echo "export KUBECONFIG=$dir/admin.kubeconfig"
}
add() {
  local node=$1; shift
  mkdir "$dir/$node" || fail "node $node exists"
  echo "$node" >>"$dir/nodes"
  if [ $# = 0 ]; then
    certificate "$node" "/O=system:nodes/CN=system:node:$node"
    kubeconfig "$dir/$node/kubeconfig" "$node" "https://$cp_ip:6443"
  else
    printf '%s\n' "$@" >"$dir/$node/way"
  fi
  plug "$node"
  launch "mounts-$node"
  until_true 5 node_mounts_ready "$node" || report_failure "no mount namespace for $node" "mounts-$node"
}
cut_off() {
  local node=$1 pid group
  proc_stop "$pids" "agent-$node" KILL
  for pid in $(pgrep -f -- "shim --dir $dir/$node/run/"); do kill -9 "$pid"; done
  for group in /sys/fs/cgroup/pids /sys/fs/cgroup; do
    find "$group/$(ns "$node")" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do kill -9 "$pid" 2>/dev/null; done
  done
  sleep 1
  proc_stop "$pids" "mounts-$node" KILL
  for group in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
    find "$group$(ns "$node")" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
  done
  ip -n "$(ns "$node")" link delete pikelet0
  ip netns exec "$(ns "$node")" nft flush ruleset
  rm -rf "${dir:?}/$node/run"
  launch "mounts-$node"
  until_true 10 node_mounts_ready "$node" || report_failure "no mount namespace for $node" "mounts-$node"
}
node_mounts_ready() { [ "$(cat "/proc/$(proc_pid "$pids" "mounts-$1")/comm")" = sleep ]; }

listens() { nsenter --target "$2" --mount --net "$(cat "$dir/pikelet")" ps --state-dir "$dir/$1/run"; }
down() {
  [ -d "$dir" ] || { say "no cluster $id is up"; return 0; }
  local node name found left="" holder
  for node in $(nodes); do
    proc_pid "$pids" "mounts-$node" >/dev/null || continue
    # A node whose agent was killed has pods still: an agent has to be there to drain them.
    [ -S "$dir/$node/run/agent.sock" ] || [ -d "$dir/$node/run" ] && launch "agent-$node"
    holder=$(proc_pid "$pids" "mounts-$node")
    [ ! -d "$dir/$node/run" ] || until_true 20 listens "$node" "$holder"
    if [ -d "$dir/$node/run" ]; then
      # one that was started just now may not listen yet
      until_true 20 nsenter --target "$holder" --mount --net "$(cat "$dir/pikelet")" ps --state-dir "$dir/$node/run"
      timeout 60 nsenter --target "$holder" --mount --net "$(cat "$dir/pikelet")" drain-local \
        --state-dir "$dir/$node/run" >&2 || left+="drain-local on $node failed"$'\n'
    fi
    proc_stop "$pids" "agent-$node"
  done
  for name in k3s k3s-2 metrics-server scheduler controller-manager apiserver registry etcd forward; do proc_stop "$pids" "$name"; done
  for node in $(nodes); do
    found=$(leftovers "$dir/$node" "$(ns "$node")")
    [ -z "$found" ] || left+=$(sed "s/^/$node: /" <<<"$found")$'\n'
    sweep "$dir/$node" "$(ns "$node")"
    proc_stop "$pids" "mounts-$node" KILL
  done
  for name in $(nodes) cp sw; do
    [ ! -e "/run/netns/$(ns "$name")" ] || ip netns del "$(ns "$name")" || left+="network namespace $(ns "$name")"$'\n'
  done
  if [ -n "$left" ]; then
    mkdir -p "/tmp/pikelet-cluster-$id.logs" && cp -r "$logs/." "/tmp/pikelet-cluster-$id.logs/"
    say "left behind by the nodes (logs kept in /tmp/pikelet-cluster-$id.logs):"
    printf '%s' "$left" >&2
  fi
  rm -rf --one-file-system "$dir" || left+="$dir"
  [ -z "$left" ]
}

command=${1:-}; shift || true
case $command in
  up) up "$@" ;;
  down) down ;;
  add) add "${@:?a node}" ;;
  kubectl) kubectl "$@" ;;
  start) launch "${1:?a process name}" ;;
  stop) proc_stop "$pids" "${1:?a process name}" "${2:-TERM}" ;;
  cut) cut_off "${1:?a node}" ;;
  logs) cat "$logs/${1:?a process name}.log" ;;
  dir) echo "$dir" ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
