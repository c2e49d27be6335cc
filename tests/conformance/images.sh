# The images of Kubernetes' tests, made from Debian's packages and the test programs themselves, in the cluster's registry.
# Sourced by tests/conformance.sh: uses $work, $bin, $PIKELET_CLUSTER_ID; sets KUBE_TEST_REPO_LIST.

registry=10.77.0.1:5000/e2e

# image NAME TAG ROOT [UMOCI-OPTION...]
image() {
  local name=$1 tag=$2 root=$3; shift 3
  { pack_image "$work/oci" "$name" "$root" && { [ $# = 0 ] || umoci config --image "$work/oci:$name" "$@"; } &&
    push_image "pk$PIKELET_CLUSTER_ID-cp" "$work/oci" "$name" "$registry/$name:$tag"; } >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; fail "image $name was not made"; }
}
tag() { awk -v name="$registry/$1:" 'index($0, name) == 1 { sub(".*:", ""); print; exit }' "$work/images"; }
# with_libraries PROGRAM NAME: a program of this machine in the root's /bin, with the libraries it wants
with_libraries() {
  rm -f "$work/root/bin/$2" && cp "$(command -v "$1")" "$work/root/bin/$2"
  ldd "$(command -v "$1")" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$work/root$(dirname "$library")" && cp -L "$library" "$work/root$library"
  done
}

# All images come from one place, under the names and tags these tests ask for.
for key in promoterE2eRegistry buildImageRegistry gcEtcdRegistry gcRegistry sigStorageRegistry privateRegistry \
  dockerLibraryRegistry cloudProviderGcpRegistry; do echo "$key: $registry"; done >"$work/registries"
export KUBE_TEST_REPO_LIST=$work/registries
"$bin/e2e.test" --list-images >"$work/images" 2>/dev/null || fail "e2e.test does not list its images"
busybox_root "$work/root"
# tests that look into the environment run `sh`, those that want busybox' own words `/bin/sh`
mkdir -p "$work/root/usr/local/bin"
cp "$(command -v bash-static)" "$work/root/bin/bash"
ln -s /bin/bash "$work/root/usr/local/bin/sh"
image sleeper 1 "$work/root" --clear=config.cmd --config.cmd sleep --config.cmd 100000
image busybox "$(tag busybox)" "$work/root" --config.env PATH=/usr/local/bin:/bin
# tests of a node want another image than busybox of these, and a shell in it
for name in nginx httpd; do
  for tag in $(awk -F: -v name="/$name:" 'index($0, name) { print $NF }' "$work/images"); do
    image $name "$tag" "$work/root" --config.env PATH=/usr/local/bin:/bin
  done
done
image nonroot "$(tag nonroot)" "$work/root" --config.user 1234
cp "$bin/nnp" "$work/root/bin/" && chmod 6755 "$work/root/bin/nnp"
image nonewprivs "$(tag nonewprivs)" "$work/root" --clear=config.cmd --config.cmd nnp
rm "$work/root/bin/nnp"
ln -sf bash "$work/root/bin/sh"
with_libraries hostname hostname
image glibc-dns-testing "$(tag glibc-dns-testing)" "$work/root"
with_libraries curl curl
with_libraries nc.openbsd nc
cp "$bin/agnhost" "$work/root/" && ln -s agnhost "$work/root/agnhost-2" && mkdir -p "$work/root/uploads"
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -keyout "$work/root/localhost.key" \
  -out "$work/root/localhost.crt" 2>/dev/null
# what agnhost's own registry serves: one image
digest=$(jq -r '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == "sleeper").digest' "$work/oci/index.json")
served=$work/root/var/registry/pause
for blob in "$digest" $(jq -r '.config.digest, .layers[].digest' "$work/oci/blobs/${digest/://}"); do
  folder=$([ "$blob" = "$digest" ] && echo manifests || echo blobs)/sha256/${blob:7:2}/${blob#*:}
  mkdir -p "$served/$folder" && cp "$work/oci/blobs/${blob/://}" "$served/$folder/data"
done
echo "$digest" >"$served/manifests/testing"
# it does not run as root
chmod -R a+rX "$served"
echo 'user-defined-in-image:x:1000:1000::/:/bin/sh' >>"$work/root/etc/passwd"
printf 'user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >>"$work/root/etc/group"
agnhost=(--clear=config.cmd --config.entrypoint /agnhost --config.cmd pause)
for tag in $(awk -F: '/\/agnhost:/ { print $NF }' "$work/images"); do image agnhost "$tag" "$work/root" "${agnhost[@]}"; done
image pause "$(tag pause)" "$work/root" --clear=config.cmd --config.entrypoint /agnhost --config.entrypoint pause
