#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: TOOL CONFIG PROCESSES ARGUMENTS.
set -euo pipefail
if ! [[ "${3:-}" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of processes has to be 1 or more, got '${3:-}'." >&2
    exit 2
fi
tools=$(dirname "$0")
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$tools/$1" "$2" "${@:4}" --launcher pytorch
