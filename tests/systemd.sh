#!/usr/bin/env bash
# The systemd unit, and what the agent tells a service manager. Prints a line per case, and `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")"
. harness/common.sh
. harness/check.sh
bin=$(pikelet_bin) || exit 1
dir=$(mktemp -d /tmp/pikelet-systemd.XXXXXX)

sed "s|^ExecStart=[^ ]*|ExecStart=$bin|" ../systemd/pikelet.service >"$dir/pikelet.service"
said=$(systemd-analyze verify --man=no "$dir/pikelet.service" 2>&1)
check "systemd takes the unit${said:+: $said}" test -z "$said"

cat >"$dir/manager.py" <<'PY'
import os, socket, subprocess, sys, time
path = sys.argv[1] + "/notify"
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(path)
agent = subprocess.Popen(sys.argv[2:], env=os.environ | {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1500000"})
manager.settimeout(10)
begin, alive = None, 0
while alive < 4:
    said = manager.recv(4096).decode().strip()
    print(said, flush=True)
    if said == "READY=1":
        begin = time.time()
    alive += said == "WATCHDOG=1"
print("watched", round(time.time() - begin, 1), flush=True)
agent.terminate()
while True:
    said = manager.recv(4096).decode().strip()
    print(said, flush=True)
    if said == "STOPPING=1":
        break
print("exit", agent.wait(10), flush=True)
PY
mkdir "$dir/manifests"
timeout 60 unshare --net --mount --propagation private sh -c 'ip link set lo up; exec "$@"' sh python3 "$dir/manager.py" "$dir" \
  "$bin" run --node-name sd --pod-manifest-path "$dir/manifests" --root-dir "$dir/lib" --state-dir "$dir/run" \
  --pod-logs-dir "$dir/log" --pod-cidr 10.99.0.0/24 --cgroup-root "pksd$$" >"$dir/said" 2>"$dir/log.txt"
check "it says when it is ready" grep -qx READY=1 "$dir/said"
check "  and that it lives, in time for the watchdog" grep -qE '^watched 1\.[0-9]' "$dir/said"
check "  and that it ends" grep -qx STOPPING=1 "$dir/said"
check "  which it does" grep -qx 'exit 0' "$dir/said"

# ---- a cluster whose server is away ----
cat >"$dir/away.yaml" <<YAML
server: https://127.0.0.1:1
token: abcdef.0123456789abcdef
caCertHash: ["sha256:$(printf '%064d' 0)"]
YAML
cat >"$dir/away.py" <<'PY'
import os, socket, subprocess, sys, time
path = sys.argv[1] + "/away"
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(path)
agent = subprocess.Popen(sys.argv[2:], env=os.environ | {"NOTIFY_SOCKET": path})
end = time.time() + 4
try:
    while end > time.time():
        manager.settimeout(end - time.time())
        print(manager.recv(4096).decode().strip(), flush=True)
except TimeoutError:
    pass
agent.terminate()
print("exit", agent.wait(10), flush=True)
PY
timeout 60 unshare --net --mount --propagation private sh -c 'ip link set lo up; exec "$@"' sh python3 "$dir/away.py" "$dir" \
  "$bin" run --node-name sd --config "$dir/away.yaml" --root-dir "$dir/lib2" --state-dir "$dir/run2" \
  --pod-logs-dir "$dir/log" --cgroup-root "pksd$$" >"$dir/said2" 2>"$dir/log2.txt"
check "it is not ready while it joins a cluster" eval '! grep -qx READY=1 "$dir/said2" && grep -qx "STATUS=joining the cluster" "$dir/said2"'
check "  and ends when it is told to" grep -qx 'exit 0' "$dir/said2"
[ $failed = 0 ] || tail -n 20 "$dir"/{said,log.txt,said2,log2.txt}
sweep "$dir" "pksd$$"
rm -rf "$dir"
verdict
