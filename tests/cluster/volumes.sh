# Parts of volumes, and what is mounted below them.

mkdir -p "$dir/n1/share/below" "$dir/n1/share/inner/deep"
echo "from the host" >"$dir/n1/share/inner/deep/file"
ln -s inner/deep "$dir/n1/share/inside"
ln -s /etc "$dir/n1/share/outside"
on n1 mount -t tmpfs -o mode=1777 tmpfs "$dir/n1/share/below"
k create configmap parts --from-literal=one=first --from-literal=two=second >/dev/null
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: parts}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000, supplementalGroups: [3000]}
  volumes:
  - {name: own, emptyDir: {}}
  - {name: share, hostPath: {path: $dir/n1/share}}
  - {name: config, configMap: {name: parts}}
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "stat -c %a /own /made /by; cat /one /inside/file; touch /rw/below/x || echo no; touch /rro/below/x || echo no; sleep 3; exit 1"]
    env: [{name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts:
    - {name: own, mountPath: /own}
    - {name: own, mountPath: /made, subPath: a/b}
    - {name: own, mountPath: /by, subPathExpr: "\$(WHO)/logs"}
    - {name: config, mountPath: /one, subPath: one}
    - {name: share, mountPath: /inside, subPath: inside}
    - {name: share, mountPath: /rw, readOnly: true}
    - {name: share, mountPath: /rro, readOnly: true, recursiveReadOnly: Enabled}
YAML
part() { # NAME MOUNT-FIELDS: a pod with one mount of the shared folder
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: share, hostPath: {path: $dir/n1/share}}]
  containers:
  - {name: c, image: "$image", command: [sleep, "1000"], env: [{name: UP, value: ../up}], volumeMounts: [{name: share, mountPath: /s, $2}]}
YAML
}
part escapes "subPath: outside"
part unnamed 'subPathExpr: "$(NOBODY)/x"'
part upwards 'subPathExpr: "$(UP)"'
seen() { k logs parts 2>/dev/null | grep -vx "touch: .*" | tr '\n' ' ' | found -x "$1 "; }
check "parts of volumes: made with the volume's mode, a file, a link inside; recursiveReadOnly" \
  soon seen "2777 2777 2777 firstfrom the host no"
check "a link that leads out is refused" soon is escapes "$waiting" CreateContainerConfigError
check "  and said so" soon event escapes "leads out of its volume"
check "an unknown variable in subPathExpr is said" soon event unnamed 'missing value for .*NOBODY'
check "one that leads upwards is refused" soon event upwards "must not contain"
check "the status says what is mounted how" is parts \
  '.status.containerStatuses[0].volumeMounts[?(@.mountPath=="/rro")].recursiveReadOnly' Enabled
check "  and who the container runs as" is parts '.status.containerStatuses[0].user.linux' \
  '{"gid":1000,"supplementalGroups":[1000,3000,2000],"uid":1000}'
again() { [ "$(field parts "$restarts")" -ge 2 ]; }
check "a container that is started again has its parts again" soon again
bound() { on n1 grep -c "$dir/n1/.*volume-subpaths" /proc/self/mountinfo; }
few() { [ "$(bound)" -le 8 ]; }
check "  and those of the runs before are given back" soon few
k delete pod parts escapes unnamed upwards --timeout=30s >/dev/null
none() { [ "$(bound)" = 0 ]; }
check "nothing of them stays" soon none
check "  and the volume's own files do" test -s "$dir/n1/share/inner/deep/file"
on n1 umount "$dir/n1/share/below"

