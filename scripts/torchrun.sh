#!/usr/bin/env bash
# Any verb of sims_image on all GPUs of this machine, or of the nodes of a SLURM job (scripts/slurm.sbatch).
#
#     scripts/torchrun.sh train --preset cifar10-uncond --data data/cifar10 --out runs/cifar10-uncond
#     GPUS=4 scripts/torchrun.sh sims --data data/cifar10 --base models/cifar10-uncond ...
#
# The same command resumes a run that was stopped. On several nodes the run folder must be on a disk that all of them share.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)} nodes=${SLURM_NNODES:-1}
words=(--standalone)
if ((nodes > 1)); then # one of these runs on each node
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  words=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:${PORT:-29500}")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python3}" -m torch.distributed.run "${words[@]}" --nproc-per-node "$gpus" -m sims_image "$@"
