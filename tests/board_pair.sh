# A cluster of two kinds of machine: the emulated board, which is aarch64, and a node of this machine beside it, with an image
# that has a program for each (sourced by tests/board.sh, with the board Ready).
#
# PIKELET_NATIVE_BIN: this machine's program [default: target/debug/pikelet]

native=n1
native_ns=pk$PIKELET_CLUSTER_ID-$native
address_of() { field node "$1" '.status.addresses[?(@.type=="InternalIP")].address'; }
range_of() { field node "$1" .spec.podCIDR; }

# manifest TAG ARCHITECTURE: how an index lists what the registry has under that tag
manifest() {
  local type=application/vnd.oci.image.manifest.v1+json
  ip netns exec "$cp" curl -fsS -H "Accept: $type" -o "$work/manifest" "http://$server:5000/v2/busybox/manifests/$1"
  jq -cn --arg type $type --arg digest "sha256:$(sha256sum <"$work/manifest" | cut -d ' ' -f 1)" \
    --argjson size "$(stat -c %s "$work/manifest")" --arg architecture "$2" \
    '{mediaType: $type, digest: $digest, size: $size, platform: {os: "linux", architecture: $architecture}}'
}
# one tag for both processors
pair_image() {
  local type=application/vnd.oci.image.index.v1+json
  tag pair-arm64
  busybox_image "$work/layout" pair-amd64
  push_image "$cp" "$work/layout" pair-amd64 "$server:5000/busybox:pair-amd64"
  { manifest pair-amd64 amd64; manifest pair-arm64 arm64; } |
    jq -s --arg type $type '{schemaVersion: 2, mediaType: $type, manifests: .}' >"$work/index"
  ip netns exec "$cp" curl -fsS -X PUT -H "Content-Type: $type" --data-binary "@$work/index" \
    "http://$server:5000/v2/busybox/manifests/pair"
}
check "an image for two processors is pushed" pair_image

PIKELET_BIN=${PIKELET_NATIVE_BIN:-} pikelet_bin >"$dir/pikelet"
$cluster add $native
$cluster start agent-$native
native_ready() { [ "$(field node $native '.status.conditions[?(@.type=="Ready")].status')" = True ] && [ -n "$(range_of $native)" ]; }
check "a node of this machine joins the board's cluster" soon native_ready
# as a router at home has it, which is the board's and the control plane's way to everything
ip netns exec "$cp" sysctl -qw net.ipv4.ip_forward=1
ip -n "$cp" route replace "$(range_of $native)" via "$(address_of $native)"
ip -n "$native_ns" route replace "$(range_of $node)" via "$(address_of $node)"

k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: pair}
spec:
  replicas: 2
  selector: {matchLabels: {app: pair}}
  template:
    metadata: {labels: {app: pair}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: pair}}}
      containers:
      - name: c
        image: $server:5000/busybox:pair
        # says who asks
        command: [sh, -c, 'mkdir /www && uname -m >/www/index.html && echo "serving as \$(uname -m)" && exec httpd -f -vv -p 8080 -h /www']
        readinessProbe: {httpGet: {port: 8080, path: /}}
YAML
# of the Deployment's pod on NODE: its name, its address
pair_pod() { k get pods -l app=pair --field-selector "spec.nodeName=$1" -o 'jsonpath={.items[*].metadata.name}'; }
pair_ip() { k get pods -l app=pair --field-selector "spec.nodeName=$1" -o 'jsonpath={.items[*].status.podIP}'; }
spread() {
  [ "$(k get deployment pair -o 'jsonpath={.status.readyReplicas}')" = 2 ] &&
    [ "$(k get pods -l app=pair -o 'jsonpath={.items[*].spec.nodeName}' | tr ' ' '\n' | sort | tr '\n' ' ')" = "$node $native " ]
}
check "a Deployment is spread over both" soon spread
# asks FROM TO: what the pod on the node TO answers the pod on the node FROM
asks() { k exec "$(pair_pod "$1")" -- timeout 20 wget -q -O - "http://$(pair_ip "$2"):8080/"; }
check "  the board's pod reaches the other" test "$(asks $node $native)" = "$(uname -m)"
check "  and the other the board's" test "$(asks $native $node)" = aarch64
said() { k logs "$(pair_pod "$1")" | grep -F "$2" >/dev/null; }
check "  kubectl logs of the board's" said $node "serving as aarch64"
check "  kubectl logs of the other" said $native "serving as $(uname -m)"
check "  each has seen the other by its own address" eval 'said $node "$(pair_ip $native)" && said $native "$(pair_ip $node)"'
k delete deployment pair >/dev/null
