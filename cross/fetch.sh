# What is fetched or made once and kept (sourced): folders in $cache, and Debian's packages of other releases and processors.

say() { echo "${0##*/}: $*" >&2; }
fail() { say "$*"; exit 1; }

# kept NAME COMMAND...: the folder NAME of the cache; made first, if it isn't there, by COMMAND with an empty one as its last
# argument. What fails leaves nothing.
kept() {
  local dir=$cache/$1 new log; shift
  if [ ! -d "$dir" ]; then
    mkdir -p "$(dirname "$dir")"
    new=$(mktemp -d "$cache/new.XXXXXX")
    log=$new.log
    say "making ${dir#"$cache/"}"
    # not as a condition, in which bash knows no -e
    (set -e; "$@" "$new") >"$log" 2>&1 </dev/null &
    if ! wait $!; then
      tail -n 30 "$log" >&2
      rm -rf "$new" "$log"
      fail "cannot make $dir"
    fi
    rm "$log"
    chmod 755 "$new"
    # another one may have been quicker
    mv -T "$new" "$dir" 2>/dev/null || rm -rf "$new"
  fi
  echo "$dir"
}

# mirror LABEL: where this machine has the packages of that label (Debian, Debian-Security) from; nothing if from nowhere
mirror() {
  apt-get indextargets --format '$(ORIGIN) $(LABEL) $(CREATED_BY) $(REPO_URI)' |
    awk -v label="$1" '$1 == "Debian" && $2 == label && $3 == "Packages" && !found++ { print $4 }'
}

# apt_get SUITE[/ARCHITECTURE] ARGUMENT...: for the packages of that suite of Debian, whichever this machine is, from the
# mirror it uses; nothing is installed
apt_get() { apt_of apt-get "$1" -qq "${@:2}"; }
# apt_cache SUITE[/ARCHITECTURE] ARGUMENT...
apt_cache() { apt_of apt-cache "$@"; }
apt_of() {
  local program=$1 suite=${2%/*} architecture=amd64 dir=$cache/apt-${2/\//-} mirror
  case $2 in */*) architecture=${2#*/} ;; esac
  shift 2
  if [ ! -f "$dir/sources" ]; then
    mirror=$(mirror Debian)
    [ -n "$mirror" ] || fail "apt knows no mirror of Debian: run apt-get update on a Debian machine"
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    printf "%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main\n" deb deb-src >"$dir/sources"
  fi
  "$program" -o Dir::Etc::SourceList="$dir/sources" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$dir/lists" \
    -o Dir::Cache="$dir" -o APT::Sandbox::User=root -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" "$@"
}

# fetch SUITE[/ARCHITECTURE] SHA256 FILE ARGUMENT...: FILE into this folder, by apt-get with these arguments
fetch() {
  local suite=$1 sum=$2 file=$3 found; shift 3
  apt_get "$suite" "$@" || { apt_get "$suite" update && apt_get "$suite" "$@"; } ||
    fail "Debian's $suite has no $file any more: pin another version"
  found=$(sha256sum <"$file")
  [ "$found" = "$sum  -" ] || fail "$file has the sha256 ${found%% *}, not the $sum it is pinned to"
}
