# What others do to a node's network: it stays in reach, and so do its pods. (Nodes have their address as a setting here: how
# it follows the machine is a test of `membership`.)

serves_net() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: netweb}
spec:
  nodeName: n3
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "mkdir /www; echo netweb >/www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: [{containerPort: 8080, hostPort: 8083}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
YAML
}
at() { ip -n "pk$PIKELET_CLUSTER_ID-n3" -4 -o addr show eth0 | awk 'NR == 1 { sub("/.*", "", $4); print $4 }'; }
answers_net() { [ "$(ip netns exec "pk$PIKELET_CLUSTER_ID-cp" timeout 3 busybox wget -qO- "http://$(at):8083" 2>&1)" = netweb ]; }
out() { k exec netweb -- timeout 3 wget -qO- http://10.77.0.1:5000/v2/ >/dev/null; }
ready_says() { k get node n3 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].message}' | found -F -- "$1"; }
bridge=$(on n3 ip -o link show type bridge | awk 'NR == 1 { sub(":", "", $2); print $2 }')

# a node with an /etc of its own
cp -a /etc "$dir/n3/own-etc" && on n3 mount --bind "$dir/n3/own-etc" /etc
printf 'nameserver 10.77.0.77\nsearch .\n' >"$dir/n3/own-etc/resolv.conf"
agent_with n3
serves_net
k run resolves --image=$image --overrides='{"spec":{"nodeName":"n3","dnsPolicy":"Default","terminationGracePeriodSeconds":1}}' --command -- sleep 1000 >/dev/null
k wait --for=condition=Ready pod/netweb pod/resolves --timeout=60s >/dev/null
names() { [ "$(k exec resolves -- cat /etc/resolv.conf)" = "$1" ]; }
check "resolv.conf is the node's, without a domain that is none" names 'nameserver 10.77.0.77'
printf 'nameserver 10.77.0.78\nsearch lan\n' >"$dir/n3/own-etc/resolv.conf"
check "a pod that runs has the name servers the node has now" soon names $'nameserver 10.77.0.78\nsearch lan'

uplink() { ip -n "pk$PIKELET_CLUSTER_ID-n3" link set eth0 mtu "$1"; }
mtu() { [ "$(k exec netweb -- cat /sys/class/net/eth0/mtu)" = "$1" ]; }
uplink 1400
check "packets of pods become as small as those of the node" until_true 10 mtu 1400
uplink 1500
check "  and as large" until_true 10 mtu 1500

printf 'search%s\n' "$(printf ' n%s.test' {1..33})" >"$dir/n3/own-etc/resolv.conf"
check "domains that no pod gets are told of the node" soon event n3 'CheckLimitsForResolvConf.*more than 29 domains'
k run searches --image=$image --overrides='{"spec":{"nodeName":"n3","dnsPolicy":"Default","terminationGracePeriodSeconds":1}}' --command -- sleep 1000 >/dev/null
check "  and of a pod that misses them" soon event searches 'DNSConfigForming.*Search Line limits were exceeded'
k delete pod searches --timeout=60s >/dev/null
printf 'nameserver 10.77.0.78\nsearch lan\n' >"$dir/n3/own-etc/resolv.conf"

# limited NAME ANNOTATIONS [MORE]: a pod with a file of 2 MB for others
limited() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, annotations: {$2}}
spec:
  nodeName: n3
  terminationGracePeriodSeconds: 1
  ${3:-}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "mkdir /www; head -c 2000000 /dev/zero >/www/file; exec httpd -f -p 8085 -h /www"]
