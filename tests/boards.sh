#!/usr/bin/env bash
# pikelet on the boards that have no faster test: emulated machines of other kinds with Debian's kernels for them. Ends by
# itself and leaves nothing.
#
#   tests/boards.sh [BOARD...]     all of tests/boards/*.sh, or those named: armv7, armv6, ...
#
# Prints what runs there, a line per board, and `N passed, N failed`. What is downloaded is kept in $PIKELET_CACHE.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/harness/common.sh

boards=("$@")
if [ $# = 0 ]; then for file in tests/boards/*.sh; do boards+=("$(basename "$file" .sh)"); done; fi
for board in "${boards[@]}"; do [ -f "tests/boards/$board.sh" ] || fail "no board $board: see tests/boards"; done

passed=0 failed=0
for board in "${boards[@]}"; do
  since=$SECONDS
  if "tests/boards/$board.sh"; then
    passed=$((passed + 1)); echo "ok   $board ($((SECONDS - since)) s)"
  else
    failed=$((failed + 1)); echo "FAIL $board ($((SECONDS - since)) s)"
  fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
