# Shared by the test scripts (sourced): processes by recorded pid, waiting, images, and what a test may leave behind.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { echo "${0##*/}: $*" >&2; }
fail() { say "$*"; exit 1; }

# found PATTERN...: grep -q of a pipe that reads all of it: pipefail would take the writer's SIGPIPE for "not found"
found() { local is; grep -q "$@"; is=$?; cat >/dev/null; return $is; }

# programs PROGRAM:PACKAGE...: installs the packages of those that are missing; those for root are found from then on
programs() {
  local pair packages=()
  PATH=$PATH:/usr/sbin:/sbin
  for pair; do command -v "${pair%:*}" >/dev/null || packages+=("${pair#*:}"); done
  [ ${#packages[@]} = 0 ] || "$checkout/tests/scripts/setup.sh" "${packages[@]}"
}

# pikelet_bin: the program under test
pikelet_bin() {
  local bin=${PIKELET_BIN:-${CARGO_TARGET_DIR:-$checkout/target}/${PROFILE_DIR:-debug}/pikelet}
  [ -x "$bin" ] || fail "no program at $bin: run cargo build, or set PIKELET_BIN"
  readlink -f "$bin"
}

# start_time PID: tells a process from a later one with the same pid; empty when there is none, or it is a zombie
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }

# proc_start PIDDIR LOGDIR NAME COMMAND...: in the background, in a session of its own
proc_start() {
  local pids=$1 logs=$2 name=$3; shift 3
  setsid "$@" >>"$logs/$name.log" 2>&1 </dev/null &
  local pid=$!
  disown "$pid"
  echo "$pid $(start_time "$pid")" >"$pids/$name"
}

# proc_pid PIDDIR NAME: prints the pid while the process lives
proc_pid() {
  local pid start
  [ -f "$1/$2" ] || return 1
  read -r pid start <"$1/$2" || return 1
  [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] && echo "$pid"
}

# proc_stop PIDDIR NAME [SIGNAL]: by the recorded pid only; SIGKILL after 10 s
proc_stop() {
  local pid
  if pid=$(proc_pid "$1" "$2"); then
    kill "-${3:-TERM}" "$pid" 2>/dev/null
    until_true 10 gone "$1" "$2" || { kill -KILL "$pid" 2>/dev/null; until_true 5 gone "$1" "$2"; }
  fi
  rm -f "$1/$2"
}
gone() { ! proc_pid "$1" "$2" >/dev/null; }

# until_true SECONDS COMMAND...: tries it until it succeeds or the time is over
until_true() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

# busybox_root DIR [FILE...]: a root file system with busybox, its applets, and FILEs in /bin
busybox_root() {
  local root=$1; shift
  mkdir -p "$root"/{bin,etc,tmp,proc,sys,dev,root}
  chmod 1777 "$root/tmp"
  cp /bin/busybox "$root/bin/"
  local applet
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  [ $# = 0 ] || cp "$@" "$root/bin/"
}

# pack_image LAYOUT TAG ROOT: an image of that root in an OCI image layout, with a shell as its command
pack_image() {
  local layout=$1 tag=$2 root=$3
  tar -C "$root" --owner=0 --group=0 -cf "$root.tar" .
  [ -d "$layout" ] || umoci init --layout "$layout"
  umoci new --image "$layout:$tag"
  umoci raw add-layer --image "$layout:$tag" "$root.tar"
  umoci config --image "$layout:$tag" --config.env PATH=/bin --config.cmd sh --config.workingdir /
  rm "$root.tar"
}

# busybox_image LAYOUT TAG [FILE...]: an image of busybox_root
busybox_image() {
  local layout=$1 tag=$2 root; shift 2
  root=$(mktemp -d)
  busybox_root "$root" "$@"
  pack_image "$layout" "$tag" "$root"
  rm -rf "$root"
}

# registry_config DIR ADDRESS: writes DIR/registry.yaml
registry_config() {
  cat >"$1/registry.yaml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $1/registry}}
http: {addr: "$2"}
YAML
}

# push_image NETNS LAYOUT TAG REFERENCE
push_image() {
  ip netns exec "$1" skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$2:$3" "docker://$4"
}

# cgroups_of NAME: every cgroup folder of that root in every hierarchy, deepest first
cgroups_of() {
  local base
  for base in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ -d "$base/$1" ] && find "$base/$1" -depth -type d
  done
  return 0
}

# processes_naming PATH: pids whose command line names something below PATH, other than this script's own
processes_naming() {
  local file pid
  for file in /proc/[0-9]*/cmdline; do
    pid=${file#/proc/}; pid=${pid%/cmdline}
    [ "$pid" = "$$" ] || [ "$pid" = "$BASHPID" ] || [ "$pid" = "$PPID" ] && continue
    # a process may end meanwhile
    { tr '\0' '\n' <"$file"; } 2>/dev/null | grep -qF "$1/" && echo "$pid"
  done
  return 0
}

# leftovers DIR CGROUP: one line per process, cgroup with pods in it or mount that should be gone
leftovers() {
  local pid cgroup
  for pid in $(processes_naming "$1"); do
    echo "process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
  done
  while read -r cgroup; do
    [ -z "$cgroup" ] && continue
    case $cgroup in */pod*) echo "cgroup $cgroup" ;; esac
    for pid in $(cat "$cgroup/cgroup.procs" 2>/dev/null); do echo "process $pid in cgroup $cgroup"; done
  done <<<"$(cgroups_of "$2")"
  awk -v dir="$1/" 'index($5, dir) == 1 { print "mount " $5 }' /proc/self/mountinfo
}

# sweep DIR CGROUP: ends and removes what leftovers would name, and the cgroup root itself
sweep() {
  local pid cgroup mount
  for pid in $(processes_naming "$1"); do kill -KILL "$pid" 2>/dev/null; done
  for cgroup in $(cgroups_of "$2"); do
    for pid in $(cat "$cgroup/cgroup.procs" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
  done
  for cgroup in $(cgroups_of "$2"); do until_true 2 rmdir "$cgroup" || say "cannot remove cgroup $cgroup"; done
  awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac |
    while read -r mount; do umount -l "$mount"; done
  return 0
}
