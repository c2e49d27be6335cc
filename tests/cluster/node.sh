# The Node object: complete, and made again when somebody deletes it.

node() { k get node n3 -o "jsonpath={$1}"; }
check "capacity, allocatable and nodeInfo are set" test -n "$(node .status.capacity.memory)" -a -n "$(node .status.allocatable.cpu)" -a -n "$(node .status.nodeInfo.bootID)"
# one of its own: of an image with many names a Node tells five
umoci config --image "$layout/oci:1" --tag listed --config.label listed=yes
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" listed 10.77.0.1:5000/listed:1
k run imaged --image=10.77.0.1:5000/listed:1 --restart=Never --overrides='{"spec":{"nodeName":"n3"}}' --command -- sleep 1000 >/dev/null
listed() { node '.status.images[*].names' | found -F '"10.77.0.1:5000/listed:1"'; }
check "images are listed" soon listed
k delete pod imaged --timeout=60s --grace-period=1 >/dev/null
check "the kubelet's port is told" test "$(node .status.daemonEndpoints.kubeletEndpoint.Port)" = 10250
lease() { k get lease -n kube-node-lease n3 -o 'jsonpath={.spec.renewTime}'; }
seen=$(lease); sleep 12
check "the lease is renewed" test "$(lease)" != "$seen"
k patch node n3 --subresource=status -p '{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}' >/dev/null
check "a Ready that the control plane took away is given again" k wait --for=condition=Ready node/n3 --timeout=10s
# as a detector of problems and a cloud's controller do
k patch node n3 --subresource=status -p '{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"RouteCreated"},
  {"type":"Ready","status":"Unknown"}],"addresses":[{"type":"ExternalIP","address":"198.51.100.3"}]}}' >/dev/null
check "when somebody else writes conditions and addresses too" k wait --for=condition=Ready node/n3 --timeout=10s
others() { [ "$(node '.status.conditions[?(@.type=="NetworkUnavailable")].reason') $(node '.status.addresses[?(@.type=="ExternalIP")].address')" = 'RouteCreated 198.51.100.3' ]; }
check "  theirs stay" others
since() { node '.status.conditions[?(@.type=="DiskPressure")].lastTransitionTime'; }
was=$(since) beat=$(node '.status.conditions[?(@.type=="Ready")].lastHeartbeatTime')
$cluster stop agent-n3
# heartbeats are of whole seconds
sleep 1.1
$cluster start agent-n3
beats() { [ "$(node '.status.conditions[?(@.type=="Ready")].lastHeartbeatTime')" != "$beat" ] && ready n3; }
check "  an agent that starts again writes its own" until_true 20 beats
check "  and leaves theirs" others
check "  and has its addresses once each" test "$(node '.status.addresses[*].type' | tr ' ' '\n' | sort | xargs)" = 'ExternalIP Hostname InternalIP'
check "  and knows since when its conditions are what they are" test "$(since)" = "$was"
uid=$(node .metadata.uid)
k delete node n3 >/dev/null
again() { [ -n "$(node .metadata.uid)" ] && [ "$(node .metadata.uid)" != "$uid" ]; }
check "a deleted Node is registered again" soon again
check "and becomes Ready" k wait --for=condition=Ready node/n3 --timeout=60s
# its range of pods is another one
until_true 30 eval '[ -n "$(node .spec.podCIDR)" ]'
for other in cp n1 n2; do
  ip -n "pk$PIKELET_CLUSTER_ID-$other" route replace "$(node .spec.podCIDR)" via "$(node '.status.addresses[?(@.type=="InternalIP")].address')"
done
k run after --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n3"}}' --command -- sleep 1000 >/dev/null
check "and runs pods" soon is after .status.phase Running
k delete pod after --timeout=60s --grace-period=1 >/dev/null

check "Events tell of the Node's status, as a kubelet's do" soon event n1 'NodeReady.*Node n1 status is now: NodeReady'
check "  and of the agent's start" soon event n1 Starting
$cluster stop agent-n1
k patch node n1 --subresource=status --type=merge -p '{"status": {"nodeInfo": {"bootID": "another"}}}' >/dev/null
$cluster start agent-n1
check "  and of a restart of the machine" soon event n1 'Rebooted.*has been rebooted'
check "the Node says what its runtime can do" [ "$(k get node n1 -o 'jsonpath={.status.runtimeHandlers[*].name} {.status.features.supplementalGroupsPolicy}')" = ' pikelet true' ]
