#!/usr/bin/env bash
# Whether every crate in Cargo.toml is used: tests/scripts/crates.sh [FOLDER], of another tree than this one.
#
# One is when a line of code names it. Those that are there for their features alone are named in Cargo.toml, as cargo-machete
# reads them: [package.metadata.cargo-machete] ignored = [...].
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

# crates SECTION: the names in a section of Cargo.toml
crates() { awk -v section="[$1]" '/^\[/ { within = $0 == section; next } within && /^[a-z0-9_-]+ *=/ { print $1 }' Cargo.toml; }

# used CRATE FOLDER...: code, not comments, that names it; a path that only ends so is another module's
used() {
  local name=${1//-/_}
  shift
  [ -n "$(grep -rhE --include='*.rs' "(^|[^[:alnum:]_:.])$name(::|;| as )" "$@" | grep -vE '^[[:space:]]*//')" ]
}

ignored=$(awk '/^\[/ { within = $0 == "[package.metadata.cargo-machete]" } within && /^ignored/' Cargo.toml)
unused=()
for crate in $(crates dependencies); do
  [[ $ignored = *"\"$crate\""* ]] || used "$crate" src || unused+=("$crate")
done
for crate in $(crates dev-dependencies); do
  [[ $ignored = *"\"$crate\""* ]] || used "$crate" src tests || unused+=("$crate")
done
if [ ${#unused[@]} != 0 ]; then
  echo "in Cargo.toml and used nowhere: ${unused[*]}. Take them out; one whose features are all it is there for goes into" \
    "[package.metadata.cargo-machete] ignored" >&2
  exit 1
fi
