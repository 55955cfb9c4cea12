#!/usr/bin/env bash
# Evaluate in several processes, one per GPU; without GPUs, on the CPU with gloo.
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [ARGUMENTS OF test.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as usual.
exec "$(dirname "$0")/dist_run.sh" test.py "$1" "$3" "$2" "${@:4}"
