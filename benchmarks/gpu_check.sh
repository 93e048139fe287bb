#!/usr/bin/env bash
# All checks of a machine with one GPU in one go, in under six minutes: bash benchmarks/gpu_check.sh [PHOTOS]
# What matters most comes first, every part ends by itself within its seconds, none stops the others, and one table of
# all that was measured comes last (OUT/table.md; OUT: where logs and JSON go). Without a GPU every part but the tests
# is run on the processor in its smallest size, which shows that it runs. ONLY="errors tests ...": these parts alone, of
# tests errors objective training embed, and of tune and profile, which are only run where they are named.
# Such a machine is often bare: wheels in .whl/ are installed into a folder of their own first, where there are any.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}; photos=${1:-.gpudata}
mkdir -p "$out"
site=$(mktemp -d); logs=$(mktemp -d)
if ls .whl/*.whl >/dev/null 2>&1; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl 2>&1 | tail -3
    python3 -m compileall -q -j 0 "$site" cs_aligner_cli  # as an ordinary installation has it
fi
export PYTHONPATH=$PWD:$PWD/benchmarks:$PWD/tests:$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
parts=${ONLY:-tests errors objective training embed}
wanted() { [[ " $parts " == *" $1 "* ]]; }
step() { # seconds, name, command: its output to a log, the end of that to the screen
    local limit=$1 name=$2 began=$SECONDS; shift 2
    wanted "$name" || return
    timeout -k 5 "$limit" "$@" >"$logs/$name" 2>&1
    echo "== $name: exit $?, $((SECONDS - began)) s"; tail -n "${TAIL:-12}" "$logs/$name" | cut -c1-220
    { echo "==== $name"; cat "$logs/$name"; } >>"$out/all.txt"  # few files come back from a lent machine
}
gpu="python3 benchmarks/gpu.py"; large="--rows 512 2048 8192 32768 --dims 512 1024"
if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; then
    echo "no GPU: the smallest sizes, on the processor"
    gpu="$gpu --small"; large=""
    step() {
        local name=$2; shift 2
        [[ $name == tests || $name == tune || $name == profile ]] || ! wanted "$name" && return
        "$@" >"$logs/$name" 2>&1
        local code=$?
        echo "== $name: exit $code"; [[ $code == 0 ]] || { failed=1; tail -n 20 "$logs/$name"; }
    }
fi
failed=0
# The forms that are tuned compile beside the first parts.
for first in 0 1 2 3 4 5 6; do
    wanted tune && timeout 100 $gpu tune --rows 512 --dims 512 --share $first/7 >"$logs/compile$first" 2>&1 &
done
TAIL=45 step 110 tests python3 -m pytest tests/gpu -m gpu -v -n 8 --durations=8 -p no:cacheprovider -p no:benchmark \
    --tb=short -o faulthandler_timeout=45
TAIL=14 step 25 errors $gpu errors --json "$out/errors.json"
TAIL=60 step 60 objective $gpu objective $large --json "$out/objective.json"
TAIL=12 step 30 training $gpu training --json "$out/training.json"
TAIL=90 step 120 embed $gpu embed --photos "$photos" --copies 16 --json "$out/embed.json"
wait
TAIL=32 step 60 tune $gpu tune --rows 32768 --dims 512 1024 --json "$out/tune.json"
TAIL=30 step 25 profile $gpu profile --rows 32768 --dims 512
python3 benchmarks/gpu.py table "$out"/*.json | tee "$out/table.md"
echo "all after $SECONDS s; the table is $out/table.md"
exit $failed
