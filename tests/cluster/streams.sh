# exec, attach, port-forward and cp with kubectl by websocket and by SPDY, the system's kubectl of another version, other
# clients, and those who may not.

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: sh}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "$image"
    stdin: true
    command: [sh, -c, "mkdir /www; echo hello >/www/index.html; httpd -p 8080 -h /www; while read l; do echo got \$l; done; exec sleep 1000"]
---
apiVersion: v1
kind: Pod
metadata: {name: ended}
spec: {nodeName: n1, restartPolicy: Never, containers: [{name: c, image: "$image", command: ["true"]}]}
YAML
soon is sh .status.phase Running
soon is ended .status.phase Succeeded
head -c 64M /dev/urandom >"$layout/data"
head -c 1G /dev/urandom >"$layout/large"
sum=$(md5sum <"$layout/large")
# gives COMMAND...: standard output, and the exit code in $code
said() { [ "$(k "${@:2}" 2>/dev/null)" = "$1" ]; }
exits() { local want=$1; shift; k "$@" >/dev/null 2>&1; [ $? = "$want" ]; }
complains() { local text; text=$(k "${@:2}" 2>&1); [[ $text == *"$1"* ]]; }

for kind in websocket SPDY older; do
  by=true; [ $kind = websocket ] || by=false
  [ $kind != older ] || { KUBECTL=$(command -v kubectl); export KUBECTL; }
  export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$by KUBECTL_PORT_FORWARD_WEBSOCKETS=$by
  check "$kind: exec shows the output" said out exec sh -- echo out
  check "$kind: and errors apart from it" said '' exec sh -- sh -c 'echo err >&2'
  check "$kind: and gives the exit code" exits 7 exec sh -- sh -c 'exit 7'
  check "$kind: a command that does not exist is 127" exits 127 exec sh -- nope
  check "$kind: one that cannot be run is 126" exits 126 exec sh -- /etc/passwd
  check "$kind: and is named" complains '"nope": executable file not found' exec sh -- nope
  into() { [ "$(k exec -i sh -- md5sum <"$layout/large")" = "$sum" ]; }
  check "$kind: 1 GiB goes in whole" into
  out_of() { [ "$(k exec -i sh -- cat <"$layout/large" | md5sum)" = "$sum" ]; }
  check "$kind: and in and out at once" out_of
  terminal() {
    local text
    text=$(python3 harness/terminal.py "${KUBECTL:-$(cat "$dir/controlplane")/kubectl}" --kubeconfig "$dir/admin.kubeconfig" exec -it sh -- sh 2>&1)
    [ $? = 3 ] && [[ $text == *"24 80"* && $text == *"50 132"* && $text == *"/dev/pts/"* ]]
  }
  check "$kind: exec -it has a terminal that follows the size" terminal
  attached() { [[ $( (echo line; sleep 1) | timeout 5 $cluster kubectl attach -i sh 2>/dev/null) == *"got line"* ]]; }
  check "$kind: attach reaches the container's own streams" attached
  copied() {
    k cp "$layout/data" sh:/tmp/data && k cp sh:/tmp/data "$layout/back" && cmp "$layout/data" "$layout/back"
  }
  check "$kind: cp both ways" copied 2>/dev/null
  forwarded() {
    local pids=() i port=$((20000 + RANDOM % 12000))
    # what the one before said is not meant
    rm -f "$layout/forward"
    k port-forward pod/sh $port:8080 >"$layout/forward" 2>&1 & local forward=$!
    until_true 30 grep -q Forwarding "$layout/forward"
    for i in $(seq 50); do curl -fsS -m 10 "http://127.0.0.1:$port/" >"$layout/got.$i" & pids+=($!); done
    wait "${pids[@]}"
    # a client that ends its half first still gets the answer
    printf 'GET / HTTP/1.0\r\n\r\n' | timeout 5 busybox nc 127.0.0.1 $port >"$layout/half"
    kill $forward; wait $forward 2>/dev/null
    [ "$(cat "$layout"/got.* | grep -cx hello)" = 50 ] && grep -qx hello "$layout/half"
  }
  check "$kind: port-forward carries 50 requests at once" forwarded
  closed() {
    local port=$((20000 + RANDOM % 12000))
    rm -f "$layout/forward"
    k port-forward pod/sh $port:81 >"$layout/forward" 2>&1 & local forward=$!
    until_true 30 grep -q Forwarding "$layout/forward"
    curl -s -m 5 "http://127.0.0.1:$port/"
    until_true 5 grep -q 'refused' "$layout/forward"; local found=$?
    kill $forward 2>/dev/null; wait $forward 2>/dev/null
    [ $found = 0 ] || sed 's/^/     /' "$layout/forward"
    return $found
  }
  check "$kind: a port nobody listens on is said" closed
done
unset KUBECTL KUBECTL_REMOTE_COMMAND_WEBSOCKETS KUBECTL_PORT_FORWARD_WEBSOCKETS
rm "$layout/large"

python_client() { [ "$(/usr/bin/python3 harness/websocket_exec.py "$dir/admin.kubeconfig" sh)" = "got hello wrong 5" ]; }
check "the Python client's websocket exec" python_client
check "an unknown container is named" complains 'container nope is not valid' exec sh -c nope -- true

