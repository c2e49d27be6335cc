# kubectl logs, through the API server, with the node's serving certificate.

k run talker --image=$image --restart=Never --command -- \
  sh -c 'for i in 1 2 3; do echo line $i; done; echo to-stderr >&2; until [ -e /go ]; do sleep 0.1; done' >/dev/null
k run crasher --image=$image --command -- sh -c 'echo start $(cat /proc/uptime | cut -d. -f1); sleep 1; exit 1' >/dev/null
k run counter --image=$image --restart=Never --command -- sh -c 'for i in 1 2 3 4 5 6; do echo $i; sleep 1; done' >/dev/null
lines() { [ "$(k logs "${@:2}" 2>/dev/null)" = "$1" ]; }
check "logs has both streams, in order" soon lines $'line 1\nline 2\nline 3\nto-stderr' talker
check "--tail" lines $'line 3\nto-stderr' talker --tail=2
check "--limit-bytes" lines 'line' talker --limit-bytes=4
stamped() { k logs talker --timestamps --tail=1 | grep -Eq '^[0-9]{4}-[0-9-]+T[0-9:]+\.[0-9]+(Z|\+00:00) to-stderr$'; }
check "--timestamps" stamped
linked() {
  local node; node=$(field talker .spec.nodeName)
  grep -q 'stdout F line 1' "$dir/$node"/containers/talker_default_talker-*.log
}
check "the log is linked where collectors look" linked
check "-f ends with the container" soon lines $'1\n2\n3\n4\n5\n6' counter -f
sleep 4
check "--since leaves older lines away" lines '' counter --since=2s
restarted() { [ "$(field crasher "$restarts")" -ge 1 ]; }
check "a container that crashes is restarted" soon restarted
previous() { k logs crasher --previous | found '^start '; }
check "--previous" previous
refused() { local said; said=$(k logs talker "${@:2}" 2>&1); [[ $said == *"$1"* ]]; }
check "--previous of a first run says so" refused 'previous terminated container "talker" in pod "talker" not found' --previous
check "an unknown container is named" refused 'container nope is not valid for pod talker' -c nope
k run writer --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n1"}}' --command -- \
  sh -c 'sleep 2; i=0; while [ $i -lt 30000 ]; do echo line $i of a log that is long enough to be put aside several times while it is read; i=$((i+1)); done' >/dev/null
soon is writer .status.phase Running
followed() {
  k logs -f writer >"$layout/followed" && [ "$(wc -l <"$layout/followed")" = 30000 ] &&
    awk '$2 != NR - 1 { exit 1 }' "$layout/followed" && [ "$(ls "$dir"/n1/log/default_writer_*/writer | wc -l)" -ge 3 ]
}
check "-f follows over rotations, no line is lost" followed
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: OnFailure
  volumes: [{name: d, emptyDir: {}}]
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "echo >>/d/runs; n=\$(wc -l </d/runs); echo run \$n; sleep 1; echo end \$n; [ \$n = 3 ]"]
    volumeMounts: [{name: d, mountPath: /d}]
YAML
soon is again .status.phase Running
check "-f goes on with the next runs, until there is none" lines $'run 1\nend 1\nrun 2\nend 2\nrun 3\nend 3' again -f
k delete pod again talker crasher counter writer --timeout=60s --grace-period=1 >/dev/null
