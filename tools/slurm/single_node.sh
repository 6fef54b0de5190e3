#!/usr/bin/env bash
# Training on the GPUs of one machine. From the root of the repository:
#
#   sbatch tools/slurm/single_node.sh egs/librispeech --conf base
#
# The words after the recipe are options of its run.sh. Change the lines below to what your cluster calls things.
#SBATCH --job-name=spear
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@120

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# shellcheck source=tools/slurm/job.sh
source tools/slurm/job.sh

recipe=${1:?give the recipe: sbatch tools/slurm/single_node.sh egs/librispeech [options of run.sh]}
shift
run_training "$recipe" "$@"
