#!/usr/bin/env bash
# pds_jax on SLURM: one process a node (or a GPU), which find each other by SLURM's own variables.
#   sbatch scripts/launch/slurm.sh --mode=train  --config=configs/photos.py --workdir=/shared/runs/photos
#   sbatch scripts/launch/slurm.sh --mode=sample --checkpoint=/shared/runs/photos --workdir=/shared/out --seeds=0-49999
# workdir must be a folder that all nodes see. SIGTERM comes 120 s before the time is up: the run saves and ends, and
# the same command goes on where it stopped: submit it again. After a preemption or a lost node SLURM does so itself.
#SBATCH --job-name=pds_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# 1: jax.distributed asks SLURM for the coordinator, the number of processes and this one's index.
export PDS_JAX_DISTRIBUTED=1
srun --kill-on-bad-exit=1 "${PDS_JAX:-pds_jax}" "$@"

# For sampling no coordinator is needed; an array of independent jobs does as well, and one lost node stops no other:
#   sbatch --array=0-7 --nodes=1 --wrap 'pds_jax --mode=sample ... --shard=$SLURM_ARRAY_TASK_ID/8'
