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

# the image of a pod's container may be changed while it runs
k run fixed --image=$image --restart=Always --command -- sh -c 'trap "exit 0" TERM; while true; do sleep 0.1; done' >/dev/null
k run broken --image=$image --restart=Always --command -- sh -c 'test -e /of-two && exec sleep 1000' >/dev/null
soon is fixed .status.phase Running
soon is broken "$waiting" CrashLoopBackOff
k set image pod/fixed fixed="${image%:*}:2" >/dev/null
renewed() { [ "$(field fixed '.status.containerStatuses[0].image') $(field fixed "$restarts")" = "${image%:*}:2 1" ]; }
check "a changed image: the container is started again from it" soon renewed
check "  and an Event says why" soon event fixed "definition changed"
long() { [ "$(field broken "$restarts")" -ge 2 ] && is broken "$waiting" CrashLoopBackOff; }
soon long
k set image pod/broken broken="${image%:*}:2" >/dev/null
at_once() { [ "$(field broken '.status.containerStatuses[0].image')" = "${image%:*}:2" ]; }
check "  without waiting for the back-off of the old one" until_true 8 at_once
k delete pod fixed broken --timeout=60s >/dev/null
