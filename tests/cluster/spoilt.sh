# Objects of a form that clients cannot read: who may write one of them must not hide the others from a node.

# a time of the year 10000, and fields nested deeper than JSON readers follow
late() { jq '.metadata.managedFields = [{manager: "foo", operation: "Update", apiVersion: "v1", time: "9999-12-31T23:59:59-23:00",
  fieldsType: "FieldsV1", fieldsV1: {"f:metadata": {"f:labels": {".": {}, "f:x": {}}}}}]'; }
deep() { jq '.metadata.managedFields += [{manager: "deep", operation: "Update", apiVersion: "v1", time: "2026-01-01T00:00:00Z",
  fieldsType: "FieldsV1", fieldsV1: {"f:metadata": {"f:annotations": (reduce range(200) as $i ({}; {"f:a": .}))}}}]'; }
# spoil HOW KIND NAME
spoil() {
  k get --show-managed-fields "$2/$3" -o json | "$1" >"$layout/spoilt.json" &&
    k replace --raw "/api/v1/namespaces/default/$2/$3" -f "$layout/spoilt.json" >/dev/null
}
is_late() { k get --show-managed-fields "$1" -o json | found 10000-01-01; }
starts() {
  k run "$1" --image=$image --restart=Never -l x=y --overrides='{"spec":{"nodeName":"n1","terminationGracePeriodSeconds":1}}' \
    --command -- sh -c "exec sleep $2" >/dev/null && soon is "$1" .status.phase Running
}
sleeps() { pgrep -f "^sleep $1\$" >/dev/null; }
ends() { k delete pod "$1" --timeout=30s >/dev/null && soon not sleeps "$2"; }

k create secret generic hidden --from-literal=password=never-in-a-log-1 >/dev/null
k label secret hidden x=y >/dev/null
k create service clusterip spoilt --tcp=80 >/dev/null
k label service spoilt x=y >/dev/null
check "a pod runs" starts late 71001
starts deep 71002
starts late2 71005
starts good1 71003
for each in pods/late pods/late2 services/spoilt secrets/hidden; do spoil late ${each/\// }; done
spoil deep pods deep
check "the API server takes a pod, a Service and a Secret of the year 10000" eval 'is_late pods/late && is_late services/spoilt && is_late secrets/hidden'
check "  and one whose fields are nested deep" eval 'k get --show-managed-fields pod deep -o json | found \"manager\".*deep'

env_of() { k logs "$1" | found "$2"; }
reads() {
  jq -n --arg image $image --arg name "$1" '{apiVersion: "v1", kind: "Pod", metadata: {name: $name}, spec: {nodeName: "n1", restartPolicy: "Never",
    containers: [{name: "a", image: $image, command: ["sh", "-c", "env; [ \"$P\" = never-in-a-log-1 ]"],
      env: [{name: "P", valueFrom: {secretKeyRef: {name: "hidden", key: "password"}}}]}]}}' | k apply -f - >/dev/null
  soon is "$1" .status.phase Succeeded && env_of "$1" SPOILT_SERVICE_HOST= && env_of "$1" "$2"
}
# others NUMBER WHEN: other pods and Services of the node are followed
others() {
  check "$2: another pod starts" starts "good$1" "7101$1"
  k create service clusterip "after$1" --tcp=80 >/dev/null
  sleep 1
  check "  one reads the Secret, and knows the Services of before and after" reads "reads$1" "AFTER$1_SERVICE_HOST="
  check "  a pod that is deleted ends" ends "good$1" "7101$1"
}
others 2 "beside them"
check "  they are deleted as others are" eval 'ends deep 71002 && ends late2 71005'
agent_with n1
check "after a restart: what ran runs" eval 'sleeps 71001 && sleeps 71003'
others 4 "after a restart"
check "  a pod of before ends" ends good1 71003
check "  one that is deleted by force ends" eval 'k delete pod late --grace-period=0 --force >/dev/null 2>&1; soon not sleeps 71001'
k delete --wait=false pod --all >/dev/null
check "  one with no end of grace starts" starts longest 71006
k delete pod longest --grace-period=1000000000000 --wait=false >/dev/null 2>&1
sleep 2
check "  it hides nothing" starts good7 71007
k delete pod longest --grace-period=0 --force >/dev/null 2>&1

quiet() {
  local node hidden
  hidden=$(printf never-in-a-log-1 | base64)
  for node in n1 n2 n3; do
    if log $node | found -E "$hidden|never-in-a-log|10000-01-01|managedFields|PodList"; then
      log $node | grep -E "$hidden|never-in-a-log|10000-01-01|managedFields|PodList" | cut -c-300 | head -n 3
      return 1
    fi
  done
}
check "no agent logs what was in them" quiet
# an API server that was away before is no object
flawless() { ! log n1 | grep -E 'WARN.*(cannot be read|trying again until)' | grep -vE 'ServiceError|Expired'; }
check "none of it could not be read" flawless
k delete secret hidden >/dev/null
k delete service spoilt after2 after4 >/dev/null
