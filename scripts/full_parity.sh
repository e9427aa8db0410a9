#!/usr/bin/env bash
# Full-size networks and pipelines against stock ModelScope, on a CPU; see docs/evidence/fidelity.md.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.full_parity "$@"
