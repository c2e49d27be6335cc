# The command line on a node: ps, inspect, stats, stop, rm, completions, manual pages, and the errors a person meets first.

k create namespace twin >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: tools}
spec:
  nodeName: n1
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: first, image: "$image", command: [sh, -c, "echo run >>/shared/inits"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: busy
    image: "$image"
    command: [sh, -c, "trap 'echo bye; exit 0' TERM; while true; do :; done"]
    # else it has next to no CPU on a machine that has other things to do, and looks calm
    resources: {requests: {cpu: 500m}}
    volumeMounts: [{name: shared, mountPath: /shared}]
  - {name: calm, image: "$image", command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]}
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec: {nodeName: n1, restartPolicy: Never, containers: [{name: c, image: "$image", command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: over}
spec: {nodeName: n1, restartPolicy: Never, containers: [{name: c, image: "$image", command: ["true"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: tools, namespace: twin}
spec: {nodeName: n1, terminationGracePeriodSeconds: 1, containers: [{name: c, image: "$image", command: [sleep, "1000"]}]}
YAML
soon is tools .status.phase Running; soon is once .status.phase Running; soon is over .status.phase Succeeded
pikelet=$(cat "$dir/pikelet")
# p COMMAND...: pikelet on n1, with standard output and error in $layout/out and $layout/err
p() { on n1 "$pikelet" "$1" --state-dir "$dir/n1/run" "${@:2}" >"$layout/out" 2>"$layout/err"; }
answer() { jq -e "$1" "$layout/out" >/dev/null; }
fails() { ! p "${@:2}" && grep -qF "$1" "$layout/err" || { sed 's/^/     /' "$layout/err"; false; }; }

listed() { p ps && grep -Eq '^default +tools +2/2 +Running +0 ' "$layout/out" && ! grep -q over "$layout/out"; }
check "ps shows what has not ended" soon listed
all() { p ps -a && grep -Eq '^default +over +0/1 +Succeeded ' "$layout/out"; }
check "ps -a shows all" all
wide() { p ps -o wide && grep -q "^NAMESPACE.*UID.*IMAGES" "$layout/out" && grep -q "$image" "$layout/out"; }
check "ps -o wide" wide
json() { p ps -a -o json && answer '[.items[].metadata.name] | contains(["tools", "once", "over"])'; }
check "ps -o json" json
yaml() {
  p ps -o yaml && /usr/bin/python3 -c 'import sys, yaml; print(sorted(p["metadata"]["name"] for p in yaml.safe_load(sys.stdin)["items"]))' \
    <"$layout/out" | found -F "['once', 'tools', 'tools']"
}
check "ps -o yaml" yaml
headed() { on n1 "$pikelet" ps --state-dir "$dir/n1/run" -o json 2>"$layout/err" | head -n 1 >/dev/null; [ ! -s "$layout/err" ]; }
check "a reader that goes away is no error" headed

check "a pod of two namespaces: asks for one" fails 'choose one with -n: default, twin' inspect tools
check "a namespace that has no such pod: says which has" fails 'it is in default' inspect -n twin once
check "an unknown pod: names one that is like it" fails 'did you mean once?' logs onc
check "an unknown container: names those there are" fails 'not one of the pod' inspect -n default tools -c nope

inspected() {
  p inspect -n default tools || return
  local pid; pid=$(jq -r '.containers[] | select(.name == "busy").pid' "$layout/out")
  answer '.pod.name == "tools" and .pod.phase == "Running" and (.containers | length) == 3 and .sandbox.attempt == 0' &&
    grep -q "^Name:.sh" "/proc/$pid/status" &&
    [ "$(readlink "/proc/$pid/ns/net")" = "$(readlink "$(jq -r .sandbox.netns "$layout/out")")" ] &&
    grep -qF ":$(jq -r '.containers[] | select(.name == "busy").cgroup' "$layout/out")" "/proc/$pid/cgroup" &&
    [ -f "$(jq -r '.containers[] | select(.name == "busy").logPath' "$layout/out")" ] &&
    answer '.containers[] | select(.name == "busy") | .image == "'$image'" and (.imageID | contains("sha256:"))
      and any(.mounts[]; .destination == "/shared") and .state == "running"' &&
    answer '.containers[] | select(.name == "first") | .state == "exited" and .exit.code == 0'
}
check "inspect: pid, namespaces, cgroup, mounts, image and log are the real ones" inspected
single() { p inspect -n default tools -c calm && answer '[.containers[].name] == ["calm"]'; }
check "inspect -c shows one container" single
past() { p inspect over && answer '.sandbox == null and .pod.phase == "Succeeded"'; }
check "inspect of a pod that has ended" past

measured() {
  p stats -n default tools && [ "$(awk '$3 == "busy" && $2 == "tools" { print int($4) }' "$layout/out")" -gt 10 ] &&
    [ "$(awk '$3 == "calm" { print int($4) }' "$layout/out")" -lt 10 ] && ! grep -q once "$layout/out"
}
check "stats tells a busy container from a calm one" measured
every() { p stats && grep -q '^twin ' "$layout/out" && grep -q ' once ' "$layout/out" && p stats -o json && answer 'length == 3'; }
check "stats of all pods, and in JSON" every

id_of() { k get pod tools -o json | jq -r --arg c "$1" '.status.containerStatuses[] | select(.name == $c).containerID'; }
restarts_of() { k get pod "$1" -o json | jq --arg c "$2" '.status.containerStatuses[] | select(.name == $c).restartCount'; }
calm=$(id_of calm) busy=$(id_of busy)
p inspect -n default tools -c busy && pid=$(jq '.containers[0].pid' "$layout/out")
stopped() { [ -d "/proc/$pid" ] && p stop -n default tools -c busy && [ ! -d "/proc/$pid" ]; }
check "stop -c stops one container" stopped
again() { [ "$(restarts_of tools busy)" = 1 ] && [ "$(id_of busy)" != "$busy" ] && is tools .status.phase Running; }
check "  whose restart policy starts it again" soon again
gentle() { [ "$(k get pod tools -o json | jq '.status.containerStatuses[] | select(.name == "busy").lastState.terminated.exitCode')" = 0 ]; }
check "  and which could end by itself" gentle
check "  the other one ran on" [ "$(id_of calm)" = "$calm" ]
bye() { k logs tools -c busy --previous | found -x bye; }
check "  the log of the run before is there" bye

sandbox_of() { p inspect -n default tools && jq -r .sandbox.id "$layout/out"; }
sandbox=$(sandbox_of)
removed() { p rm -n default tools && [ "$(sandbox_of)" != "$sandbox" ]; }
check "rm removes the sandbox" removed
fresh() { soon is tools '.status.containerStatuses[*].ready' 'true true' && p inspect -n default tools && answer '.sandbox.attempt == 1'; }
check "  the pod gets a fresh one" fresh
inits() { [ "$(k exec tools -c calm -- true && k exec tools -c busy -- cat /shared/inits | wc -l)" = 2 ]; }
check "  its init containers run again, its volumes are the same" inits
prompt() { [ "$(restarts_of tools busy)" = 2 ] && [ "$(restarts_of tools calm)" = 1 ]; }
check "  the runs are counted" prompt
gone() { [ ! -e "$dir/n1/run/sandboxes/$sandbox" ] && ! ls "$dir/n1/lib/containers" | found "${busy#pikelet://}"; }
check "  nothing of the old sandbox is left" gone

killed() { p stop --grace-period 0 once && soon is once .status.phase Failed && is once "$ended" 137; }
check "stop --grace-period 0 kills; restartPolicy Never lets the pod end" killed
check "stop of what does not run: says so" fails 'there is nothing to stop' stop once
check "rm of a pod that has ended: says what removes it" fails 'kubectl delete pod' rm over
policy() { k run brief --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n1"}}' --command -- sleep 1000 >/dev/null &&
  soon is brief .status.phase Running && p rm -t 1 brief && soon is brief .status.phase Failed &&
  p inspect brief && answer '.sandbox == null'; }
check "rm of a pod with restartPolicy Never lets it end" policy

# who is asked, and by whom
nobody() {
  ! on n1 setpriv --reuid 65534 --regid 65534 --clear-groups "$layout/pikelet" ps --state-dir "$dir/n1/run" 2>"$layout/err" &&
    grep -q 'only root may' "$layout/err"
}
cp "$pikelet" "$layout/pikelet"; chmod 755 "$layout"
check "not root: says so" nobody
rm "$layout/pikelet"
absent() { ! "$pikelet" ps --state-dir "$layout" 2>"$layout/err" && grep -q 'the agent does not run: start' "$layout/err"; }
check "no agent: says how to start it" absent
$cluster stop agent-n1 KILL
# its socket lives until the last of its threads has ended
check "an agent that has ended: says that pods go on" soon fails 'its pods go on without it' ps
$cluster start agent-n1

said() { [[ $("$pikelet" --version) =~ ^pikelet\ [0-9.]+,\ kubelet\ v1\.[0-9]+\.[0-9]+\+pikelet\.[0-9.]+,\ linux/(amd64|arm64|arm)$ ]]; }
check "--version: program, kubelet, architecture" said
completes() {
  "$pikelet" completion bash >"$layout/completion" && bash -c '. "$1"; COMP_WORDS=(pikelet ins) COMP_CWORD=1
    _pikelet pikelet ins pikelet; echo "${COMPREPLY[@]}"' bash "$layout/completion" | found -x inspect
}
check "bash completes a command" completes
others() { "$pikelet" completion zsh | found '^#compdef pikelet' && "$pikelet" completion fish | found 'complete -c pikelet'; }
check "completions for zsh and fish" others
pages() {
  "$pikelet" man --dir "$layout/man" && [ "$(ls "$layout/man" | wc -l)" -gt 15 ] &&
    "$pikelet" man stop | found '^\.TH pikelet-stop 1' && "$pikelet" man | found '^pikelet\\-check(1)'
}
check "manual pages" pages
check "  not of what does not exist" not "$pikelet" man nope
k delete pod tools once over brief --timeout=60s --grace-period=1 >/dev/null
k delete namespace twin >/dev/null
