#!/usr/bin/env bash
# Stages of one process: prepare.sh or run.sh of a recipe, with what follows as its options. From the root of the
# repository:
#
#   sbatch tools/slurm/stages.sh egs/librispeech/prepare.sh --corpus-dir /corpora/LibriSpeech --stop-stage 2
#   sbatch --gpus-per-node=1 tools/slurm/stages.sh egs/librispeech/run.sh --stage 13
#SBATCH --job-name=spear-stages
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@120

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# shellcheck source=tools/slurm/job.sh
source tools/slurm/job.sh

script=${1:?give the script: sbatch tools/slurm/stages.sh egs/librispeech/prepare.sh [its options]}
shift
run_job end "$script" "$@"
