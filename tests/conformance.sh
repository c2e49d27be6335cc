#!/usr/bin/env bash
# make conformance: Kubernetes' own end-to-end tests, on a cluster whose only nodes are pikelet.
#
#   FOCUS=, SKIP=   regular expressions of test names      LABELS=  label filter [default: NodeConformance]
#   NODES=          nodes [2]                              PROCS=   tests side by side [6]
#   REPORT=         folder of the report [a temporary one] UPDATE=1 keeps the report in docs/conformance.txt
#   GUEST=1         the only node is an emulated machine with Debian's kernel
#   --short         without those that take minutes each (probes, sidecars, hooks, slow and serial ones)
#
# Prints a line per test that failed, and per test that ended otherwise than in docs/conformance.txt, and
# `N passed, N failed, N skipped`.
set -uo pipefail
cd "$(dirname "$0")"
. harness/common.sh
export PIKELET_CLUSTER_ID=${PIKELET_CLUSTER_ID:-e$(($$ % 9999))}
cluster=scripts/cluster.sh
report=${REPORT:-$(mktemp -d)}
mkdir -p "$report"
work=$(mktemp -d)
machine=
finish() {
  [ -z "$machine" ] || { kill "$machine" && wait "$machine"; } 2>/dev/null
  $cluster down || exit 1
  rm -rf "$work"
}
trap finish EXIT
skip=${SKIP:-}
[ "${1:-}" != --short ] || skip='\[Slow\]|\[Serial\]|Probing|SidecarContainers|NodeLease|Lifecycle'

# a shell that keeps every name in the environment, and what tests call in containers
programs bash-static:bash-static nc.openbsd:netcat-openbsd openssl:openssl || exit 1
bin=$(scripts/controlplane.sh conformance) || exit 1

nodes=${NODES:-2}
[ -z "${GUEST:-}" ] || nodes=0
# what this kernel cannot do is run on another
elsewhere=
if [ -z "${GUEST:-}" ] && ! unshare --net ip link add pkdummy type dummy 2>/dev/null; then
  elsewhere=PrivilegedPod
  skip="${skip:+$skip|}$elsewhere"
fi

$cluster up "$nodes" >/dev/null || exit 1
dir=$($cluster dir)
# shellcheck source=/dev/null
. conformance/images.sh

# from the control plane's network, which has routes to nodes and pods
sed "s#https://127.0.0.1:[0-9]*#https://10.77.0.1:6443#" "$dir/admin.kubeconfig" >"$work/kubeconfig"
if [ -n "${GUEST:-}" ]; then
  printf 'kubeconfig=%q ca=%q\n' "$work/kubeconfig" "$dir/pki/ca.crt" >"$work/settings"
  PIKELET_GUEST_SWITCH="pk$PIKELET_CLUSTER_ID-sw br0" PIKELET_GUEST_SETTINGS=$work/settings \
    ./guest.sh tests/conformance/guest-node.sh >"$report/guest.log" 2>&1 &
  machine=$!
  ready() { $cluster kubectl wait --for=condition=Ready node/guest --timeout=1s; }
  until_true 180 ready || fail "the emulated node does not become Ready: see $report/guest.log"
fi
nsenter --net="/run/netns/pk$PIKELET_CLUSTER_ID-cp" "$bin/ginkgo" --procs="${PROCS:-6}" --no-color \
  --label-filter="${LABELS-NodeConformance}" ${FOCUS:+--focus="$FOCUS"} ${skip:+--skip="$skip"} \
  --output-dir="$report" --json-report=report.json "$bin/e2e.test" -- --kubeconfig="$work/kubeconfig" --provider=skeleton \
  --kubectl-path="$bin/kubectl" --report-dir="$report" --disable-log-dump >"$report/log" 2>&1
[ -s "$report/report.json" ] || fail "no report: see $report/log"
failed=0
python3 conformance/report.py "$report/report.json" "$report/report.txt" ../docs/conformance.txt ${UPDATE:+--update} || failed=1
if [ -n "$elsewhere" ] && [ -z "${FOCUS:-}" ] && [ "${1:-}" != --short ]; then
  echo "in an emulated machine: $elsewhere"
  GUEST=1 FOCUS=$elsewhere SKIP='' PIKELET_CLUSTER_ID="${PIKELET_CLUSTER_ID}g" REPORT="$report/guest" ./conformance.sh || failed=1
fi
exit $failed
