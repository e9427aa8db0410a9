"""Puts a benchmark's table into a README: ``python scripts/bench_table.py RESULT.json README.md``.

It goes between the lines ``<!-- benchmark -->`` and ``<!-- /benchmark -->``, in place of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from bench.report import between_marks, summary_table  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="a result.json of scripts/bench.py")
    parser.add_argument("readme", type=Path)
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    try:
        text = between_marks(args.readme.read_text(encoding="utf-8"), "benchmark", summary_table(result))
    except ValueError as error:
        print(f"{args.readme} has no place for the table. {error}", file=sys.stderr)
        return 1
    args.readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
