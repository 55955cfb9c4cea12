#!/usr/bin/env bash
# Train as a Slurm job, one process per GPU.
#   GPUS=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGUMENTS]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS may be set.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "error: slurm_train.sh takes PARTITION JOB_NAME CONFIG WORK_DIR." >&2
    exit 2
fi
tools=$(dirname "$0")
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
# SRUN_ARGS is meant to be split into words.
# shellcheck disable=SC2086
exec srun --partition="$1" --job-name="$2" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --gres="gpu:${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$tools/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
