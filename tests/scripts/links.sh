#!/usr/bin/env bash
# Whether what documents name is there: files and headings that links lead to, tests and sources in backquotes, and the pages
# that code names. Prints a line for each that is missing.
set -uo pipefail
cd "$(dirname "$0")/../.."
missing=0
# lacks FILE WHAT
lacks() { echo "links: $1: there is no $2"; missing=$((missing + 1)); }

# anchors FILE: of its headings, as GitHub makes them
anchors() { sed -n 's/^##* //p' "$1" | tr '[:upper:]' '[:lower:]' | sed 's/[^[:alnum:] _-]//g; s/ /-/g'; }

while read -r file; do
  folder=$(dirname "$file")
  while read -r link; do
    path=${link%%#*}
    target=$file
    if [ -n "$path" ]; then target=$folder/$path; fi
    if [ ! -e "$target" ]; then
      lacks "$file" "$link"
    elif [[ $link == *#* ]] && ! anchors "$target" | grep -qxF -- "${link#*#}"; then
      lacks "$file" "heading of $link"
    fi
  done < <(grep -oE '\]\([^) ]+\)' "$file" | sed 's/^](//; s/)$//' | grep -vE '^(https?|mailto):')
  while read -r path; do
    compgen -G "$path" >/dev/null || compgen -G "src/$path" >/dev/null || lacks "$file" "$path"
  done < <(grep -oE '`[A-Za-z0-9_.*-]+/[A-Za-z0-9_./*-]+`' "$file" | tr -d '`' |
    grep -E '^(src|tests|docs|images|cross|systemd)/|\.rs$')
done < <(git ls-files --cached --others --exclude-standard '*.md')

while IFS=: read -r file path; do
  [ -e "$path" ] || lacks "$file" "$path"
done < <(git grep --untracked -oE '\bdocs/[A-Za-z0-9_/-]+\.(md|txt)' -- ':!*.md')

[ "$missing" = 0 ] || exit 1
