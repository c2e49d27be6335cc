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
