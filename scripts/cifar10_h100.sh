#!/usr/bin/env bash
# CIFAR-10 from its pictures to a report of Algorithm 1 with its controls, in five minutes of one H100.
#
#     scripts/cifar10_h100.sh PICTURES [RUN] [SECONDS]
#
# PICTURES: an archive or folder with train/CLASS/* and test/CLASS/*. RUN: where to work, default runs/cifar10; the same
# command resumes there. A quarter of SECONDS (default 290) trains a base of 4 million parameters in bf16. The rest is
# Algorithm 1 at Heun-18 in float32, on as many images as the time allows: n doubles while another report fits. What is
# worth carrying (tables and figures, base, auxiliary; each below 16 MiB) goes to $KEEP, default RUN/results.
set -euo pipefail
pictures=$1 run=${2:-runs/cifar10} seconds=${3:-290}
: "${DEVICE:=cuda}" "${PRECISION:=bf16}" "${NETWORK:=model_channels=32,channel_mult=[1,2,4]}" "${BATCH:=512}"
: "${PROBE:=25k}" "${SYNTHETIC:=3k}" "${BUDGETS:=25k,50k}" "${OMEGA:=0.5,1,2}" "${FIRST:=250}" "${SAMPLER:=heun:18}"
: "${FEATURES:=classifier}" "${COMPUTE:=125}" "${KEEP:=$run/results}" "${PYTHON:=python3}"
mkdir -p "$run" "$KEEP"
KEEP=$(realpath "$KEEP")

sims_image() { "$PYTHON" -m sims_image "$@"; }

last() { compgen -G "$1" | sort | tail -n 1 || true; }

keep() { # what there is so far
  local base auxiliary
  base=$(last "$run/base/snapshots/*/ema")
  auxiliary=$(grep -l '"name": "synthetic"' "$run"/sims/finetune-*/settings.json 2>/dev/null || true)
  [[ -z $base ]] || tar -cf "$KEEP/cifar10-base.tar" -C "$base" .
  [[ -z $auxiliary ]] || auxiliary=$(last "${auxiliary%/*}/snapshots/*/raw")
  [[ -z $auxiliary ]] || tar -cf "$KEEP/cifar10-auxiliary.tar" -C "$auxiliary" .
  (cd "$run" && find . \( -path '*/report/*' -o -path '*/cells/*' -o -name log.jsonl -o -name settings.json \
    -o -name dataset.json -o -name 'sheet.png' \) -type f ! -name '*.npy' -print0 | tar -czf "$KEEP/cifar10-tables.tar.gz" --null -T -)
}
trap keep EXIT
trap 'exit 143' TERM

# the data
if [[ -f $pictures ]]; then
  if [[ ! -d $run/pictures ]]; then # Python unpacks where tar lacks the compression's program
    mkdir -p "$run/unpacking"
    tar -xf "$pictures" -C "$run/unpacking" || "$PYTHON" -m tarfile -e "$pictures" "$run/unpacking"
    mv "$run/unpacking" "$run/pictures"
  fi
  pictures=$run/pictures
fi
sims_image prepare "$pictures" --split test --out "$run/heldout" &
sims_image prepare "$pictures" --split train --out "$run/data"
wait $!

# the base: a short run says how fast it goes here, then as many images as its time allows
train=(train --preset cifar10-tiny --data "$run/data" --network "$NETWORK" --precision "$PRECISION" --batch "$BATCH")
train+=(--ema-halflife 50k --device "$DEVICE" --workers 4)
if [[ ! -f $run/budget ]]; then
  sims_image "${train[@]}" --budget "$PROBE" --snapshots "$PROBE" --sheet 0 --out "$run/probe"
  tail -n 1 "$run/probe/log.jsonl" | "$PYTHON" -c "import json, sys
rate = json.load(sys.stdin)['images_per_second']
print(f'{max($seconds / 4 * rate / 1000, 1):.0f}k')" >"$run/budget"
fi
sims_image "${train[@]}" --budget "$(cat "$run/budget")" --snapshots "$(cat "$run/budget")" --out "$run/base"
keep

# Algorithm 1: base, synthetic data, auxiliary, omega; naive fine-tune, twice the steps, sampler retuned, trained
# further, a random direction, Neon
sims=(sims --data "$run/data" --heldout "$run/heldout" --base "$(last "$run/base/snapshots/*/ema")")
sims+=(--out "$run/sims" --synthetic "$SYNTHETIC" --budget "$BUDGETS" --omega "$OMEGA" --sampler "$SAMPLER")
sims+=(--features "$FEATURES" --auxiliary-weights raw --lr 1e-4 --lr-rampup 0 --lr-decay constant --repeats 2)
sims+=(--batch "$COMPUTE" --train-batch "$BATCH" --device "$DEVICE")
n=$FIRST
while true; do
  began=$SECONDS
  sims_image "${sims[@]}" --n "$n" --search "$((n / 2))"
  keep
  ((seconds - SECONDS > 2 * (SECONDS - began) + 10)) || break
  n=$((2 * n))
done
