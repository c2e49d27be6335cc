# `pikelet join` and `pikelet leave`: what they look at, write and undo.

url=https://10.77.0.1:6443
hash=$(ca_hash)
token=mnopqr.0123456789abcdef
kubeadm_cluster mnopqr 0123456789abcdef

machine n12 --cluster-cidr 10.244.0.0/16 --cluster-dns 10.96.0.10
settings=$dir/n12/etc/pikelet/config.yaml
pikelet() {
  local command=$1; shift
  on n12 "$(cat "$dir/pikelet")" "$command" --root-dir "$dir/n12/lib" --state-dir "$dir/n12/run" --node-name n12 \
    --node-ip 10.77.0.22 "$@" >"$dir/said" 2>&1
}
show() { cat "$dir/said" >&2; return 1; }
# finds PATTERN FLAG...: joining with these flags is refused, and a line says so
finds() {
  local line=$1; shift
  ! pikelet join "$@" && grep -qE "$line" "$dir/said" && grep -q "nothing was changed" "$dir/said" && [ ! -e "$settings" ] || show
}
check "a name without address is said" finds '^MISSING +server name' --server https://nowhere.invalid:6443 --token $token
check "  a closed port" finds '^MISSING +server port .*refused' --server https://10.77.0.1:6999 --token $token
check "  what is no API server" finds '^MISSING +server .*speak HTTPS' --server https://10.77.0.1:5000 --token $token
check "  a CA of another cluster" finds '^MISSING +cluster .*none of the hashes' --server $url --token $token \
  --ca-cert-hash "sha256:$(printf '0%.0s' {1..64})"
check "  a token that does not exist" finds '^MISSING +cluster .*not signed for the token zzzzzz' --server $url \
  --token zzzzzz.0123456789abcdef --ca-cert-hash "$hash"
early() {
  LD_PRELOAD=$(dpkg -L libfaketime | grep '/libfaketimeMT.so.1$') FAKETIME='@1970-01-02 00:00:00' FAKETIME_DONT_FAKE_MONOTONIC=1 \
    finds '^MISSING +server clock .*1970-01-0' --server $url --token $token
}
check "  a clock of 1970, beside the server's" early
check "  another node's kubeconfig" finds '^MISSING +kubeconfig .*of system:node:n1, not of system:node:n12.*--node-name n1' \
  --kubeconfig "$dir/n1/kubeconfig"
check "  no cluster at all" not pikelet join
k delete clusterrolebinding bootstrappers >/dev/null
check "  a token without rights" finds '^MISSING +token .*may not ask.*node-bootstrapper' --server $url --token $token --ca-cert-hash "$hash"
applied k create clusterrolebinding bootstrappers --clusterrole=system:node-bootstrapper --group=system:bootstrappers:test
looked() { pikelet join --dry-run --server $url --token $token --ca-cert-hash "$hash" && [ ! -e "$settings" ]; }
check "a dry run finds all well, and changes nothing" looked
kernel() { grep -qE '^ok +overlayfs' "$dir/said" && grep -qE '^ok +token +accepted' "$dir/said"; }
check "  the kernel was looked at, too" kernel

mkdir -p "$dir/n12/etc/pikelet"
printf '# of this board\nmaxPods: 30 # small\nserver: https://elsewhere:6443\ntoken: K10::node:old\n' >"$settings"
check "it joins" pikelet join --server $url --token $token --ca-cert-hash "$hash"
written() {
  grep -qx 'maxPods: 30 # small' "$settings" && grep -qx '# of this board' "$settings" && grep -qx "server: \"$url\"" "$settings" &&
    ! grep -qE "elsewhere|K10|$token" "$settings" && [ "$(cat "$dir/n12/etc/pikelet/token")" = $token ] &&
    [ "$(stat -c %a "$settings" "$dir/n12/etc/pikelet/token" | sort -u)" = 600 ]
}
check "  what the file had is there still, the token beside it, for root alone" written
check "  without systemd it says what to run" grep -q 'no systemd manages this machine.*run$' "$dir/said"
$cluster start agent-n12
check "the agent joins with the file: Ready" soon ready n12
limited() { [ "$(k get node n12 -o 'jsonpath={.status.capacity.pods}')" = 30 ]; }
check "  with the other settings in it" limited
member() { pikelet join --dry-run --server $url && grep -qE '^ok +membership' "$dir/said"; }
check "a member is found to be one" member

others=$(k get nodes -o name | grep -vx node/n12)
# shellcheck disable=SC2086
k cordon $others >/dev/null
k create deployment moves --image=$image -- sleep 100000 >/dev/null
moved() { k get pods -l app=moves --field-selector=status.phase=Running -o 'jsonpath={.items[*].spec.nodeName}' | found -x "$1"; }
soon moved n12
k uncordon n1 >/dev/null
touch "$dir/n12/lib/mine"; mkdir -p "$dir/n12/lib/images-import"; touch "$dir/n12/lib/images-import/a.tar"
check "leaving says what it may not do" not pikelet leave
refused() {
  grep -q 'Node n12 was not deleted: .*forbidden.*kubectl delete node n12' "$dir/said" && [ "$(sed -n '/not all/,$p' "$dir/said" | wc -l)" = 2 ] || show
}
check "  the Node, and nothing else" refused
check "  its pods went to another node" soon moved n1
gone() {
  [ ! -e "$dir/n12/run" ] && [ "$(ls "$dir/n12/lib")" = "$(printf 'images-import\nmine')" ] &&
    [ "$(cat "$settings")" = "$(printf '# of this board\nmaxPods: 30 # small\n'; grep -E '^(rootDir|stateDir|nodeName|nodeIP):' "$settings")" ] &&
    [ ! -e "$dir/n12/etc/pikelet/token" ]
}
check "  membership, state and token are gone, other files and settings are not" gone
check "  and the agent has ended" not pgrep -f "$dir/n12/run"
check "leaving again changes nothing, and is well" pikelet leave
k delete node n12 >/dev/null

applied k create clusterrole node-deleters --verb=delete --resource=nodes
applied k create clusterrolebinding node-deleters --clusterrole=node-deleters --group=system:nodes
pikelet join --server $url --token $token --ca-cert-hash "$hash"
$cluster start agent-n12
soon ready n12
k run stays --image=$image --restart=Never --overrides='{"spec":{"nodeName":"n12"}}' --command -- sleep 100000 >/dev/null
soon is stays .status.phase Running
$cluster stop agent-n12 KILL
check "with no agent its pods are left running, and it says so" not pikelet leave --timeout 1
left() { grep -q 'pods still run, with no agent' "$dir/said" && [ -d "$dir/n12/run/sandboxes" ] && [ -d "$dir/n12/lib/pods" ] || show; }
check "  nothing of theirs is removed" left
away() { ! k get node n12 || show; }
check "  the Node is deleted, where that is allowed" away
rest() { pikelet leave || show; }
flags n12 --cluster-cidr 10.244.0.0/16
$cluster start agent-n12
until_true 10 on n12 "$(cat "$dir/pikelet")" ps --state-dir "$dir/n12/run"
check "  once an agent is there again, leaving does the rest" rest
check "  all of it" test ! -e "$dir/n12/run/sandboxes"
k delete clusterrolebinding node-deleters >/dev/null; k delete clusterrole node-deleters >/dev/null
# shellcheck disable=SC2086
k uncordon $others >/dev/null
k delete deployment moves >/dev/null
k delete secret -n kube-system bootstrap-token-mnopqr >/dev/null
unset -f pikelet member
