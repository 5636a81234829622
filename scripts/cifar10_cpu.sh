#!/usr/bin/env bash
# The pipeline of cifar10_h100.sh at the size of two CPU cores: a network of 220,000 parameters, few images.
#
#     scripts/cifar10_cpu.sh PICTURES [RUN] [SECONDS]
export DEVICE=cpu PRECISION=float32 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} BATCH=${BATCH:-64} COMPUTE=${COMPUTE:-50}
export NETWORK=${NETWORK:-model_channels=16,channel_mult=[1,1,2],num_blocks=1} PROBE=${PROBE:-2k}
export SYNTHETIC=${SYNTHETIC:-500} BUDGETS=${BUDGETS:-5k} OMEGA=${OMEGA:-0.5,1} FIRST=${FIRST:-100}
exec bash "$(dirname "$0")/cifar10_h100.sh" "$1" "${2:-runs/cifar10-cpu}" "${3:-3600}"
