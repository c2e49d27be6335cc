# Ports of the host (hostPort, hostIP): reached from elsewhere, from the node itself and from pods, while the pod is there.

# serves NAME PORTS [MORE]: a pod of n1 that answers its name at 8080
serves() {
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  ${3:-}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "mkdir /www; echo $1 >/www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: [$2]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
YAML
}
here=$(ip -n "pk$PIKELET_CLUSTER_ID-n1" -4 -o addr show eth0 | awk '{ sub("/.*", "", $4); print $4 }')
web="{containerPort: 8080, hostPort: 8080}, {containerPort: 5353, hostPort: 53, protocol: UDP}, {containerPort: 9, hostPort: 36412, protocol: SCTP}"
side="initContainers: [{name: side, image: '$image', restartPolicy: Always, ports: [{containerPort: 8082, hostPort: 82}],
    command: [sh, -c, 'mkdir /s; echo side >/s/index.html; exec httpd -f -p 8082 -h /s']}]"
serves web "$web" "$side"
serves shy "{containerPort: 8080, hostPort: 8090, hostIP: $here}, {containerPort: 8080, hostPort: 8091, hostIP: 127.0.0.1}, {containerPort: 8080, hostPort: 8092}"
for node in n1 n2; do
  k run "caller-$node" --image=$image --overrides="{\"spec\":{\"nodeName\":\"$node\",\"terminationGracePeriodSeconds\":1}}" --command -- sleep 1000 >/dev/null
done
k wait --for=condition=Ready pod/web pod/shy pod/caller-n1 pod/caller-n2 --timeout=60s >/dev/null

