# Debian's packages for an image (sourced by build.sh): fetched by apt, which checks Debian's signatures, with lists of their
# own, so that neither the machine's release nor its architecture matters. The newest ones, with what security updates there
# are; none is installed.

cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}/images
. "$(dirname "${BASH_SOURCE[0]}")/../cross/fetch.sh"

suite=trixie

# sources: firmware and security updates are not in the lists that others of the same release need
sources() {
  local dir=$cache/apt-$suite-$architecture key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' main security
  [ ! -f "$dir/sources" ] || return 0
  main=$(mirror Debian)
  security=$(mirror Debian-Security)
  [ -n "$main" ] || fail "apt knows no mirror of Debian: run apt-get update on a Debian machine"
  mkdir -p "$dir/lists/partial" "$dir/archives/partial"
  {
    echo "deb $key $main $suite main non-free-firmware"
    [ -z "$security" ] || echo "deb $key $security $suite-security main"
  } >"$dir/sources"
}

# updated SUITE: its lists are here; not asked again for a day
updated() {
  local lists=$cache/apt-$1-$architecture
  [ -n "$(find "$lists/updated" -mmin -1440 2>/dev/null)" ] ||
    { apt_get "$1/$architecture" update && touch "$lists/updated"; } >&2 ||
    fail "apt-get update for $1 failed: check the network and apt's sources"
}

# named SUITE PACKAGE: that package, or those it only names: the newest kernel, which has parts of its own in newer releases
named() {
  local from=$1/$architecture name parts
  name=$(apt_cache "$from" depends "$2" | awk '$1 == "Depends:" && index($2, "linux-image-") == 1 && !found++ { print $2 }')
  name=${name:-$2}
  parts=$(apt_cache "$from" depends "$name" | awk '$1 == "Depends:" && $2 ~ /^linux-(binary|modules|base)-[0-9]/ { print $2 }')
  echo "${parts:-$name}"
}

# packages FILE [ARCHITECTURE]: a folder with the packages FILE names (NAME, or NAME/SUITE) of that architecture [default:
# arm64], unpacked, and their names in `versions`
packages() {
  local architecture=${2:-arm64} line from name version names=()
  sources
  while read -r line; do
    from=$suite
    case $line in */*) from=${line#*/} ;; esac
    updated "$from"
    for name in $(named "$from" "${line%/*}"); do
      version=$(apt_cache "$from/$architecture" policy "$name" | awk '$1 == "Candidate:" { print $2 }')
      [[ ${version:-(none)} != "(none)" ]] || fail "apt offers no $name for $architecture in $from"
      [ "$from" = "$suite" ] || name=$from/$name
      names+=("$name=$version")
    done
  done < <(sed 's/#.*//' "$1" | awk 'NF')
  kept "$(basename "$1" .packages)-$architecture-$(printf '%s\n' "${names[@]}" | sha256sum | cut -c 1-16)" unpacked "${names[@]}"
}

# unpacked [SUITE/]PACKAGE=VERSION... DIR
unpacked() {
  local dir=${*: -1} deb package from
  cd "$dir"
  for package in "${@:1:$#-1}"; do
    from=$suite
    case $package in */*) from=${package%/*} ;; esac
    apt_get "$from/$architecture" download "${package#*/}"
  done
  for deb in *.deb; do dpkg-deb -x "$deb" . && rm "$deb"; done
  [ -d lib ] || ln -s usr/lib lib
  [ ! -d usr/lib/modules ] || depmod -b . "$(basename usr/lib/modules/*)"
  printf '%s\n' "${@:1:$#-1}" >versions
}
