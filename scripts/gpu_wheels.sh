#!/usr/bin/env bash
# Put what a bare machine lacks beside its torch into .wheels/, which git ignores, and say what all that travels weighs.
#
#     scripts/gpu_wheels.sh [PICTURES [PEER...]]
#
# tyro and what it needs, for Python 3.12 on Linux (all of it is plain Python). PICTURES: an archive for the stage
# cifar10. PEER: checkouts of NVIDIA's edm and edm2, of which the modules are taken.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .wheels
rm -f .wheels/*.whl
"${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d .wheels \
  tyro typeguard docstring-parser
[[ $# -eq 0 ]] || { cp -f "$1" .wheels/ && shift; }
for peer in "$@"; do
  (cd "$peer" && find training torch_utils dnnlib -name '*.py' -print0 | tar -c --null -T -) |
    tar -x --one-top-level="$PWD/.wheels/$(basename "$peer")"
done
git ls-files -z --cached --others --exclude-standard | xargs -0 cat | wc -c | awk -v own="$(du -sb .wheels | cut -f1)" '
  { printf "the tree %.1f MB, .wheels %.1f MB, together %.1f MB of 60\n", $1 / 1e6, own / 1e6, ($1 + own) / 1e6
    exit ($1 + own > 60e6) }'
