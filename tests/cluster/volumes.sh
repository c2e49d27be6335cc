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
seen() { k logs parts 2>/dev/null | grep -vx "touch: .*" | tr '\n' ' ' | grep -qx "$1 "; }
check "parts of volumes: made with the volume's mode, a file, a link inside; recursiveReadOnly" \
  soon seen "2777 777 777 firstfrom the host no"
check "a link that leads out is refused" soon is escapes "$waiting" CreateContainerConfigError
check "  and said so" event escapes "leads out of its volume"
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
check "  and those of the runs before are given back" few
k delete pod parts escapes unnamed upwards --timeout=30s >/dev/null
none() { [ "$(bound)" = 0 ]; }
check "nothing of them stays" none
check "  and the volume's own files do" test -s "$dir/n1/share/inner/deep/file"
on n1 umount "$dir/n1/share/below"
