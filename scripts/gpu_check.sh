#!/usr/bin/env bash
# On a GPU: correctness against the CPU's fp32, then the benchmark, whose result goes into benchmarks/.
# Under nine minutes in all on an H200. Arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" scripts/gpu_check.py
exec "${PYTHON:-python3}" scripts/bench.py --preset gpu "$@"
