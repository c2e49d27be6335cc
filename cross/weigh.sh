#!/usr/bin/env bash
# What weighs most in a program: builds it once more with symbols, beside the other, and prints a table of its crates.
#
#   cross/weigh.sh [TARGET]       default aarch64-unknown-linux-musl; or a file that has symbols
#
# Code counts for the crate whose function it is, also where another one's types made a copy of it, and what drops a value
# for the value's crate. Data without a symbol (most strings) is in no crate.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/fetch.sh

file=${1:-aarch64-unknown-linux-musl}
if [ ! -f "$file" ]; then
  read -r _ _ built < <(cross/build.sh --symbols "$file")
  # not taken for the one to install
  mv "$built" "$built.symbols"
  file=$built.symbols
fi
[ "$(readelf -SW "$file" | grep -c ' .symtab ')" = 1 ] || fail "$file has no symbols"

hex='function hex(text,   n, i) { for (i = 1; i <= length(text); i++) n = n * 16 + index("123456789abcdef", substr(text, i, 1)); return n }'
readelf -SW "$file" | sed -n 's/^ *\[ *[0-9]*\] //p' | awk "$hex"' $7 ~ /A/ && $2 != "NOBITS" { all += part[$1] = hex($5) }
  END { printf "bytes of the program: %d; code %d, constants %d\n", all, part[".text"], part[".rodata"] }'
# one of those that were folded into each other
readelf -sW "$file" | awk "$hex"' $4 == "FUNC" && $7 != "UND" && $3 != "0" && !seen[$2]++ { print sub(/^0x/, "", $3) ? hex($3) : $3, $8 }' |
  c++filt | awk '
    {
      size = $1; name = substr($0, length($1) + 2)
      gsub(/^core::ptr::drop_in_place<|dyn |&mut |&|\*const |\*mut |\(|\[/, "", name); gsub(/^<+/, "", name)
      # for any type: that of its trait
      sub(/^(impl )?[A-Za-z0-9_]+ as /, "", name)
      if (name ~ /^OUTLINED_FUNCTION/) name = "what is there more than once, made a function::"
      crate = match(name, /^[A-Za-z0-9_, ]+(\[[0-9a-f]+\])?::/) ? substr(name, 1, index(name, "::") - 1) : "C and assembly"
      sub(/\[.*/, "", crate)
      all += size; of[crate] += size; count[crate]++
    }
    END { for (crate in of) printf "%9d %5.1f %% %6d functions  %s\n", of[crate], of[crate] * 100 / all, count[crate], crate }' |
  sort -rn | head -n 30
