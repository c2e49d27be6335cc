# Deployments: spread, rolled over, rolled back.

k apply -f cluster/workloads.yaml >/dev/null
check "a Deployment of 6 becomes Available" k rollout status deploy/web --timeout=60s
spread() { [ "$(k get pods -l app=web -o 'jsonpath={.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u | wc -l)" = 3 ]; }
check "its pods are on all three nodes" spread
images() { k get pods -l app=web --field-selector status.phase=Running -o 'jsonpath={.items[*].spec.containers[0].image}' | tr ' ' '\n' | sort -u; }
k set image deploy/web c=10.77.0.1:5000/busybox:2 >/dev/null
check "set image rolls over" k rollout status deploy/web --timeout=60s
new_only() { [ "$(images)" = 10.77.0.1:5000/busybox:2 ]; }
check "and the old pods go" soon new_only
k rollout undo deploy/web >/dev/null
check "rollout undo goes back" k rollout status deploy/web --timeout=60s
old_only() { [ "$(images)" = 10.77.0.1:5000/busybox:1 ]; }
check "to the old image" soon old_only
k delete deploy web --timeout=30s >/dev/null
none() { [ -z "$(k get pods -l app=web -o name)" ]; }
check "a deleted Deployment's pods go" soon none
