#!/usr/bin/env bash
# On a GPU: correctness against the CPU's fp32, the memory modes, then the benchmark in the time that is left,
# whose result goes into benchmarks/results/. Under nine minutes in all. Arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
"${PYTHON:-python3}" -m benchmarks.gpu_check || failed=1
left=$((SECONDS < 420 ? 480 - SECONDS : 60))
"${PYTHON:-python3}" -m benchmarks.bench --preset gpu --minutes "$((left / 60)).$((left % 60 * 10 / 60))" "$@" || failed=1
exit "$failed"
