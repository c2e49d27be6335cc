# Static pods of a node with an API server, and their mirror pods.

cat >"$dir/static.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: static}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "$image", command: [sleep, "100000"]}]}
YAML
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
check "a static pod runs and has a mirror pod" soon is static-n1 .status.phase Running
before=$(field static-n1 "$container") uid=$(field static-n1 .metadata.uid)
k delete pod static-n1 --wait=false >/dev/null
again() { [ "$(field static-n1 .metadata.uid)" != "$uid" ] && is static-n1 .status.phase Running; }
check "a mirror pod that was deleted is made again" soon again
check "  and the containers went on" is static-n1 "$container" "$before"
rm "$dir/n1/manifests/static.yaml"
check "without the manifest both go" soon not k get pod static-n1
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
soon is static-n1 .status.phase Running
$cluster stop agent-n1 KILL
rm "$dir/n1/manifests/static.yaml"
$cluster start agent-n1
check "also when it was removed while no agent ran" soon not k get pod static-n1

cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
soon is static-n1 .status.phase Running
annotations() { field static-n1 '.metadata.annotations' | jq -e '."kubernetes.io/config.mirror" == ."kubernetes.io/config.hash" and ."kubernetes.io/config.source" == "file" and has("kubernetes.io/config.seen")' >/dev/null; }
check "a mirror pod has the kubelet's annotations" soon annotations
owner() { [ "$(field static-n1 '.metadata.ownerReferences[0].kind')/$(field static-n1 '.metadata.ownerReferences[0].name')" = Node/n1 ]; }
check "  and belongs to its node" soon owner
before=$(field static-n1 "$container") uid=$(field static-n1 .metadata.uid)
sed 's/metadata: {name: static}/metadata: {name: static, labels: {version: two}}/' "$dir/static.yaml" >"$dir/n1/manifests/.new"
mv "$dir/n1/manifests/.new" "$dir/n1/manifests/static.yaml"
changed() { is static-n1 .metadata.labels.version two && is static-n1 .status.phase Running && [ "$(field static-n1 "$container")" != "$before" ]; }
check "a changed manifest: the old pod ends, then the new one runs" soon changed
sed 's/spec: {/spec: {serviceAccountName: default, /' "$dir/static.yaml" >"$dir/n1/manifests/static.yaml"
sleep 2
said() { $cluster logs agent-n1 | found 'static pods may not reference serviceaccounts'; }
check "a manifest that refers to objects of the API is refused, and the agent says so" soon said
check "  its last good version runs on" is static-n1 .metadata.labels.version two
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
sleep 1
soon is static-n1 .status.phase Running
# a pod of the API server that says it is one of a manifest: it would make room for itself, and stay through everything
{ echo "{apiVersion: v1, kind: Pod, metadata: {name: forged, annotations: {kubernetes.io/config.source: file}}, spec: {nodeName: n1,"
  echo "  terminationGracePeriodSeconds: 1, containers: [{name: c, image: '$image', command: [sleep, '100000']}]}}"; } | k apply -f - >/dev/null
