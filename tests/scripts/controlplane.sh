#!/usr/bin/env bash
# Builds the control plane that cluster tests run against, only what is missing, and prints the folder it is in.
#
#   controlplane.sh [metrics-server|conformance]     with metrics-server, or with Kubernetes' own end-to-end tests
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

version=v1.36.3
dir=${PIKELET_CACHE:-$HOME/.cache/pikelet}/controlplane-$version
mkdir -p "$dir"

# Two test runs at once share the cache: one builds, the other waits.
exec 9>"$dir/.lock"
flock 9

stamp=k8s.io/component-base/version
ldflags="-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=36"
export GOFLAGS=-trimpath CGO_ENABLED=0 GOTOOLCHAIN=auto
unset GOOS GOARCH

# build NAME PACKAGE [MODULE]: into the cache, whole or not at all; by `go $verb`
build() {
  [ -x "$dir/$1" ] && return
  echo "controlplane: building $1 (once; minutes on a small machine)" >&2
  (cd "$here/../${3:-controlplane}" && go ${verb:-build} -mod=readonly -p 2 -ldflags "$ldflags" -o "$dir/.$1.new" "$2")
  mv "$dir/.$1.new" "$dir/$1"
}

for name in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
  build "$name" "k8s.io/kubernetes/cmd/$name"
done
build etcd go.etcd.io/etcd/server/v3
if [ "${1:-}" = conformance ]; then
  build agnhost k8s.io/kubernetes/test/images/agnhost
  build nnp k8s.io/kubernetes/test/images/nonewprivs
  build ginkgo github.com/onsi/ginkgo/v2/ginkgo
  verb="test -c" build e2e.test k8s.io/kubernetes/test/e2e
fi
[ "${1:-}" != metrics-server ] || build metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server metrics-server
echo "$dir"
