#!/usr/bin/env bash
# Train in several processes, one per GPU; without GPUs, on the CPU with gloo.
#   tools/dist_train.sh CONFIG PROCESSES [ARGUMENTS OF train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as usual.
# A second training on one machine needs another PORT, such as PORT=29501.
exec "$(dirname "$0")/dist_run.sh" train.py "$1" "$2" "${@:3}"
