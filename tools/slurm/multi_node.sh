#!/usr/bin/env bash
# Training on several machines. From the root of the repository, which all machines must see at the same path:
#
#   sbatch --nodes=4 tools/slurm/multi_node.sh egs/librispeech --conf large
#
# run.sh runs once, on the first machine; training is started by srun on all of them, one task for each GPU.
# Change the lines below to what your cluster calls things.
#SBATCH --job-name=spear
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
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

recipe=${1:?give the recipe: sbatch --nodes=4 tools/slurm/multi_node.sh egs/librispeech [options of run.sh]}
shift
run_training "$recipe" "$@"
