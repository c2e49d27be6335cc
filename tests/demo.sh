#!/usr/bin/env bash
# make demo: a pod from a manifest folder, pulled from a real registry, with no API server. Ends by itself and cleans up.
set -euo pipefail
cd "$(dirname "$0")/.."

pikelet=${1:?usage: demo.sh PIKELET_BINARY}
pikelet=$(realpath "$pikelet")
id=pkdemo$$
dir=$(mktemp -d "${TMPDIR:-/tmp}/$id.XXXX")
pids=()

# replaces the shell it is called in: the pid of the background job is the agent's
agent() {
  exec nsenter --net="/run/netns/$id" "$pikelet" run --node-name pi --pod-manifest-path "$dir/manifests" \
    --root-dir "$dir/lib" --state-dir "$dir/run" --pod-logs-dir "$dir/logs" --cgroup-root "$id" --bridge "pkb$$" \
    --pod-cidr 10.88.0.0/24 --insecure-registry 127.0.0.1:5000 >>"$dir/agent.log" 2>&1
}

say() { printf '\n== %s\n' "$*"; }
# not `ip netns exec`, which hides the cgroups behind a new /sys
in_ns() { nsenter --net="/run/netns/$id" "$@"; }

cleanup() {
  status=$?
  if [ -S "$dir/run/agent.sock" ]; then in_ns "$pikelet" drain-local --state-dir "$dir/run" || status=1; fi
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
  ip netns del "$id" 2>/dev/null || true
  for controller in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
    for part in "$id/besteffort" "$id/burstable" "$id"; do rmdir "$controller$part" 2>/dev/null || true; done
  done
  left=$(grep -c " $dir" /proc/mounts || true)
  if [ "$left" != 0 ] || find /sys/fs/cgroup -maxdepth 2 -type d -name "$id" | grep -q .; then
    echo "demo: mounts or cgroups are left over" >&2
    status=1
  fi
  if [ "$status" != 0 ] && [ -f "$dir/agent.log" ]; then tail -n 40 "$dir/agent.log" >&2; fi
  rm -rf "$dir"
  exit "$status"
}
trap cleanup EXIT

# wait_for SECONDS COMMAND...: until the command succeeds
wait_for() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then echo "demo: timed out waiting for: $*" >&2; return 1; fi
    sleep 0.1
  done
}

say "an OCI image from Debian's busybox-static"
umoci init --layout "$dir/oci"
umoci new --image "$dir/oci:1"
umoci unpack --image "$dir/oci:1" "$dir/bundle" >/dev/null
mkdir -p "$dir/bundle/rootfs/"{bin,tmp,etc,proc,sys,dev}
cp /bin/busybox "$dir/bundle/rootfs/bin/"
for applet in sh echo sleep cat wget httpd nc hostname ls kill; do ln -s busybox "$dir/bundle/rootfs/bin/$applet"; done
umoci repack --image "$dir/oci:1" "$dir/bundle" >/dev/null
umoci config --image "$dir/oci:1" --config.cmd /bin/sh

say "a registry on loopback of a network namespace of its own"
ip netns add "$id"
in_ns ip link set lo up
cat >"$dir/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: 127.0.0.1:5000}
YAML
nsenter --net="/run/netns/$id" docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
pids+=($!)
wait_for 20 in_ns curl -fsS http://127.0.0.1:5000/v2/
in_ns skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$dir/oci:1" docker://127.0.0.1:5000/busybox:1

say "the agent, standalone, with a manifest folder"
mkdir -p "$dir/manifests"
cat >"$dir/manifests/demo.yaml" <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: demo}
spec:
  terminationGracePeriodSeconds: 2
  volumes: [{name: site, emptyDir: {}}]
  initContainers:
  - name: write
    image: 127.0.0.1:5000/busybox:1
    command: [sh, -c, "echo hello from the init container > /site/index.html"]
    volumeMounts: [{name: site, mountPath: /site}]
  containers:
  - name: web
    image: 127.0.0.1:5000/busybox:1
    command: [httpd, -f, -p, "8080", -h, /site]
    volumeMounts: [{name: site, mountPath: /site, readOnly: true}]
  - name: client
    image: 127.0.0.1:5000/busybox:1
    command: [sh, -c, "while true; do wget -q -O - http://127.0.0.1:8080/; sleep 1; done"]
YAML
agent &
pids+=($!)
ps() { in_ns "$pikelet" ps --state-dir "$dir/run"; }
running() { ps | grep -q '2/2 *Running'; }
wait_for 60 running
ps

say "what the client logged over localhost"
hello() { grep -h 'hello from the init container' "$dir"/logs/*/client/0.log; }
wait_for 20 hello
hello | head -n 2

say "a look inside with no API server: exec, logs, top, port-forward"
pod=$(ps | awk '/^default/ { print $2 }')
do_pod() { local verb=$1; shift; in_ns "$pikelet" "$verb" --state-dir "$dir/run" "$@"; }
code=0
do_pod exec -c web "$pod" -- sh -c 'hostname; exit 7' || code=$?
[ "$code" = 7 ]
[ "$(echo through | do_pod exec -i -c client "$pod" -- cat)" = through ]
do_pod logs -c client --tail 1 "$pod"
do_pod top
(exec nsenter --net="/run/netns/$id" "$pikelet" port-forward --state-dir "$dir/run" "$pod" 18080:8080 >"$dir/forward.log") &
pids+=($!)
forwarded() { in_ns curl -fsS http://127.0.0.1:18080/; }
wait_for 10 forwarded
forwarded

say "one container killed: it is started again"
pid=$(cat "$dir"/run/sandboxes/*/containers/*/info.json | jq -r 'select(.spec.name == "web" and .exit == null) | .pid')
kill -9 "$pid"
restarted() { ps | grep -q '2/2 *Running *1 '; }
wait_for 30 restarted
ps

say "the agent killed with -9: pods go on, a new agent finds them"
kill -9 "${pids[1]}"
wait "${pids[1]}" 2>/dev/null || true
agent &
pids[1]=$!
wait_for 30 restarted
ps

say "drained and cleaned up"
