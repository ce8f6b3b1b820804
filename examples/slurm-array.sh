#!/bin/bash
# Extraction as a plain job array: no scheduler but SLURM's. Every task takes every n-th block; run it again after
# failures, it makes only what is missing. The working folder must be on a file system that all nodes share.
#
#   sbatch examples/slurm-array.sh                       # in the working folder
#SBATCH --job-name=unic-pipe
#SBATCH --array=1-16
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
# Two minutes before the end: what is in flight is finished, and the job exits 0.
#SBATCH --signal=TERM@120

exec srun unic-pipe extract --device cuda --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