elsewhere() { ip netns exec "pk$PIKELET_CLUSTER_ID-cp" "$@"; }
# answers URL NAME COMMAND...: what is there, asked by COMMAND
answers() { local url=$1 name=$2; shift 2; [ "$("$@" timeout 3 busybox wget -qO- "http://$url" 2>&1)" = "$name" ]; }
# closed URL COMMAND...: it is refused, at once
closed() { local url=$1; shift; [[ $("$@" timeout 3 busybox wget -qO- "http://$url" 2>&1) == *'Connection refused'* ]]; }
check "a port of the host is reached from another machine" answers "$here:8080" web elsewhere
check "  from another node" answers "$here:8080" web on n2
check "  from a pod of another node" answers "$here:8080" web k exec caller-n2 --
check "  from the node itself" answers "$here:8080" web on n1
check "  by its loopback" answers 127.0.0.1:8080 web on n1
check "  from another pod of the node" answers "$here:8080" web k exec caller-n1 --
check "  from the pod itself" answers "$here:8080" web k exec web -c c --
check "that of a sidecar too" answers "$here:82" side elsewhere
check "with a hostIP it is reached there" answers "$here:8090" shy elsewhere
check "  and nowhere else" closed 127.0.0.1:8090 on n1
check "  127.0.0.1 is for the node alone" answers 127.0.0.1:8091 shy on n1
check "  not for others" closed "$here:8091" elsewhere

# as kube-proxy would have it; its rules and ours do not know each other
on n1 nft -f - <<NFT
table ip kube-proxy {
  chain nat-prerouting {
    type nat hook prerouting priority dstnat
    ip daddr $here tcp dport 8092 dnat to $(field web .status.podIP):8080
  }
}
NFT
check "a Service of the same port goes first" answers "$here:8092" web elsewhere
on n1 nft delete table ip kube-proxy
check "  and without it the pod has it" answers "$here:8092" shy elsewhere

# program NAME POD COMMAND...: in the pod's network namespace
program() {
  local name=$1 pid; shift
  pid=$(on n1 "$(cat "$dir/pikelet")" inspect --state-dir "$dir/n1/run" "$1" | jq -r '.containers[0].pid'); shift
  proc_start "$dir/pids" "$dir/logs" "$name" nsenter --target "$pid" --net "$@"
}
datagrams=(python3 harness/datagrams.py)
udp=$dir/n1/udp-answer sctp=$dir/n1/sctp-from
said() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
# it asks before anybody serves it: what the kernel tracks then leads nowhere
proc_start "$dir/pids" "$dir/logs" udp-ask ip netns exec "pk$PIKELET_CLUSTER_ID-cp" "${datagrams[@]}" ask "$here" 53 "$udp"
program udp-web web "${datagrams[@]}" serve web 5353
program sctp-web web "${datagrams[@]}" sctp-wait 9 "$sctp"
check "UDP" until_true 10 said "$udp" web
until_true 10 said "$sctp" waits
elsewhere "${datagrams[@]}" sctp-init "$here" 36412
check "SCTP, seen by a packet as this kernel has no SCTP: from whom it came, its checksum right" until_true 5 said "$sctp" 10.77.0.1

$cluster stop agent-n1 KILL
check "while the agent is down" answers "$here:8080" web elsewhere
on n1 nft delete table ip pikelet0
closed "$here:8080" elsewhere || echo "     the port was open without its rules"
$cluster start agent-n1
check "one that starts again makes the rules anew" until_true 20 answers "$here:8080" web elsewhere
check "  by the loopback too" answers 127.0.0.1:8080 web on n1
k delete pod web --timeout=30s >/dev/null
check "when the pod is gone its port is closed" closed "$here:8080" elsewhere
check "  on the loopback too" closed 127.0.0.1:8080 on n1
check "  but no other's" answers "$here:8090" shy elsewhere
check "  nor is UDP answered" until_true 5 said "$udp" ''
serves next "$web"
k wait --for=condition=Ready pod/next --timeout=30s >/dev/null
program udp-next next "${datagrams[@]}" serve next 5353
check "a UDP client that goes on reaches the next pod" until_true 10 said "$udp" next
check "  and so do others" answers "$here:8080" next elsewhere
k run ended --image=$image --restart=Never --overrides="{\"spec\":{\"nodeName\":\"n1\",\"containers\":[{\"name\":\"c\",\"image\":\"$image\",\"command\":[\"sh\",\"-c\",\"sleep 1\"],\"ports\":[{\"containerPort\":1,\"hostPort\":8094}]}]}}" >/dev/null
rules() { on n1 nft list table ip pikelet0; }
given_back() { is ended .status.phase Succeeded && [[ $(rules) != *8094* ]]; }
check "a pod that has ended gives its port back" soon given_back
for port in 10248 10250; do
  serves "greedy-$port" "{containerPort: 8080, hostPort: $port}"
  check "the agent's own port $port is no pod's" soon event "greedy-$port" "hostPort $port: a program of this node listens"
  k delete pod "greedy-$port" --timeout=30s >/dev/null
done
cp "$(command -v busybox)" "$dir/dropbear"
for program in busybox dropbear; do
  file=$(command -v busybox)
  [ $program = busybox ] || file=$dir/dropbear
  # shellcheck disable=SC2016 # for the inner shell
  proc_start "$dir/pids" "$dir/logs" "listens-$program" ip netns exec "pk$PIKELET_CLUSTER_ID-n1" \
    bash -c 'exec -a busybox "$0" httpd -f -p 2222 -h /mnt' "$file"
  until_true 5 on n1 bash -c '</dev/tcp/127.0.0.1/2222'
  serves "takes-$program" "{containerPort: 8080, hostPort: 2222}"
  if [ $program = busybox ]; then
    check "that a program loses its port is told" soon event takes-busybox 'HostPortConflict.*hostPort 2222: a program of this node listens there .busybox, pid'
    check "  and the pod has it" soon answers "$here:2222" takes-busybox elsewhere
  else
    check "a way to log in stays at any port" soon event takes-dropbear 'FailedCreatePodSandBox.*dropbear, pid.*would not be reached any more'
  fi
  k delete pod "takes-$program" --timeout=30s >/dev/null
  proc_stop "$dir/pids" "listens-$program"
done
k delete pod next shy --timeout=30s >/dev/null
without() { [[ $(rules) != *dnat* ]] && [ "$(on n1 cat /proc/sys/net/ipv4/conf/pikelet0/route_localnet)" = 0 ]; }
check "nothing of them is left in the node" without
for name in udp-ask udp-web udp-next sctp-web; do proc_stop "$dir/pids" "$name"; done
rm -f "$udp" "$sctp"
