#!/usr/bin/env bash
# Runs the tests that call the compiled code most widely on operators built with GCC's address and
# undefined-behaviour sanitizers, at every instruction set that this processor has. Works on a copy;
# any report fails it.
#   PYTHON=... tests/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r csrc selavi tests setup.py pyproject.toml README.md LICENSE "$copy"
rm -f "$copy"/selavi/_C.* "$copy"/selavi/ops/_numpy.*.so
cd "$copy"

flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
SELAVI_BUILD_CUDA=0 SELAVI_BUILD_NUMPY=1 CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" \
    "$python" setup.py -q build_ext --inplace >build.log || { cat build.log; exit 1; }

# Python and torch are not instrumented: the runtimes come first, and leaks are not ours to judge.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) \
$(gcc -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH="$copy"
"$python" -c 'from selavi.ops import backends
assert backends()["cpu"] == backends()["numpy"] == "available", backends()'
tests=(primitives sinkhorn accumulate_log_softmax permute_prior numpy)
for level in default avx2 avx512; do
    echo "+ ATEN_CPU_CAPABILITY=$level"
    ATEN_CPU_CAPABILITY=$level "$python" -m pytest -q -p no:cacheprovider --capture=sys \
        $(printf "tests/ops/test_%s.py " "${tests[@]}") "$@"
done
