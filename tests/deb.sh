#!/usr/bin/env bash
# The Debian package under systemd, with a pod that runs meanwhile: see tests/guest/deb.sh. Prints `N passed, N failed`.
exec "$(dirname "$0")/guest.sh" deb