YAML
}
limited plain ''
limited slow-in 'kubernetes.io/ingress-bandwidth: 8M'
limited slow-out 'kubernetes.io/egress-bandwidth: 8M'
limited none 'kubernetes.io/ingress-bandwidth: "8"'
limited vain 'kubernetes.io/egress-bandwidth: 8M' 'hostNetwork: true'
k wait --for=condition=Ready pod/plain pod/slow-in pod/slow-out --timeout=60s >/dev/null
# fetches POD FROM SECONDS
fetches() { k exec "$1" -- timeout "$3" wget -qO /dev/null "http://$(field "$2" .status.podIP):8085/file"; }
for pair in "slow-in plain" "plain slow-out"; do
  read -r by from <<<"$pair"
  check "8 Mbit/s: 2 MB come to $by from $from" soon fetches "$by" "$from" 10
  check "  not within a second" not fetches "$by" "$from" 1
done
check "  in the other directions they do" eval 'fetches plain slow-in 1 && fetches slow-out plain 1'
check "a bandwidth that is none is told of" soon event none 'FailedCreatePodSandBox.*unreasonably small'
check "  and one of the host" soon event vain HostNetworkNotSupported
k delete pod plain slow-in slow-out none vain --timeout=60s >/dev/null
check "  nothing of them is left" eval '[[ $(on n3 ip link) != *ifb-* ]]'

check "a port of the host is reached, and the pod reaches others" eval 'soon answers_net && out'
on n3 nft flush ruleset
check "after nft flush ruleset it is again" until_true 10 answers_net
check "  and pods reach others" until_true 10 out
guarded() { on n3 nft list table ip "$bridge" | found 'chain guard'; }
check "  and the guard of loopback is there" guarded
range=$(k get node n3 -o 'jsonpath={.spec.podCIDR}')
k run poses --image=$image --overrides='{"spec":{"nodeName":"n3","terminationGracePeriodSeconds":1,"containers":[{"name":"poses","image":"'"$image"'","command":["sleep","1000"],"securityContext":{"capabilities":{"add":["NET_ADMIN","NET_RAW"]}}}]}}' >/dev/null
k wait --for=condition=Ready pod/poses --timeout=60s >/dev/null
k exec poses -- ip addr add "${range%.*}.200/24" dev eth0
pings() { k exec poses -- ping -c 1 -W 1 "$@" "${range%.*}.1" >/dev/null; }
check "a pod is heard by its own address" soon pings
check "  and by none it gives itself" not pings -I "${range%.*}.200"
on n3 nft flush ruleset
refilled() { on n3 nft list table netdev "$bridge" | found 'chain veth'; }
check "  nor after nft flush ruleset" until_true 10 refilled
check "  for good" eval 'pings && not pings -I "${range%.*}.200"'
k delete pod poses --timeout=60s >/dev/null
on n3 nft -f - <<'NFT'
table ip filter {
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
  }
}
NFT
check "a FORWARD policy of drop does not cut pods off" until_true 10 out
check "  nor their ports" until_true 10 answers_net
on n3 nft delete table ip filter
on n3 nft -f - <<'NFT'
table inet by-hand {
  chain forward {
    type filter hook forward priority filter; policy drop;
  }
}
NFT
check "of a chain written by hand the Node says what to do" until_true 15 ready_says "nft add rule inet by-hand forward iifname $bridge accept"
on n3 nft delete table inet by-hand
check "  no longer than it is there" until_true 15 not ready_says by-hand
on n3 sysctl -qw net.ipv4.ip_forward=0
check "forwarding that is turned off is turned on" until_true 10 out
on n3 ip link delete "$bridge"
check "a bridge that is removed comes back with its pods" until_true 15 answers_net

on n3 ip link add lan9 type veth peer name lan9p
on n3 ip addr add "${range%.*}.9/24" dev lan9
check "a pod range that overlaps a network of the node is refused" until_true 15 ready_says "overlaps a network of this node (address ${range%.*}.9/24 of lan9)"
check "  with an Event" soon event n3 PodNetwork
on n3 ip link delete lan9
check "  until it is gone" until_true 15 ready n3
check "  and pods go on" until_true 15 answers_net
k delete pod netweb resolves --timeout=60s >/dev/null
on n3 umount /etc
agent_with n3
