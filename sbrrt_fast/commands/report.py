"""``sbrrt-fast report``: one or several runs as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.experiments.run_report.page import render_page
from sbrrt_fast.experiments.run_report.records import read_records
from sbrrt_fast.files import make_folder, write_text
from sbrrt_fast.messages import printable
from sbrrt_fast.training.run_folder import note_predictions

FILE = "report.html"


@dataclass(frozen=True)
class ReportArguments:
    """Write one HTML page about one run or several: curves, scores, mistakes, time and settings.

    Attributes:
        run: folders of runs, the --output of their training; others are compared with the first.
        output: the page.
    """

    run: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    output: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help_behavior_hint=f"(default: RUN/{FILE}; {FILE} here for several runs)",
        ),
    ] = None


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(ReportArguments, argv, "sbrrt-fast report")
    path = arguments.output or _default_output(arguments.run)
    page = render_page(read_records(arguments.run))
    make_folder(path.parent)
    write_text(path, page)
    if arguments.output is None and len(arguments.run) == 1:
        note_predictions(arguments.run[0], path)
    print(f"{printable(path)}: open it in a browser")
    return 0


def _default_output(runs: Sequence[Path]) -> Path:
    return runs[0] / FILE if len(runs) == 1 else Path(FILE)
