# NFS volumes: a real server of this kernel, pods that write to it and read what others wrote, and servers that are none.
set -e
. tests/harness/common.sh
dir=$(mktemp -d)
export LD_LIBRARY_PATH=$libraries
modprobe -a nfsd nfsv4
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /var/lib/nfs/v4recovery "$dir/export/data" "$dir/manifests"
: >/var/lib/nfs/etab; : >/var/lib/nfs/rmtab
exportfs -i -o rw,fsid=0,no_root_squash,no_subtree_check,insecure "127.0.0.1:$dir/export"
rpc.mountd --foreground --no-nfs-version 3 --no-udp >"$dir/mountd.log" 2>&1 &
mountd=$!
echo '-3 +4 +4.1 +4.2' >/proc/fs/nfsd/versions
echo 'tcp 2049' >/proc/fs/nfsd/portlist || rpc.nfsd --no-nfs-version 3 --no-udp 2
echo 2 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace
unset LD_LIBRARY_PATH
echo before >"$dir/export/data/before"

busybox_image "$dir/layout" 1 >/dev/null 2>&1
skopeo --insecure-policy copy --quiet "oci:$dir/layout:1" "oci-archive:$dir/busybox.tar:nfs/busybox:1"
# pod NAME NFS COMMAND
pod() {
  cat >"$dir/manifests/$1.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, nfs: $2}]
  containers: [{name: c, image: "nfs/busybox:1", command: [sh, -c, "$3; exec sleep 100000"], volumeMounts: [{name: v, mountPath: /v}]}]
YAML
}
pod writes '{server: 127.0.0.1, path: /data}' 'cat /v/before >/v/after'
pod reads '{server: 127.0.0.1, path: /data, readOnly: true}' 'touch /v/denied || cp /v/before /tmp/seen'
pod nobody '{server: 127.0.0.1, path: /nowhere}' true
start() {
  "$PIKELET_BIN" run --node-name pi --pod-manifest-path "$dir/manifests" --root-dir "$dir/lib" --state-dir "$dir/run" \
    --pod-logs-dir "$dir/logs" --cgroup-root nfs --bridge pknfs --pod-cidr 10.90.1.0/24 >>"$dir/log" 2>&1 &
  agent=$!
}
agent=
trap '[ -z "$agent" ] || kill "$agent"; kill "$mountd"; echo 0 >/proc/fs/nfsd/threads' EXIT
start
until_true 30 test -S "$dir/run/agent.sock"
"$PIKELET_BIN" image import --state-dir "$dir/run" "$dir/busybox.tar"
wrote() { [ "$(cat "$dir/export/data/after")" = before ]; }
until_true 60 wrote || fail "nothing was written: $(cat "$dir/log" "$dir/mountd.log")"
inside() { "$PIKELET_BIN" exec --state-dir "$dir/run" "$@"; }
seen() { [ "$(inside reads-pi -- cat /tmp/seen)" = before ]; }
until_true 30 seen || fail "readOnly: $(cat "$dir/log")"
[ ! -e "$dir/export/data/denied" ] || fail "a volume that is readOnly was written to"
mounts() { grep -c ' - nfs4 ' /proc/self/mountinfo; }
[ "$(mounts)" = 2 ] || fail "mounted: $(cat /proc/self/mountinfo)"
until_true 10 grep -q 'mounting NFS 127.0.0.1:/nowhere' "$dir/log" || fail "no complaint of an export that is none: $(cat "$dir/log")"

# an agent that was killed finds them mounted, and unmounts them when their pods go
kill -9 "$agent"
start
until_true 10 inside writes-pi -- sh -c 'echo again >/v/again'
[ "$(cat "$dir/export/data/again")" = again ] || fail "not written: $(cat "$dir/log")"
[ "$(mounts)" = 2 ] || fail "mounted anew: $(cat /proc/self/mountinfo)"
rm "$dir"/manifests/*.yaml
unmounted() { ! grep -q ' - nfs4 ' /proc/self/mountinfo; }
until_true 60 unmounted || fail "still mounted: $(cat "$dir/log")"
[ "$(cat "$dir/export/data/after")" = before ] || fail "data of the export are gone"
