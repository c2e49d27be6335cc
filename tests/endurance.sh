#!/usr/bin/env bash
# What takes too long for every change: the agent killed 100 times while pods are in every state, an idle node's writes for ten
# minutes, the API server away for an hour.
set -uo pipefail
cd "$(dirname "$0")"
PIKELET_KILLS=${PIKELET_KILLS:-100} PIKELET_IDLE=${PIKELET_IDLE:-600} PIKELET_OUTAGE=${PIKELET_OUTAGE:-3600} ./cluster.sh kills idle outage