check "a pod of the API server that says it is a static one runs" soon is forged .status.phase Running
shown() { on n1 "$(cat "$dir/pikelet")" inspect --state-dir "$dir/n1/run" "$1" | jq -e ".pod.static == $2" >/dev/null; }
check "  and is none" eval 'shown forged false && shown static-n1 true'
served() { k get --raw /api/v1/nodes/n1/proxy/pods | jq -e ".items[] | select(.metadata.name == \"$1\") | .metadata.annotations[\"kubernetes.io/config.source\"] == \"$2\"" >/dev/null; }
check "  which the node says to others too" soon eval 'served forged api && served static-n1 file'
agent_with n1
check "  also after a restart" eval 'soon shown forged false && shown static-n1 true && is forged .status.phase Running'
k delete pod forged --wait=false >/dev/null
# mirror NAME: a pod that says it is the mirror of the static pod there is
mirror() {
  k get pod static-n1 -o json | jq --arg name "$1" '{apiVersion, kind, metadata: {name: $name, annotations: .metadata.annotations},
    spec: (.spec | del(.serviceAccount, .serviceAccountName, .priority, .preemptionPolicy))}' | k apply -f - >/dev/null
}
mirror copied
check "what says it is its mirror and has another name goes, as a mirror of no pod does" soon not k get pod copied
rm "$dir/n1/manifests/static.yaml"
soon not k get pod static-n1
k run static-n1 --image=$image --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":1}}' --command -- sleep 100000 >/dev/null
soon is static-n1 .status.phase Running
before=$(field static-n1 .metadata.uid)
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
two() { [ "$(on n1 "$(cat "$dir/pikelet")" ps --state-dir "$dir/n1/run" | grep -c static-n1.*Running)" = 2 ]; }
check "a static pod runs beside one of its name" soon two
sleep 2
check "  which the node does not delete for it" is static-n1 .metadata.uid "$before"
k delete pod static-n1 >/dev/null
check "  and has its mirror afterwards" soon is static-n1 .status.phase Running
rm "$dir/n1/manifests/static.yaml"
soon not k get pod static-n1
$cluster stop apiserver
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
runs_offline() { on n1 "$(cat "$dir/pikelet")" ps --state-dir "$dir/n1/run" | grep static-n1 | found Running; }
check "a static pod starts while the API server is away" soon runs_offline
api_up
check "  and has its mirror afterwards" soon is static-n1 .status.phase Running
rm "$dir/n1/manifests/static.yaml"
soon not k get pod static-n1
k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s >/dev/null

# by a web server
serve() {
  proc_start "$dir/pids" "$dir/logs" manifests ip netns exec "pk$PIKELET_CLUSTER_ID-cp" /usr/bin/python3 "$PWD/harness/manifests.py" \
    10.77.0.1 8088 "$dir/remote.yaml"
}
# one NAME: an item of a list of pods
one() { echo "- {metadata: {name: $1}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: \"$image\", command: [sleep, \"100000\"]}]}}"; }
{ echo "kind: PodList"; echo "apiVersion: v1"; echo "items:"; one far; one away; } >"$dir/remote.yaml"
cat >"$dir/n1/config.yaml" <<YAML
staticPodURL: http://10.77.0.1:8088/
staticPodURLHeader: {X-Token: [open]}
httpCheckFrequency: 1s
YAML
serve
agent_with n1 --config "$dir/n1/config.yaml"
both() { is far-n1 .status.phase Running && is away-n1 .status.phase Running; }
check "static pods of a web server run, with mirror pods" soon both
source_is() { field far-n1 .metadata.annotations | jq -e '."kubernetes.io/config.source" == "http"' >/dev/null; }
check "  their annotation says where they are from" soon source_is
configured() { k get --raw /api/v1/nodes/n1/proxy/configz | jq -e '.kubeletconfig | .httpCheckFrequency == "1s" and .staticPodURLHeader == {"x-token": ["<masked>"]}' >/dev/null; }
check "  /configz has it, without the header's value" configured
before=$(field far-n1 "$container")
{ echo "kind: PodList"; echo "items:"; one far; } >"$dir/remote.yaml"
check "one that is no longer given ends" soon not k get pod away-n1
echo "items: {" >"$dir/remote.yaml"
refused() { $cluster logs agent-n1 | found 'manifests not read'; }
check "an answer with a mistake is said" soon refused
proc_stop "$dir/pids" manifests
agent_with n1 --config "$dir/n1/config.yaml"
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
check "while the server is away those of the folder come and go" soon is static-n1 .status.phase Running
rm "$dir/n1/manifests/static.yaml"
soon not k get pod static-n1
check "  and those of the server go on" is far-n1 "$container" "$before"
rm "$dir/n1/config.yaml"
agent_with n1
check "without the setting they end" soon not k get pod far-n1
