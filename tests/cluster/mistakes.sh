# Manifests with a mistake: the status and an Event say what, and the pod recovers when the cause is mended.

k apply -f cluster/mistakes.yaml >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: nopath}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: h, hostPath: {path: $dir/n1/later, type: Directory}}]
  containers: [{name: c, image: "$image", command: [sleep, "1000"], volumeMounts: [{name: h, mountPath: /h}]}]
YAML
check "an unknown image backs off" soon is noimage "$waiting" ImagePullBackOff
check "  and says so in the kubelet's words" soon event noimage 'Failed to pull image "'
check "  and an Event says what the registry answered" soon event noimage 'manifest unknown'
check "a missing key is a config error" soon is nokey "$waiting" CreateContainerConfigError
check "  and an Event names it" soon event nokey "couldn't find key k in ConfigMap default/cm"
check "a missing Secret is named" soon event novolume 'secret "later" not found'
check "a missing hostPath is named" soon event nopath "hostPath type check failed: $dir/n1/later is not a directory"
check "a command that does not exist is named" soon event badcmd 'no-such.*not found'
check "  and is the container's waiting state or last end" soon event badcmd 'Failed'
k patch configmap cm -p '{"data":{"k":"v"}}' >/dev/null
k create secret generic later --from-literal=a=b >/dev/null
mkdir "$dir/n1/later"
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" 1 10.77.0.1:5000/late:1
for pod in nokey novolume nopath noimage; do
  check "$pod recovers when the cause is mended" until_true 90 is $pod .status.phase Running
  check "  with no restart" is $pod "$restarts" 0
done
k delete pod --all --timeout=60s >/dev/null
k delete secret later >/dev/null; k delete configmap cm >/dev/null
