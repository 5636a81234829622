#!/usr/bin/env bash
# Algorithm 1 on real images in minutes of a CPU core: Fashion-MNIST at 8x8, a small network, a converged
# sampler. SIMS comes out ahead of the base, of twice the steps and of a random direction (docs/leaderboard.md).
#
#     scripts/images_cpu.sh [PICTURES] [RUN]
#
# PICTURES: Fashion-MNIST's four .gz files; Debian's package dataset-fashion-mnist puts them where they are looked for.
set -euo pipefail
pictures=${1:-/usr/share/datasets/fashion-mnist} run=${2:-runs/images}
sims=${SIMS_IMAGE:-sims_image}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # networks this small gain nothing by more
if [ ! -e "$pictures/train-images-idx3-ubyte.gz" ]; then
    echo "error: no Fashion-MNIST in $pictures; install dataset-fashion-mnist, or name the folder of its .gz files" >&2
    exit 2
fi
"$sims" prepare "$pictures" --size 8 --out "$run/fashion8"
"$sims" prepare "$pictures" --split test --size 8 --out "$run/fashion8-test"
"$sims" train --preset digits --network model_channels=8,num_blocks=1 --data "$run/fashion8" --budget 400k \
    --out "$run/base"
"$sims" sims --data "$run/fashion8" --heldout "$run/fashion8-test" --base "$run/base/snapshots/0000400000/ema" \
    --out "$run/sims" --synthetic 10k --budget 75k --omega 1,1.5 --search 1k --n 1500 --repeats 3 \
    --features classifier --sampler rk4:9 --batch 500 --auxiliary-weights raw --lr 1e-3 --lr-rampup 0 \
    --lr-decay cosine
echo "pictures: $run/sims/report/samples.png; page: $run/sims/report/report.html"
