"""Puts benchmarks' tables into a document, such as docs/evidence/performance.md.

``python -m benchmarks.readme_table RESULT.json … DOCUMENT.md``: they replace what stands between the lines
``<!-- benchmark: begin -->`` and ``<!-- benchmark: end -->``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .bench.report import summary_table
from .sections import write_section


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="a result.json of benchmarks.bench")
    parser.add_argument("readme", type=Path)
    args = parser.parse_args()
    results = [json.loads(result.read_text(encoding="utf-8")) for result in args.results]
    try:
        write_section(args.readme, "benchmark", "\n\n".join(summary_table(result) for result in results))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
