#!/usr/bin/env bash
# Stage 5, the tokens, as an array of jobs with one GPU each. From the root of the repository:
#
#   sbatch --array=1-100 tools/slurm/tokens_array.sh egs/librispeech --corpus-dir /corpora/LibriSpeech \
#       --teacher wavlm --teacher-path /models/wavlm-large
#
# The words after the recipe are options of its prepare.sh: the same as those of the stages before. When all tasks
# have ended, once: ./prepare.sh with these options, --stage 5 and --num-splits 100, which checks that all parts are
# there. Change the lines below to what your cluster calls things.
#SBATCH --job-name=spear-tokens
#SBATCH --array=1-100
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
#SBATCH --signal=B:USR1@120

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# shellcheck source=tools/slurm/job.sh
source tools/slurm/job.sh

recipe=${1:?give the recipe: sbatch --array=1-100 tools/slurm/tokens_array.sh egs/librispeech [options of prepare.sh]}
shift
# The parts are 1 to --num-splits (0 would mean all of them), so the array begins at 1. An array of some parts alone, as
# check_tokens --missing prints it, needs their whole number.
splits=${SPEAR_NUM_SPLITS:-$SLURM_ARRAY_TASK_MAX}
# The second array of a corpus with more parts than MaxArraySize begins at 1 again (submit.sh).
part=$((SLURM_ARRAY_TASK_ID + ${SPEAR_SPLIT_OFFSET:-0}))
how="sbatch --array=1-N, or SPEAR_NUM_SPLITS=N sbatch --array=3,7-9 for some parts of N"
if ((SLURM_ARRAY_TASK_ID < 1 || part > splits)); then
  say "task $part is no part of 1 to $splits: $how"
  exit 2
fi
if [[ -z ${SPEAR_NUM_SPLITS:-} ]] && ((${SLURM_ARRAY_TASK_COUNT:-$splits} != splits)); then
  say "the array has ${SLURM_ARRAY_TASK_COUNT} tasks up to $splits, so how many parts are there? $how"
  exit 2
fi
run_job end "$recipe/prepare.sh" --stage 5 --stop-stage 5 --num-splits "$splits" --split "$part" "$@"
