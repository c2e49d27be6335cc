# How tests count (sourced): a line for each case, and `N passed, N failed` at the end.

passed=0 failed=0

# check NAME COMMAND...: fails when the command does, after `complain`, if there is such a function
check() {
  local name=$1 since=$SECONDS; shift
  if "$@"; then
    passed=$((passed + 1)); echo "ok   $name ($((SECONDS - since)) s)"
  else
    failed=$((failed + 1)); echo "FAIL $name"
    ! declare -F complain >/dev/null || complain
    return 1
  fi
}

# verdict: fails when a case did
verdict() { echo "$passed passed, $failed failed"; [ "$failed" = 0 ]; }
