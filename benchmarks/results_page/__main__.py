"""``python -m benchmarks.results_page [FOLDER ...]``: makes docs/results.md and its pictures.

A FOLDER is the output of ``sbrrt-fast reproduce``, whose records are taken over first, or that of
``sbrrt-fast robustness``. With --speed it is one of ``reproduce`` whose runs, of a few rounds with
the machine for themselves, say how fast the rows are and nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.results_page.figures import figures
from benchmarks.results_page.page import page
from benchmarks.results_page.results import RECORDS, ROBUSTNESS, SPEED, Results
from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.experiments.plots import save_figure
from sbrrt_fast.files import write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[2])
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path)
    parser.add_argument("--speed", metavar="FOLDER", type=Path, help="of runs for their speed")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of results.md")
    arguments = parser.parse_args()
    try:
        results = arguments.docs / "results"
        for folder in arguments.folders:
            print(f"{folder}: {take_over(folder, results)} records")
        if arguments.speed:
            print(f"{arguments.speed}: {take_over(arguments.speed, results, SPEED)} speeds")
        make(arguments.docs)
    except SbrrtError as error:
        print(f"results_page: {error}", file=sys.stderr)
        return 2
    return 0


def take_over(folder: Path, results: Path, place: str = RECORDS) -> int:
    """Copies the records of a folder of runs; returns how many there were.

    Args:
        place: where those of ``reproduce`` go.

    Raises:
        SbrrtError: there is none.
    """
    is_reproduce = (folder / RECORDS).is_dir()
    place = place if is_reproduce else ROBUSTNESS
    paths = sorted((folder / RECORDS if is_reproduce else folder).glob("*/seed*.json"))
    if not paths:
        raise SbrrtError(f"{folder}: has no records; give the --output of `sbrrt-fast reproduce`")
    for path in paths:
        target = results / place / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return len(paths)


def make(docs: Path) -> None:
    """Writes the page and its pictures; pictures of an earlier page are removed."""
    results = Results(docs / "results")
    write_text(docs / "results.md", page(results))
    drawn = figures(results)
    for path in (docs / "results").glob("*.png"):
        if path.stem not in drawn:
            path.unlink()
    for name, figure in drawn.items():
        save_figure(figure, docs / "results" / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
