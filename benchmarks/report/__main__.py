"""A run's results as Markdown and plots, and the table of the README.

python -m benchmarks.report DIR        # report.md and plots from DIR/results.json
python -m benchmarks.report --readme   # the README's table from benchmarks/results/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness.results import Results, write_text
from benchmarks.report.report import README, committed, readme_table, with_table, write_report


def main() -> None:
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(f"python -m {__package__}", description=summary)
    parser.add_argument("folder", type=Path, nargs="?", help="of results.json")
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    if args.folder:
        print(write_report(Results.load(args.folder), args.folder))
    if args.readme:
        text = with_table(README.read_text(encoding="utf-8"), readme_table(committed()))
        write_text(README, text)


if __name__ == "__main__":
    main()
