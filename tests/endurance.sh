#!/usr/bin/env bash
# What takes too long for every change: the agent killed 100 times while pods are in every state. Some ten minutes.
set -uo pipefail
cd "$(dirname "$0")"
PIKELET_KILLS=${PIKELET_KILLS:-100} ./cluster.sh kills
