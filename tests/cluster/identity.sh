# What a pod is called: hostname, subdomain, setHostnameAsFQDN, hostnameOverride, hostAliases.

named() { # NAME SPEC-FIELDS: a pod that says its names
  k apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  restartPolicy: Never
  $2
  containers:
  - {name: c, image: "$image", command: [sh, -c, "hostname; cat /etc/hostname; echo \$HOSTNAME; cat /etc/hosts"]}
YAML
}
says() { soon is "$1" .status.phase Succeeded && k logs "$1" | found "$2"; }
called() { soon is "$1" .status.phase Succeeded && [ "$(k logs "$1" | sed -n 1,3p | sort -u)" = "$2" ]; }
full=short.sub.default.svc.cluster.local
named plain "hostname: short"
both='hostname: short
  subdomain: sub'
named full "$both
  setHostnameAsFQDN: true"
named partly "$both"
named override "$both
  hostnameOverride: other.name"
named aliases "hostNetwork: true
  hostAliases: [{ip: 10.1.2.3, hostnames: [one, two]}]"
named toolong "hostname: short
  subdomain: $(printf 's%.0s' $(seq 60))
  setHostnameAsFQDN: true"
check "hostname names the pod" called plain short
check "  a subdomain leaves it short" called partly short
check "  and puts the full name into /etc/hosts" says partly "$full.short\$"
check "setHostnameAsFQDN: the kernel has the full name" called full "$full"
check "hostnameOverride wins over all" called override other.name
check "  in /etc/hosts too" says override "	other.name\$"
check "on the host's network: the machine's name" called aliases "$(hostname)"
check "  hostAliases are in /etc/hosts" says aliases "^10.1.2.3	one	two\$"
check "  beside the machine's own lines" says aliases "^$(grep -v -m 1 '^#' /etc/hosts)"
check "a full name longer than the kernel keeps is said" soon event toolong "64 characters is the max"
k delete pod plain partly full override aliases toolong --timeout=30s >/dev/null
