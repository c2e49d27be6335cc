#!/usr/bin/env bash
# make bench: pulls of a 100 MB image of 5 layers from a registry on loopback, beside `skopeo copy` and `umoci unpack`,
# and beside `ctr image pull` of a containerd of its own, in the same run. The layers hold this machine's own /usr:
# programs, libraries and texts as images have them. All three write to an ext4 of their own with a journal, as cards have it:
# one without takes its time to make files where others have just been removed, and the next in turn pays for the last.
set -euo pipefail
cd "$(dirname "$0")/.."
# mounts that nobody else sees, and that end with this
[ -n "${BENCH_MOUNTS:-}" ] || BENCH_MOUNTS=own exec unshare --mount --propagation private bench/images.sh
. harness/common.sh
programs mkfs.ext4:e2fsprogs
rounds=5 megabytes=20
[ -z "${BENCH_SHORT:-}" ] || rounds=1 megabytes=2
pikelet=$(pikelet_bin)
work=$(mktemp -d)
mkdir "$work/pids" "$work/registry"
trap 'proc_stop "$work/pids" agent; proc_stop "$work/pids" containerd; proc_stop "$work/pids" registry
  umount -l "$work/card" 2>/dev/null || true; rm -rf "$work"' EXIT
truncate -s 4G "$work/card.img"
mkfs.ext4 -q "$work/card.img"
mkdir "$work/card"
mount -o loop "$work/card.img" "$work/card" || say "no loop device here: all three write to ${TMPDIR:-/tmp}, whatever that is"

# five layers of the files of /usr, in order, each of so many megabytes
find /usr/bin /usr/lib /usr/share -xdev -type f -size -2M -printf '%s %p\n' 2>/dev/null | sort -k 2 |
  awk -v limit=$((megabytes * 1000000)) -v dir="$work" '
    { n = int(sum / limit) + 1; sum += $1; if (n <= 5) print $2 > (dir "/list-" n) }'
umoci init --layout "$work/oci"
umoci new --image "$work/oci:1"
for n in 1 2 3 4 5; do
  tar --files-from "$work/list-$n" -cf "$work/layer.tar" 2>/dev/null
  umoci raw add-layer --image "$work/oci:1" "$work/layer.tar" >/dev/null 2>&1
done
address=127.0.0.1:$((20000 + $$ % 10000))
cat >"$work/registry.yaml" <<YAML
{version: 0.1, log: {level: error}, http: {addr: "$address"}, storage: {filesystem: {rootdirectory: "$work/registry"}}}
YAML
proc_start "$work/pids" "$work" registry docker-registry serve "$work/registry.yaml"
until_true 10 curl -fs "http://$address/v2/" || fail "docker-registry does not answer"
skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$work/oci:1" "docker://$address/bench:1"

mkdir "$work/card/root" "$work/run"
proc_start "$work/pids" "$work" agent "$pikelet" run --root-dir "$work/card/root" --state-dir "$work/run" \
  --pod-logs-dir "$work/logs" --healthz-port 0 --bridge "pkb$$" --insecure-registry "$address"
until_true 10 test -S "$work/run/agent.sock" || { tail -n 5 "$work/agent.log" >&2; fail "the agent is not up"; }
agent=$(proc_pid "$work/pids" agent)

# a containerd whose mounts nobody else sees; what it is missing is said in the table
ctr=(ctr --address "$work/containerd.sock")
cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/card/containerd"
state = "$work/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$work/containerd.sock"
[ttrpc]
address = "$work/containerd.sock.ttrpc"
TOML
without=
if ! command -v ctr containerd >/dev/null; then
  without="containerd is not installed"
else
  proc_start "$work/pids" "$work" containerd \
    unshare --mount --propagation slave containerd --config "$work/containerd.toml"
  until_true 10 "${ctr[@]}" version || without="containerd does not start here: $(tail -n 1 "$work/containerd.log")"
fi

# timed COMMAND...: prints seconds
timed() {
  local start end
  start=$(date +%s%N); "$@" >>"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; return 1; }; end=$(date +%s%N)
  awk "BEGIN { print ($end - $start) / 1e9 }"
}
beside() {
  skopeo --insecure-policy copy --quiet --src-tls-verify=false "docker://$address/bench:1" "oci:$work/card/copy:1" &&
    umoci unpack --image "$work/card/copy:1" "$work/card/bundle"
}
ctr_pull() { "${ctr[@]}" image pull --plain-http --snapshotter overlayfs "$address/bench:1"; }
written() { awk '/^write_bytes/ { print $2 }' "/proc/$agent/io"; }
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

bytes=$(written)
for _ in $(seq "$rounds"); do
  rm -rf "$work/card/copy" "$work/card/bundle"
  timed beside >>"$work/theirs"
  if [ -z "$without" ]; then
    timed ctr_pull >>"$work/ctrs" || without="ctr image pull failed here"
    "${ctr[@]}" image rm --sync "$address/bench:1" >/dev/null 2>&1 || true
  fi
  [ ! -s "$work/ours" ] || "$pikelet" rmi --state-dir "$work/run" "$address/bench:1" >/dev/null
  timed "$pikelet" pull --quiet --state-dir "$work/run" "$address/bench:1" >>"$work/ours"
  [ -n "${size:-}" ] || { bytes=$(($(written) - bytes)); size=$(du -s --block-size=1 "$work/card/root/images/layers" | cut -f 1); }
done
peak=$(awk '/^VmHWM/ { print $2 / 1024 }' "/proc/$agent/status")
ours=$(median <"$work/ours") theirs=$(median <"$work/theirs")
row() { printf '%-52s %24s   %s\n' "$@"; }
row "skopeo copy + umoci unpack, $((megabytes * 5)) MB in 5 layers, p50" "$(printf '%.2f s' "$theirs")" ""
row "pikelet pull of the same, synced to disk, p50" "$(printf '%.2f s' "$ours")" ""
row "  in times of the other" "$(awk "BEGIN { printf \"%.2f\", $ours / $theirs }")" "0.80"
if [ -z "$without" ]; then
  containerd=$(median <"$work/ctrs")
  row "containerd's ctr image pull of the same, p50" "$(printf '%.2f s' "$containerd")" ""
  row "  pikelet in times of containerd" "$(awk "BEGIN { printf \"%.2f\", $ours / $containerd }")" "0.80"
else
  row "containerd's ctr image pull of the same" "skipped" "$without"
fi
row "peak memory of the agent" "$(printf '%.1f MiB' "$peak")" "32 MiB"
row "bytes written, in times of the unpacked size" "$(awk "BEGIN { printf \"%.3f\", $bytes / $size }")" "1.05"
