#!/usr/bin/env bash
# Runs commands side by side, for tests mostly wait: tests/together.sh 'COMMAND' 'COMMAND'...
#
# Each command's output is printed whole once it has ended, in the order they end. Fails when one of them did.
set -uo pipefail
# a process group for each, so that all of it can be ended
set -m
work=$(mktemp -d)
declare -A commands
cleanup() {
  for pid in "${!commands[@]}"; do
    kill -- "-$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    echo "== ${commands[$pid]}: not finished after $SECONDS s"
    cat "$work/$pid"
  done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

failed=0
for command in "$@"; do
  bash -c 'exec >"$1/$$" 2>&1 </dev/null; eval "$2"' together "$work" "$command" &
  commands[$!]=$command
done
while [ ${#commands[@]} -gt 0 ]; do
  wait -n -p ended "${!commands[@]}"
  status=$?
  echo "== ${commands[$ended]}: $([ $status = 0 ] && echo passed || echo "failed ($status)") after $SECONDS s"
  cat "$work/$ended"
  [ $status = 0 ] || failed=1
  unset "commands[$ended]"
done
exit $failed
