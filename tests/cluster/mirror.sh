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
check "a mirror pod has the kubelet's annotations" annotations
owner() { [ "$(field static-n1 '.metadata.ownerReferences[0].kind')/$(field static-n1 '.metadata.ownerReferences[0].name')" = Node/n1 ]; }
check "  and belongs to its node" owner
before=$(field static-n1 "$container") uid=$(field static-n1 .metadata.uid)
sed 's/metadata: {name: static}/metadata: {name: static, labels: {version: two}}/' "$dir/static.yaml" >"$dir/n1/manifests/.new"
mv "$dir/n1/manifests/.new" "$dir/n1/manifests/static.yaml"
changed() { is static-n1 .metadata.labels.version two && is static-n1 .status.phase Running && [ "$(field static-n1 "$container")" != "$before" ]; }
check "a changed manifest: the old pod ends, then the new one runs" soon changed
sed 's/spec: {/spec: {serviceAccountName: default, /' "$dir/static.yaml" >"$dir/n1/manifests/static.yaml"
sleep 2
said() { $cluster logs agent-n1 | grep -q 'static pods may not reference serviceaccounts'; }
check "a manifest that refers to objects of the API is refused, and the agent says so" said
check "  its last good version runs on" is static-n1 .metadata.labels.version two
rm "$dir/n1/manifests/static.yaml"
soon not k get pod static-n1
$cluster stop apiserver
cp "$dir/static.yaml" "$dir/n1/manifests/static.yaml"
runs_offline() { on n1 "$(cat "$dir/pikelet")" ps --state-dir "$dir/n1/run" | grep static-n1 | grep -q Running; }
check "a static pod starts while the API server is away" soon runs_offline
$cluster start apiserver
until_true 60 k get --raw /readyz
check "  and has its mirror afterwards" soon is static-n1 .status.phase Running
rm "$dir/n1/manifests/static.yaml"
soon not k get pod static-n1
k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=60s >/dev/null
