"""Puts a benchmark's table into a README: ``python scripts/bench_table.py RESULT.json README.md``.

It goes between the lines ``<!-- benchmark: begin -->`` and ``<!-- benchmark: end -->``,
in place of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from bench.report import summary_table  # noqa: E402
from sections import write_section  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="a result.json of scripts/bench.py")
    parser.add_argument("readme", type=Path)
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    try:
        write_section(args.readme, "benchmark", summary_table(result))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