# volumes that outlive their pods
mkdir -p "$dir"/n1/pv/{local,host,own,set-0,set-1}
echo kept >"$dir/n1/pv/local/file"; chmod 600 "$dir/n1/pv/local/file"; chmod 700 "$dir/n1/pv/local"
pv() { # NAME SOURCE [NODE]: a volume of this node, that only a claim which names it takes
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: $1, labels: {is: $1}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  $2
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [${3:-n1}]}]}]}
YAML
}
claim() { # NAME PV
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Gi}}, selector: {matchLabels: {is: $2}}}
YAML
}
pv pvlocal "local: {path: $dir/n1/pv/local}"
pv pvhost "hostPath: {path: $dir/n1/pv/host}"
claim local pvlocal; claim host pvhost; claim nowhere pvlate
user() { # NAME CLAIM FIELDS COMMAND: a pod with a claim at /data
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  restartPolicy: Never
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  volumes: [{name: data, persistentVolumeClaim: {claimName: $2$3}}]
  containers: [{name: c, image: "$image", command: [sh, -c, "$4"], volumeMounts: [{name: data, mountPath: /data}]}]
YAML
}
bound_claim() { [ "$(k get pvc "$1" -o jsonpath='{.status.phase}')" = Bound ]; }
soon bound_claim local && soon bound_claim host
user locals local "" "cat /data/file && echo more >>/data/file; stat -c %a:%g /data /data/file"
user readers local ", readOnly: true" "cat /data/file; touch /data/x || echo refused"
user hosts host "" "stat -c %g /data"
user waits nowhere "" "cat /data/came"
logs() { soon is "$1" .status.phase Succeeded && [ "$(k logs "$1" | grep -v ^touch | tr '\n' ' ')" = "$2 " ]; }
check "a local volume is its group's, with all that is in it" logs locals "kept 2770:2000 660:2000"
check "a claim taken read-only is" logs readers "kept more refused"
check "what a hostPath volume holds keeps its owners" logs hosts 0
check "a pod waits for its claim and says so" soon event waits 'FailedMount.*PVC default/nowhere is not bound'
check "  in its status too" is waits '.status.containerStatuses[0].state.waiting.message' \
  'MountVolume.SetUp failed for volume "data" : PVC default/nowhere is not bound: waiting for a PersistentVolume'
echo there >"$dir/n1/pv/own/came"; chmod 644 "$dir/n1/pv/own/came"
pv pvlate "hostPath: {path: $dir/n1/pv/own}"
check "  and runs when there is a volume" logs waits there
pv pvother "local: {path: $dir/n1/pv/local}" elsewhere
claim other pvother
soon bound_claim other
user strays other "" "true"
check "the volume of another node is not mounted here" soon event strays 'FailedMount.*NodeAffinity check failed for PV "pvother"'
k delete pod strays --grace-period=0 --force >/dev/null 2>&1
check "a volume's files stay when its pods go" grep -q more "$dir/n1/pv/local/file"
k delete pod locals readers hosts waits --timeout=30s >/dev/null
check "  also after that" grep -q kept "$dir/n1/pv/local/file"

# a StatefulSet finds its data again, by name, after its pods were deleted and after the agent was killed
for n in 0 1; do pv "set-$n" "local: {path: $dir/n1/pv/set-$n}"; done
k apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: "$image"
        command: [sh, -c, "hostname >>/data/names; exec sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Gi}}}
YAML
full() { [ "$(k get statefulset db -o jsonpath='{.status.readyReplicas}')" = 2 ]; }
check "the pods of a StatefulSet get volumes" soon full
k delete pod db-0 db-1 --timeout=60s >/dev/null
sleep 1; soon full
$cluster stop agent-n1 KILL; $cluster start agent-n1
k wait --for=condition=Ready node/n1 --timeout=30s >/dev/null
k delete pod db-1 --timeout=60s >/dev/null
sleep 1; soon full
names() { k exec "db-$1" -- cat /data/names | tr '\n' ' '; }
twice() { [ "$(names 0)" = "db-0 db-0 " ] && [ "$(names 1)" = "db-1 db-1 db-1 " ]; }
check "  and their data again, after pods and agent were killed" soon twice
k delete statefulset db --timeout=30s >/dev/null
k delete pvc --all --timeout=30s >/dev/null; k delete pv --all --timeout=30s >/dev/null

# a variable that an init container has written
k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: filed}
spec:
  nodeName: n1
  restartPolicy: Never
  volumes: [{name: e, emptyDir: {}}]
  initContainers: [{name: i, image: "$image", command: [sh, -c, "echo \"COLOR='dark green'\" >/e/vars"], volumeMounts: [{name: e, mountPath: /e}]}]
  containers:
  - name: c
    image: "$image"
    command: [sh, -c, "echo \$TINT"]
    env: [{name: TINT, valueFrom: {fileKeyRef: {volumeName: e, path: vars, key: COLOR}}}]
