#!/usr/bin/env bash
# All checks of a machine with one GPU in one go: bash benchmarks/gpu_check.sh [PHOTOS]
# Such a machine is often bare: wheels in .whl/ are installed into a folder of their own first, where there are any.
# Every part has a time of its own, and none stops the others. OUT: where logs and JSON go. ONLY="errors tests ...":
# these parts alone, of errors tests tune profile training objective embed.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}; photos=${1:-.gpudata}
mkdir -p "$out"
site=$(mktemp -d); logs=$(mktemp -d)
if ls .whl/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl 2>&1 | tail -3
fi
python3 -m compileall -q -j 0 "$site" cs_aligner_cli  # as an ordinary installation has it
export PYTHONPATH=$PWD:$PWD/benchmarks:$PWD/tests:$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
wanted() { [[ " ${ONLY:-$1} " == *" $1 "* ]]; }
step() { # seconds, name, command: its output to a log, the end of that to the screen
    local limit=$1 name=$2 began=$SECONDS; shift 2
    wanted "$name" || return
    timeout -k 5 "$limit" "$@" >"$logs/$name" 2>&1
    echo "== $name: exit $?, $((SECONDS - began)) s"; tail -n "${TAIL:-12}" "$logs/$name" | cut -c1-220
    { echo "==== $name"; cat "$logs/$name"; } >>"$out/all.txt"  # few files come back from a lent machine
}
gpu="python3 benchmarks/gpu.py"
echo "installed after $SECONDS s"; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
# The forms that are tuned below compile beside the first parts.
for first in 0 1 2 3 4 5 6; do
    wanted tune && timeout 100 $gpu tune --rows 512 --dims 512 --share $first/7 >"$logs/compile$first" 2>&1 &
done
TAIL=45 step 100 tests python3 -m pytest tests/gpu -m gpu -v -n 8 --durations=8 -p no:cacheprovider -p no:benchmark \
    --tb=short -o faulthandler_timeout=45
wait
TAIL=32 step 60 tune $gpu tune --rows 32768 --dims 512 1024 --json "$out/tune.json"
TAIL=14 step 20 errors $gpu errors --json "$out/errors.json"
TAIL=40 step 50 objective $gpu objective --rows 512 2048 8192 32768 --dims 512 1024 --json "$out/objective.json"
TAIL=12 step 30 training $gpu training --json "$out/training.json"
TAIL=90 step 130 embed $gpu embed --photos "$photos" --copies 16 --json "$out/embed.json"
TAIL=30 step 25 profile $gpu profile --rows 32768 --dims 512
echo "all after $SECONDS s"
