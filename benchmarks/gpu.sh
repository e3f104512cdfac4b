#!/usr/bin/env bash
# All that needs a GPU, in one go and within nine minutes: builds the extension, runs the operators'
# tests on both GPU backends and small ones under compute-sanitizer, then the benchmark.
#
#   benchmarks/gpu.sh [FOLDER]      for results and logs; benchmarks/results if not given
#
# Needs an NVIDIA GPU (exit code 3 where none can be had), nvcc, and Python with torch, triton,
# ninja, pytest, pytest-benchmark, hypothesis, scipy and matplotlib; no network. It installs nothing
# and leaves the GPU's settings alone. A step that fails hides no other; the exit code is then 1.
#   PYTHON=python3  SELAVI_COMMIT=the commit, where this is no Git checkout
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python3}
out=${1:-benchmarks/results}
mkdir -p "$out/logs" || exit 2
out=$(cd "$out" && pwd)
logs=$out/logs
begin=$(date +%s)
commit=${SELAVI_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unversioned)}

none() { echo "gpu.sh: no GPU can be had here: $1"; exit 3; }
command -v nvidia-smi >/dev/null || none "there is no nvidia-smi"
nvidia-smi >"$logs/nvidia-smi-before.txt" 2>&1 || none "nvidia-smi fails"
capability=$("$PYTHON" -c '
import torch
assert torch.cuda.is_available(), "torch.cuda.is_available() is False"
print("{}.{}".format(*torch.cuda.get_device_capability()))' 2>"$logs/torch.txt") ||
    none "$(tail -n 1 "$logs/torch.txt")"
export PYTHONPATH=$PWD TORCH_CUDA_ARCH_LIST=$capability SELAVI_BUILD_CUDA=1
if [[ ! -e selavi/kernels ]]; then # where an installation would put it
    ln -s ../kernels selavi/kernels
    trap 'rm selavi/kernels' EXIT
fi
export MAX_JOBS=${MAX_JOBS:-$(nproc)}

rm -f "$logs"/*.json "$logs/steps.txt"
said() { printf '%-16s %4s s  %s\n' "$1" "$2" "$3" | tee -a "$logs/steps.txt"; }
# step NAME LIMIT COMMAND ...: for at most LIMIT seconds; its output goes to a log.
step() {
    local name=$1 limit=$2 start=$SECONDS result=passed code
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" bash -o pipefail -c '"$@"' _ "$@" \
        >"$logs/$name.txt" 2>&1
    code=$?
    ((code == 0)) || result="failed, exit code $code"
    ((code != 124 && code != 137)) || result="failed, over its $limit s"
    ((code == 0)) || tail -n 20 "$logs/$name.txt"
    said "$name" $((SECONDS - start)) "$result"
}

build() {
    "$PYTHON" setup.py build_ext --inplace && "$PYTHON" -c '
import selavi.kernels
from selavi.ops import backends
states = backends()
print(states)
assert states["cuda"] == states["triton"] == "available"'
}
# Tests that were all skipped have not passed.
some_passed() { awk '{ print } / passed/ { found = 1 } END { exit !found }'; }
tests() { "$PYTHON" -m pytest -q -rs -p no:cacheprovider tests/ops "$@" | some_passed; }
sanitized() {
    local tool=$1 options=()
    shift
    # torch probes for what a driver lacks: calls that fail are its affair.
    [[ $tool != memcheck ]] || options=(--report-api-errors no)
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "${options[@]}" "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops "$@" | some_passed
}
export -f build some_passed tests sanitized

step build 150 build

# Tests and sanitizers at once: no times are taken here. A test's id names its backend; those that
# compare all backends are CUDA's. Matrices of more than 2^31 entries have a process of their own.
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n 6)
small="(primitives_match_definition and not any_shape and (contiguous or strided)
    or dead_columns or long_rows or ties_go or weight_zero)"
small=${small//$'\n'/ }
step tests-cuda 150 tests -k "(cuda or backends_agree) and not 32_bits" "${workers[@]}" &
step tests-triton 150 tests -k "triton and not 32_bits" "${workers[@]}" &
step tests-large 150 tests -k "32_bits" &
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        step "$tool-cuda" 150 sanitized "$tool" -k "cuda and $small" &
        step "$tool-triton" 150 sanitized "$tool" -k "triton and $small" &
    else
        said "$tool" 0 "not run: compute-sanitizer is not installed"
    fi
done
wait

# In processes of their own, so that a kernel that hangs or spoils the context takes few cases along.
until=$((begin + 490))
measure() {
    local name=$1 left=$((until + 15 - $(date +%s)))
    shift
    ((left > 20)) || { said "$name" 0 "incomplete: no time was left"; return; }
    step "$name" $((left < 90 ? left : 90)) "$PYTHON" -m pytest -q -rs \
        --device cuda --size full --until "$until" --benchmark-json="$logs/$name.json" "$@"
    ! grep -q "no time is left" "$logs/$name.txt" || said "$name" 0 "incomplete: no time was left"
}
gpu=benchmarks/bench_gpu.py
measure bandwidth "$gpu" -k bandwidth
for backend in cuda triton; do
    only=$([[ $backend == triton ]] && echo triton || echo "not triton") # peers go with CUDA
    measure "iteration-$backend" "$gpu" -k "iteration and $only"
    measure "labels-$backend" "$gpu" -k "(labels and hard-8-2 or accumulate) and $only"
    measure "batches-$backend" "$gpu" -k "(wide or batch) and $only"
    measure "others-$backend" "$gpu" -k "(memory or dense) and $only"
    measure "points-$backend" "$gpu" -k "points and $only"
done
for backend in cuda triton; do
    only=$([[ $backend == triton ]] && echo triton || echo "not triton")
    measure "choice-$backend" benchmarks/bench_gpu_choice.py -k "$only"
    measure "families-$backend" "$gpu" -k "labels and not hard-8-2 and $only"
done
nvidia-smi >"$logs/nvidia-smi-after.txt" 2>&1

report() {
    local results
    results=$("$PYTHON" benchmarks/results.py --folder "$1" --commit "$2" --steps "$1/logs/steps.txt" \
        "$1"/logs/*.json) &&
        "$PYTHON" benchmarks/report.py "$results" &&
        "$PYTHON" benchmarks/choose_backends.py "$results" &&
        cp selavi/ops/backend_choice.json "$1/logs"
}
export -f report
step report 30 report "$out" "$commit"
cat "$logs/report.txt"
echo
cat "$logs/steps.txt"
echo "all: $(($(date +%s) - begin)) s"
! grep -qE "failed|incomplete" "$logs/steps.txt"
