#!/usr/bin/env bash
# All checks of a machine with one GPU in one go: bash benchmarks/gpu_check.sh [PHOTOS]
# Such a machine is often bare: wheels in .whl/ are installed into a folder of their own first, where there are any.
# Every part has a time of its own, and none stops the others. OUT: where logs and JSON go. SHORT=1: tests, errors, the
# objective's table and the forms of wide rows alone, in three minutes at most.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}; photos=${1:-.gpudata}
mkdir -p "$out"
site=$(mktemp -d); logs=$(mktemp -d)
if ls .whl/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl 2>&1 | tail -3
fi
export PYTHONPATH=$PWD:$PWD/benchmarks:$PWD/tests:$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
step() { # seconds, name, command: its output to a log, the end of that to the screen
    local limit=$1 name=$2 began=$SECONDS; shift 2
    timeout -k 5 "$limit" "$@" >"$logs/$name" 2>&1
    echo "== $name: exit $?, $((SECONDS - began)) s"; tail -n "${TAIL:-12}" "$logs/$name" | cut -c1-220
    { echo "==== $name"; cat "$logs/$name"; } >>"$out/all.txt"  # few files come back from a lent machine
}
gpu="python3 benchmarks/gpu.py"
echo "installed after $SECONDS s"; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
tests="python3 -m pytest tests/gpu -m gpu -v -p no:cacheprovider -p no:benchmark --tb=short -o faulthandler_timeout=45"
if [ -n "${SHORT:-}" ]; then
    # Side by side, so that kernels compile at once for all that follows.
    TAIL=45 step 85 tests $tests -n 8 --durations=8
    TAIL=45 step 50 objective $gpu objective --rows 512 2048 8192 32768 --dims 512 1024 --json "$out/objective.json"
    TAIL=4 step 15 tune $gpu tune --rows 32768 --dims 1024 --json "$out/tune.json" --variants "inside 64x128x64 4w 3s 168r" \
        "cuBLAS 64x64 4w" "cuBLAS 64x64 4w, chunks of 128 MB"
    TAIL=14 step 15 errors $gpu errors --json "$out/errors.json"
    echo "all after $SECONDS s"
    exit
fi
# The forms that are tuned below compile beside the first parts.
for first in 0 1 2 3 4 5; do
    timeout 100 $gpu tune --rows 512 --dims 512 --share $first/6 >"$logs/compile$first" 2>&1 &
done
TAIL=14 step 50 errors $gpu errors --json "$out/errors.json"
TAIL=45 step 150 tests $tests
wait
{ echo "==== compile"; cat "$logs"/compile*; } >>"$out/all.txt"
TAIL=32 step 70 tune $gpu tune --rows 32768 --dims 512 1024 --json "$out/tune.json"
TAIL=30 step 25 profile $gpu profile --rows 32768 --dims 512
TAIL=1 step 25 profile_small $gpu profile --rows 512 --dims 512
TAIL=12 step 30 training $gpu training --json "$out/training.json"
TAIL=40 step 40 objective $gpu objective --rows 512 2048 8192 32768 --dims 512 --json "$out/objective.json"
TAIL=10 step 80 embed $gpu embed --photos "$photos" --copies 8 --json "$out/embed.json"
echo "all after $SECONDS s"
