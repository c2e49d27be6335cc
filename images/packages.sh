# Debian's packages for an image (sourced by build.sh): fetched by apt, which checks Debian's signatures, with lists of their
# own, so that neither the machine's release nor its architecture matters. The newest ones, with what security updates there
# are; none is installed.

cache=${PIKELET_CACHE:-$HOME/.cache/pikelet}/images
. "$(dirname "${BASH_SOURCE[0]}")/../cross/fetch.sh"

suite=trixie

# sources: firmware and security updates are not in the lists that others of the same release need
sources() {
  local dir=$cache/apt-$suite-arm64 key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' main security
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

# packages FILE: a folder with the packages FILE names, unpacked, and their names in `versions`
packages() {
  local name depends version names=() lists=$cache/apt-$suite-arm64
  sources
  # not asked again for a day
  [ -n "$(find "$lists/updated" -mmin -1440 2>/dev/null)" ] || { apt_get "$suite/arm64" update && touch "$lists/updated"; } >&2 ||
    fail "apt-get update for $suite failed: check the network and apt's sources"
  while read -r name; do
    # a package that only names another one
    depends=$(apt_cache "$suite/arm64" depends "$name" | awk '$1 == "Depends:" && index($2, "linux-image-") == 1 && !found++ { print $2 }')
    name=${depends:-$name}
    version=$(apt_cache "$suite/arm64" policy "$name" | awk '$1 == "Candidate:" { print $2 }')
    [[ ${version:-(none)} != "(none)" ]] || fail "apt offers no $name in $suite"
    names+=("$name=$version")
  done < <(sed 's/#.*//' "$1" | awk 'NF')
  kept "$(basename "$1" .packages)-$(printf '%s\n' "${names[@]}" | sha256sum | cut -c 1-16)" unpacked "${names[@]}"
}

# unpacked PACKAGE=VERSION... DIR
unpacked() {
  local dir=${*: -1} deb
  cd "$dir"
  apt_get "$suite/arm64" download "${@:1:$#-1}"
  for deb in *.deb; do dpkg-deb -x "$deb" . && rm "$deb"; done
  [ -d lib ] || ln -s usr/lib lib
  [ ! -d usr/lib/modules ] || depmod -b . "$(basename usr/lib/modules/*)"
  printf '%s\n' "${@:1:$#-1}" >versions
}