YAML
check "fileKeyRef: a variable from a file of a volume" logs filed "dark green"
k delete pod filed --timeout=30s >/dev/null

# an image as a volume
mkdir -p "$layout/files/sub"; echo "of an image" >"$layout/files/sub/file"; cp "$(command -v busybox)" "$layout/files/tool"
pack_image "$layout/oci" files "$layout/files" >/dev/null 2>&1
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" files "${image%/*}/files:1"
imaged() { # NAME REFERENCE MOUNT-FIELDS COMMAND
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n2
  restartPolicy: Never
  volumes: [{name: v, image: {reference: "$2", pullPolicy: IfNotPresent}}]
  containers: [{name: c, image: "$image", command: [sh, -c, "$4"], volumeMounts: [{name: v, mountPath: /v$3}]}]
YAML
}
imaged whole "${image%/*}/files:1" "" "cat /v/sub/file; touch /v/x 2>/dev/null || echo read-only; /v/tool true 2>/dev/null || echo noexec"
imaged part "${image%/*}/files:1" ", subPath: sub" "cat /v/file"
imaged absent "${image%/*}/files:none" "" "true"
imaged nosuch "${image%/*}/files:1" ", subPath: other" "true"
check "an image as a volume is there, read-only and without programs" logs whole "of an image read-only noexec"
check "  or a part of it" logs part "of an image"
check "one that cannot be pulled keeps the container waiting" soon is absent "$waiting" ImagePullBackOff
check "a part it does not have is said" soon event nosuch "No such file"
k delete pod part absent nosuch --timeout=30s >/dev/null
k delete pod whole --timeout=30s >/dev/null
gone() { ! on n2 grep -q "kubernetes.io~image" /proc/self/mountinfo; }
check "nothing of them stays mounted" soon gone

# what an image declares as a VOLUME
mkdir -p "$layout/seed/data"; echo seed >"$layout/seed/data/file"; chown -R 1000:50 "$layout/seed/data"; chmod 750 "$layout/seed/data"
tar -C "$layout/seed" -cf "$layout/seed.tar" data
{ umoci config --image "$layout/oci:1" --tag volume --config.volume /data --config.volume /not/there --config.volume /own/part &&
  umoci raw add-layer --image "$layout/oci:volume" "$layout/seed.tar"; } >/dev/null 2>&1
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" volume "${image%/*}/volume:1"
for user in true false; do
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: declared-$user}
spec:
  nodeName: n2
  hostUsers: $user
  restartPolicy: Never
  volumes: [{name: own, emptyDir: {}}]
  containers:
  - name: c
    image: "${image%/*}/volume:1"
    securityContext: {readOnlyRootFilesystem: true}
    command: [sh, -c, "stat -c '%a %u:%g' /data; cat /data/file; touch /data/x /not/there/x && echo writable; touch /x 2>/dev/null || echo read-only; touch /own/part 2>/dev/null && echo own; grep -q 'overlay /data' /proc/mounts || echo no overlay"]
    volumeMounts: [{name: own, mountPath: /own}]
YAML
done
declared="750 1000:50 seed writable read-only own no overlay"
check "a VOLUME of an image is a folder of its own, with what the image has there" logs declared-true "$declared"
check "  in a pod with users of its own too" logs declared-false "$declared"
declared_id=$(k get pod declared-true -o jsonpath='{.status.containerStatuses[0].containerID}')
k delete pod declared-true declared-false --timeout=30s >/dev/null
cleared() { ! on n2 test -e "$dir/n2/lib/containers/${declared_id#*://}"; }
check "  that goes with its container" soon cleared

# devices as volumes
truncate -s 8M "$dir/n1/disk"
disk=$(losetup --find --show "$dir/n1/disk" 2>/dev/null)
if [ -z "$disk" ]; then
  echo "     no loop devices here: block volumes are not tried"
else
  # block NAME READ-ONLY CONTAINER-FIELDS: a pod with the claim of the device
  block() {
    k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk, readOnly: $2}}, {name: own, emptyDir: {}}]
  containers: [{name: c, image: "$image", $3}]
YAML
  }
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 8Mi}
  volumeMode: Block
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  local: {path: $disk}
  claimRef: {name: disk, namespace: default}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {volumeMode: Block, accessModes: [ReadWriteOnce], storageClassName: "", volumeName: disk, resources: {requests: {storage: 8Mi}}}
YAML
  at='volumeDevices: [{name: disk, devicePath: /dev/data}]'
  block writes false "command: [sh, -c, 'printf written | dd of=/dev/data conv=notrunc,fsync && [ -b /dev/data ]'], $at"
  check "a block volume is a device of the container" soon is writes .status.phase Succeeded
  written() { [ "$(head -c 7 "$dir/n1/disk")" = written ]; }
  check "  and what is written there is on the disk" written
  block reads true "command: [sh, -c, 'dd if=/dev/data bs=7 count=1 && ! printf x | dd of=/dev/data conv=notrunc'], $at"
  check "a claim that is read-only can be read only" soon is reads .status.phase Succeeded
  block users false "securityContext: {runAsUser: 1000}, command: [sh, -c, 'dd if=/dev/data bs=7 count=1 | grep -q written'], $at"
  check "  the container's user may use it" soon is users .status.phase Succeeded
  block mounts false "command: ['true'], volumeMounts: [{name: disk, mountPath: /d}]"
  check "a block volume as a mount is refused" soon event mounts 'has volumeMode Block, but is specified in volumeMounts'
  mkdir "$dir/n1/folder"
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: folder}
spec: {capacity: {storage: 8Mi}, accessModes: [ReadWriteOnce], storageClassName: "", hostPath: {path: $dir/n1/folder}, claimRef: {name: folder, namespace: default}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: folder}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: folder, resources: {requests: {storage: 8Mi}}}
YAML
  k run devices --image=$image --overrides='{"spec":{"nodeName":"n1","volumes":[{"name":"own","persistentVolumeClaim":{"claimName":"folder"}}],
    "containers":[{"name":"devices","image":"'$image'","volumeDevices":[{"name":"own","devicePath":"/dev/data"}]}]}}' >/dev/null
  check "  as is a folder as a device" soon event devices 'has volumeMode Filesystem, but is specified in volumeDevices'
  k delete pod writes reads users mounts devices --grace-period=1 --timeout=30s >/dev/null
  k delete pvc disk folder --timeout=30s >/dev/null
  k delete pv disk folder --timeout=30s >/dev/null
  losetup --detach "$disk"
fi

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: leftovers}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: nowhere, hostPath: {path: /no/such/directory, type: Directory}}
  - {name: nothing, configMap: {name: no-such}}
  - {name: far, iscsi: {targetPortal: 192.0.2.1, iqn: "iqn.2001-04.com.example:x", lun: 0}}
  - {name: later, emptyDir: {}}
  containers: [{name: c, image: "$image", command: [sleep, "1000"]}]
YAML
check "volumes nobody mounts need not be there" until_true 20 is leftovers .status.phase Running
echo '{"volumeMounts": [{"name": "later", "mountPath": "/later"}]}' >"$dir/custom.json"
k debug leftovers --image=$image --container=looks --profile=general --custom="$dir/custom.json" -- sh -c 'touch /later/x; exec sleep 1000' >/dev/null 2>&1
written() { [ "$(k exec leftovers -c looks -- ls /later)" = x ]; }
check "  until somebody does" soon written
k delete pod leftovers --timeout=30s >/dev/null

k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: labelled, labels: {colour: red}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  volumes: [{name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]
  containers: [{name: c, image: "$image", command: [sleep, "1000"], volumeMounts: [{name: d, mountPath: /d}]}]
YAML
soon is labelled .status.phase Running
k label pod labelled --overwrite colour=green >/dev/null
shows() { k exec labelled -- cat /d/labels | found -x 'colour="green"'; }
check "a label of the pod is in its downwardAPI volume at once" until_true 5 shows
k delete pod labelled --timeout=30s >/dev/null
