# A Deployment rolled under load, a broken image, undo; a DaemonSet and taints.

site() { # VERSION IMAGE
  k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: site}
spec:
  replicas: 4
  progressDeadlineSeconds: 600
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: c
        image: "$2"
        command: [sh, -c, "mkdir /www; echo $1 >/www/healthz; exec httpd -f -p 8080 -h /www"]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 3}}}
YAML
}
site one $image
k expose deployment site --port=80 --target-port=8080 >/dev/null
k rollout status deployment/site --timeout=60s >/dev/null
sed "s#https://127.0.0.1:[0-9]*#https://10.77.0.1:6443#" "$dir/admin.kubeconfig" >"$dir/load.kubeconfig"
ip netns exec "pk$PIKELET_CLUSTER_ID-cp" /usr/bin/python3 harness/load.py "$dir/load.kubeconfig" site "$dir/load.stop" >"$dir/load" &
loading=$!
sleep 2
site two "${image%:*}:2"
rolled() { k rollout status deployment/site --timeout="$1" >/dev/null 2>&1; }
check "a Deployment is rolled to a new image under load" rolled 120s
site three "${image%:*}:none"
stuck() { [ "$(k get pods -l app=site -o jsonpath='{range .items[*]}{.status.containerStatuses[0].state.waiting.reason}{"\n"}{end}' | grep -c ImagePullBackOff)" = 1 ]; }
check "an image that is not there stops the next rollout" soon stuck
serving() { [ "$(k get deployment site -o jsonpath='{.status.readyReplicas}')" = 4 ]; }
check "  while the old pods serve" serving
k rollout undo deployment/site >/dev/null 2>&1
check "  and undo takes it back" rolled 60s
touch "$dir/load.stop"; wait $loading
# ASKED FAILED VERSIONS
unbroken() { awk '{ exit !($1 > 100 && $2 == 0 && $3 == "one,two") }' "$dir/load"; }
check "of 4 clients that follow the endpoints no request failed" unbroken
unbroken || cat "$dir/load" >&2
k delete deployment/site service/site --timeout=60s >/dev/null

k taint node n3 keep=out:NoSchedule >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: every}
spec:
  selector: {matchLabels: {app: every}}
  template:
    metadata: {labels: {app: every}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "$image", command: [sleep, "100000"]}]
YAML
nodes() { [ "$(k get pods -l app=every --field-selector status.phase=Running -o jsonpath='{.items[*].spec.nodeName}' | tr ' ' '\n' | sort | tr '\n' ' ')" = "$1" ]; }
check "a DaemonSet reaches every node but a tainted one" soon nodes "n1 n2 "
k taint node n3 keep- >/dev/null
check "  and that one when the taint goes" soon nodes "n1 n2 n3 "
k taint node n2 leave=now:NoExecute >/dev/null
check "a NoExecute taint drives its pod away" soon nodes "n1 n3 "
k taint node n2 leave- >/dev/null
check "  which comes back after it" soon nodes "n1 n2 n3 "
k delete daemonset every --timeout=30s >/dev/null
