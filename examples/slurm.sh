#!/bin/bash
# Two nodes of four GPUs each. Submit with: sbatch examples/slurm.sh. The same line again goes on where a run stopped.
# All nodes must see the images and the run's folder under the same path.
#SBATCH --job-name=dpdm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
# Two minutes before its time is up each process gets SIGTERM: it finishes the step, saves, and ends with code 143.

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun .venv/bin/torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node=4 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:29500" \
    -m dpdm train fashion-mnist --epsilon 1 -r runs/fashion
