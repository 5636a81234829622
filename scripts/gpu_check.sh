#!/usr/bin/env bash
# Everything that takes a CUDA device, on any machine that has torch: tests, benchmarks, CIFAR-10 in minutes.
#
#     scripts/gpu_check.sh [--stages tests,benchmarks,cifar10] [--minutes 9] [--data PICTURES] [--peer DIR]...
#                          [--out DIR] [--work DIR] [--device cuda|cpu]
#
# Stages have their shares of the minutes (3 : 2 : 4); what one leaves goes to the next. One that fails, or is
# stopped at its limit, does not stop the next, and each writes to DIR as it goes (default $OUT, else runs/gpu/out: eight
# files at most). PICTURES: an archive or folder with train/CLASS/* and test/CLASS/*, for cifar10. DIR of --peer: a
# checkout of NVIDIA's edm or edm2. --device cpu is a dry run at toy size. docs/gpu.md says more.
set -uo pipefail
cd "$(dirname "$0")/.."
stages=tests,benchmarks,cifar10 minutes=9 data="" out=${OUT:-runs/gpu/out} work=runs/gpu device=cuda peers=()
while (($#)); do
  case $1 in
    --stages) stages=$2 ;; --minutes) minutes=$2 ;; --data) data=$2 ;; --out) out=$2 ;; --work) work=$2 ;;
    --device) device=$2 ;; --peer) peers+=(--peer "$2") ;;
    *) echo "error: $1: got '${2-}'; choose from --stages --minutes --data --peer --out --work --device" >&2; exit 2 ;;
  esac
  shift 2 || { echo "error: $1: got ''; give it a value" >&2; exit 2; }
done
for name in ${stages//,/ }; do
  [[ $name =~ ^(tests|benchmarks|cifar10)$ ]] || {
    echo "error: --stages: got '$name'; choose from tests, benchmarks, cifar10" >&2; exit 2; }
done
end=$(awk -v m="$minutes" 'BEGIN { print int(60 * m) - 10 }') # seconds kept for starting and ending
((end > 0)) || { echo "error: --minutes: got '$minutes'; give a number of minutes, such as 9" >&2; exit 2; }
mkdir -p "$out" "$work"
out=$(realpath "$out") work=$(realpath "$work")
export PYTHON=${PYTHON:-python3} PYTHONPATH="$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
: >"$out/summary.txt"
failed=0

say() { echo "$*" | tee -a "$out/summary.txt"; }

share() { case $1 in tests) echo 3 ;; benchmarks) echo 2 ;; cifar10) echo 4 ;; esac; }

stage() { # NAME COMMAND...: run it within its share of the time that is left, and say how it ended
  local name=$1 total=0 later=0 began=$SECONDS code other limit
  shift
  : >"$out/$name.txt"
  done+=,$name
  for other in ${stages//,/ }; do
    total=$((total + $(share "$other")))
    [[ ,$done, == *,$other,* ]] || later=$((later + $(share "$other")))
  done
  limit=$((end - SECONDS - end * later / total))
  ((limit > 0)) || { say "$name: not begun, no time is left"; failed=1; return; }
  echo "$name: at most $limit s, said in $out/$name.txt"
  LIMIT=$limit timeout --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1
  code=$?
  ((code == 0)) || tail -n 30 "$out/$name.txt"
  case $code in
    0) say "$name: passed in $((SECONDS - began)) s of $limit" ;;
    124 | 137) say "$name: stopped at its limit of $limit s; what it had written is kept"; failed=1 ;;
    *) say "$name: failed (exit $code) after $((SECONDS - began)) s of $limit"; failed=1 ;;
  esac
}

tests() {
  local words=(-m gpu --gpu-device "$device" -v -W default -p no:cacheprovider)
  words+=(--timeout 60 --timeout-method thread) # a signal does not end a call of CUDA's that hangs
  local workers=$(($(nproc) / 2 < 8 ? $(nproc) / 2 : 8)) # of one card
  [[ $device == cuda ]] && "$PYTHON" -c "import xdist" 2>/dev/null && words+=(-n "$workers")
  stage tests "$PYTHON" -m pytest "${words[@]}" tests/gpu/test_{networks,engines,training,modules,toy,commands}.py
  local word counts=()
  for word in PASSED FAILED ERROR SKIPPED; do
    counts+=("$(grep -cE "^tests/.*::.* $word|^\[gw.* $word tests/" "$out/tests.txt") ${word,,}")
  done
  say "  ${counts[*]}"
}

benchmarks() {
  stage benchmarks bash -c 'exec "$PYTHON" benchmarks/gpu.py --seconds "$LIMIT" "$@"' - \
    --device "$device" --json "$out" "${peers[@]+"${peers[@]}"}"
  say "  $(tail -n 1 "$out/benchmarks.txt")"
}

cifar10() {
  local script=scripts/cifar10_h100.sh
  [[ $device == cpu ]] && script=scripts/cifar10_cpu.sh
  KEEP=$out stage cifar10 bash -c 'exec bash "$1" "$2" "$3" "${4:-$LIMIT}"' - "$script" "$data" "$work/cifar10" "${CIFAR10_SECONDS-}"
  say "  $(grep -E "^(report|error):" "$out/cifar10.txt" | tail -n 1)"
}

"$PYTHON" -c "import tyro" 2>/dev/null || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
  --disable-pip-version-check --upgrade --target "$work/site" .wheels/*.whl || say "tyro is missing: see docs/gpu.md"
found=$("$PYTHON" - "$device" <<'PYTHON'
import platform, sys, torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("error: --device: got 'cuda'; this machine has no CUDA device (cpu is a dry run)")
card = "dry run" if sys.argv[1] == "cpu" else torch.cuda.get_device_name()
print(f"{card}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
PYTHON
) || exit 2
say "$found"
if [[ ,$stages, == *,cifar10,* && -z $data ]]; then
  say "cifar10: not begun, it needs --data"
  failed=1 stages=${stages//cifar10/}
fi
done=""
for name in tests benchmarks cifar10; do
  [[ ,$stages, == *,$name,* ]] && "$name"
done
say "$SECONDS s in all; $( ((failed)) && echo "not everything passed" || echo "everything passed"): $out"
exit $failed