# on the node itself, by the agent's own socket
local_terminal() {
  local text
  text=$(on n1 python3 "$PWD/harness/terminal.py" "$(cat "$dir/pikelet")" exec -it --state-dir "$dir/n1/run" sh -- sh 2>&1)
  [ $? = 3 ] && [[ $text == *"24 80"* && $text == *"50 132"* ]]
}
check "pikelet exec -it has a terminal that follows the size" local_terminal
local_attach() { [[ $( (echo here; sleep 1) | timeout 3 nsenter --target "$(proc_pid "$dir/pids" mounts-n1)" --mount --net \
  "$(cat "$dir/pikelet")" attach -i --state-dir "$dir/n1/run" sh 2>/dev/null) == *"got here"* ]]; }
check "pikelet attach reaches the container's own streams" local_attach
local_logs() { local text; text=$(timeout 3 nsenter --target "$(proc_pid "$dir/pids" mounts-n1)" --mount --net \
  "$(cat "$dir/pikelet")" logs -f --tail 1 --state-dir "$dir/n1/run" sh); [ "$text" = "got here" ]; }
check "pikelet logs -f" local_logs

# straight to the node, without the API server
pki=$dir/pki
cp_ns=(ip netns exec "pk$PIKELET_CLUSTER_ID-cp")
own=(--cert "$pki/kubelet-client.crt" --key "$pki/kubelet-client.key")
status() { "${cp_ns[@]}" curl -sk -m 10 -o /dev/null -w '%{http_code}' "${@:2}" "https://10.77.0.11:10250$1"; }
answers() { [ "$(status "${@:2}")" = "$1" ]; }
check "no credentials: 401" answers 401 /pods
check "a token nobody gave out: 401" answers 401 /pods -H 'Authorization: Bearer nonsense'
wrong_audience=$(k create token default --audience somebody-else)
check "a token for another audience: 401" answers 401 /pods -H "Authorization: Bearer $wrong_audience"
check "a user without rights: 403" answers 403 /pods -H "Authorization: Bearer $(k create token default)"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$layout/other.key" -out "$layout/other.crt" \
  -days 1 -subj /O=system:masters/CN=admin 2>/dev/null
stranger() { [ "$(status /pods --cert "$layout/other.crt" --key "$layout/other.key")" != 200 ]; }
check "a certificate of another CA enters nowhere" stranger
check "an unknown pod: 404" answers 404 '/exec/default/nope/c?command=true&output=1' "${own[@]}" -X POST
over() { [[ $("${cp_ns[@]}" curl -sk "${own[@]}" -X POST 'https://10.77.0.11:10250/exec/default/ended/c?command=true&output=1') == *"is not running"* ]]; }
check "a container that has ended is named" over
check "no upgrade: 400" answers 400 '/exec/default/sh/c?command=true&output=1' "${own[@]}" -X POST
check "no stream: 400" answers 400 '/exec/default/sh/c?command=true' "${own[@]}" -X POST
check "another method: 405" answers 405 /pods "${own[@]}" -X POST
run() { [ "$("${cp_ns[@]}" curl -sk "${own[@]}" -X POST 'https://10.77.0.11:10250/run/default/sh/c?cmd=echo+ran')" = ran ]; }
check "/run answers with the output" run
k exec sh -- sh -c 'printf "#!/bin/sh\nhead -c 1000000 /dev/zero >&2\necho done\n" >/loud; chmod +x /loud'
loud() { [[ $("${cp_ns[@]}" curl -sk -m 20 "${own[@]}" -X POST 'https://10.77.0.11:10250/run/default/sh/c?cmd=/loud' | tr -d '\0') == done ]]; }
check "  also of a command that writes much to its standard error" loud

hostile() {
  local want=$1 got; shift
  got=$("${cp_ns[@]}" python3 harness/hostile.py 10.77.0.11 10250 "$pki/kubelet-client.crt" "$pki/kubelet-client.key" \
    '/exec/default/sh/c?command=cat&input=1&output=1' "$@")
  [ "$got" = "$want" ] || { echo "     got: $got"; false; }
}
for attack in oversize zlib reused even unopened version; do
  check "a session that breaks the protocol is ended: $attack" hostile refused $attack
done
check "an unknown stream protocol: 403" hostile 403 protocol
check "1000 connections that never begin hold up nobody" hostile 101 half-open

# clients that go without a word
open_files() { ls "/proc/$(proc_pid "$dir/pids" agent-n1)/fd" | wc -l; }
readers() { k exec sh -- sh -c 'ps | grep -c "[c]at /dev/stdin"'; }
files=$(open_files)
kubectl=$(cat "$dir/controlplane")/kubectl
mkfifo "$layout/open" && exec 9<>"$layout/open"
clients=()
for i in $(seq 10); do
  "$kubectl" --kubeconfig "$dir/admin.kubeconfig" exec -i sh -- cat /dev/stdin <&9 & clients+=($!)
done
began() { [ "$(readers)" = 10 ]; }
check "ten clients read and write" soon began
kill -KILL "${clients[@]}"; wait "${clients[@]}" 2>/dev/null
over() { [ "$(readers)" = 0 ] && [ "$(open_files)" -le $((files + 4)) ]; }
check "  killed, they leave neither a reader nor an open file" soon over
exec 9>&-
k delete pod sh ended --timeout=60s >/dev/null
