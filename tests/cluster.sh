#!/usr/bin/env bash
# Pods from a real API server on three pikelet nodes. Each file of cluster/ holds the cases of one subject.
#
#   tests/cluster.sh [SUBJECT...]     all of them, or those named: workloads, containers, logs, ...
#   tests/cluster.sh --part K/N       every Nth of them, from the Kth on
#
# Prints a line per case, and `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")"
. harness/common.sh
. harness/check.sh
. harness/bootstrap.sh
export PIKELET_CLUSTER_ID=${PIKELET_CLUSTER_ID:-c$(($$ % 9999))}
cluster=scripts/cluster.sh
k() { $cluster kubectl "$@"; }
completed=""
# what the agents complained of last may say why
complain() {
  grep -hE '^[0-9TZ:.-]+ +(WARN|ERROR) ' "${dir:-/dev/null}"/logs/agent-n*.log 2>/dev/null | sort | cut -c-300 | tail -n 8 | sed 's/^/     /'
}
finish() {
  # a script with a mistake in it ends early, and with it all
  [ -n "$completed" ] || check "every case was run" false
  if [ "$failed" -gt 0 ] && [ -n "${dir:-}" ]; then
    rm -rf "$dir.logs"; cp -r "$dir/logs" "$dir.logs" && echo "     logs kept in $dir.logs"
  fi
  check "nothing is left over after the cluster is taken down" $cluster down
  # a bare exit in a trap would give the status of what came before
  verdict || exit 1
  exit 0
}
trap finish EXIT

# field POD JSONPATH, is POD JSONPATH VALUE, soon COMMAND..., event POD PATTERN
field() { k get pod "$1" -o "jsonpath={$2}"; }
is() { [ "$(field "$1" "$2" 2>/dev/null)" = "$3" ]; }
soon() { until_true 60 "$@"; }
event() { k get events --field-selector "involvedObject.name=$1" | found "$2"; }
not() { ! "$@" >/dev/null 2>&1; }
# on NODE COMMAND...: in the node's mount and network namespaces
on() {
  local holder; holder=$(proc_pid "$dir/pids" "mounts-$1"); shift
  nsenter --target "$holder" --mount --net "$@"
}

# api_up: the API server started again. Its controllers try again after half a minute only, unless they are started anew.
api_up() {
  local name
  $cluster start apiserver
  until_true 60 k get --raw /readyz
  for name in controller-manager scheduler; do $cluster stop $name; $cluster start $name; done
}

# agent_with NODE [FLAG...]: the node's agent, started again with those flags as well
agent_with() {
  local node=$1; shift
  $cluster stop "agent-$node"
  rm -f "$dir/$node/flags"
  [ $# = 0 ] || printf '%s\n' "$@" >"$dir/$node/flags"
  $cluster start "agent-$node"
  k wait --for=condition=Ready "node/$node" --timeout=30s >/dev/null
}

# nodes that join in a way of their own: what NODE's agent said, a text in it, its flags from now on, the agent stopped and
# started with an empty log, Ready, a node with an /etc of its own
log() { cat "$dir/logs/agent-$1.log"; }
says() { log "$1" | found -F "$2"; }
flags() { local node=$1; shift; printf '%s\n' "$@" >"$dir/$node/way"; }
again() { $cluster stop "agent-$1"; : >"$dir/logs/agent-$1.log"; $cluster start "agent-$1"; }
ready() { [ "$(k get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
machine() {
  $cluster add "$@" && cp -a /etc "$dir/$1/etc" && rm -rf "$dir/$1/etc/rancher" && on "$1" mount --bind "$dir/$1/etc" /etc
}
# what of a container's status the cases ask for
waiting='.status.containerStatuses[0].state.waiting.reason'
ended='.status.containerStatuses[0].state.terminated.exitCode'
restarts='.status.containerStatuses[0].restartCount'
container='.status.containerStatuses[0].containerID'

$cluster up 3 >/dev/null || { failed=1; exit; }
dir=$($cluster dir)
image=10.77.0.1:5000/busybox:1
layout=$(mktemp -d)
busybox_image "$layout/oci" 1 "$(cat "$dir/controlplane")"/{kubectl,etcd} >/dev/null 2>&1
for tag in 1 2; do push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" 1 "10.77.0.1:5000/busybox:$tag"; done
umoci config --image "$layout/oci:1" --tag usr1 --config.stopsignal SIGUSR1
push_image "pk$PIKELET_CLUSTER_ID-cp" "$layout/oci" usr1 "10.77.0.1:5000/busybox:usr1"
check "every node becomes Ready" k wait --for=condition=Ready node/n1 node/n2 node/n3 --timeout=30s

all=()
for file in cluster/*.sh; do
  # needs a program of k3s
  [ "$file" = cluster/k3s-binary.sh ] && [ -z "${PIKELET_K3S:-}" ] || all+=("$(basename "$file" .sh)")
done
case ${1:-} in
  --part) subjects=(); for ((i = ${2%/*} - 1; i < ${#all[@]}; i += ${2#*/})); do subjects+=("${all[i]}"); done ;;
  '') subjects=("${all[@]}") ;;
  *) subjects=("$@") ;;
esac
helpers=$(declare -f)
for subject in "${subjects[@]}"; do
  echo "     -- $subject"
  # what another subject calls the same is not meant
  eval "$helpers"
  subject_began=$SECONDS
  # shellcheck source=/dev/null
  . "cluster/$subject.sh"
  # pods and nodes of its own are none of the others'
  k delete deployment,daemonset,statefulset,job,pod --all --grace-period=1 --timeout=60s >/dev/null 2>&1
  for node in $(k get nodes -o name | grep -vE '/n[123]$'); do
    $cluster stop "agent-${node#node/}"
    k delete "$node" >/dev/null
  done
  echo "     ($((SECONDS - subject_began)) s)"
done
rm -rf "$layout"
completed=yes
