#!/usr/bin/env bash
# What takes too long for every change: the agent killed 100 times while pods are in every state, an idle node's writes for ten
# minutes, the API server away for an hour; the Debian package and the unit under systemd, in an emulated machine.
set -uo pipefail
cd "$(dirname "$0")"
failed=0
PIKELET_KILLS=${PIKELET_KILLS:-100} PIKELET_IDLE=${PIKELET_IDLE:-600} PIKELET_OUTAGE=${PIKELET_OUTAGE:-3600} ./cluster.sh kills idle outage || failed=1
./deb.sh || failed=1
exit $failed
