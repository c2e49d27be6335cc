#!/usr/bin/env bash
# The Debian package, and the unit, under a real systemd: see tests/guest/deb.sh and tests/guest/systemd.sh. They take a quarter of
# an hour. Prints `N passed, N failed`.
PIKELET_GUEST_TIMEOUT=${PIKELET_GUEST_TIMEOUT:-2400} exec "$(dirname "$0")/guest.sh" ${@:-deb systemd}
