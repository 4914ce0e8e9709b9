"""``sbrrt-fast compare``: two finished runs, or two variants of a run trained side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_cli import parse_run_config
from sbrrt_fast.config_io import config_with
from sbrrt_fast.config_yaml import parse_yaml
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.experiments.differences import Comparison
from sbrrt_fast.experiments.finished import FinishedComparison, compare_finished
from sbrrt_fast.experiments.lockstep import train_in_lockstep
from sbrrt_fast.files import make_folder, write_json
from sbrrt_fast.messages import shown

PROG = "sbrrt-fast compare"


@dataclass(frozen=True)
class CompareOptions:
    """Compare two finished runs, or two variants of a run that are trained side by side.

    `sbrrt-fast compare RUN RUN [--output FILE]` shows two finished runs' settings that differ,
    scores, curves and loss terms.

    Without runs, two variants are trained on the same rounds to see how far they drift apart.
    --config and every flag of `sbrrt-fast train` set what both share, such as --epochs for the
    length of the runs. No run folder is written.

    Attributes:
        a: fields of the first variant, as in layout=padded or smart.weight=0,seed=1.
        b: fields of the second variant.
        rounds: number of rounds to compare.
        ulp: also train the first variant from weights one ulp away, as a yardstick.
        check: exit with status 1 unless the variants are the same run up to rounding.
        output: JSON file to write, with a plot of the same name beside it.
    """

    a: str = ""
    b: str = ""
    rounds: int = 10
    ulp: bool = False
    check: bool = False
    output: Path | None = None


@dataclass(frozen=True)
class FinishedRuns:
    """Put two finished runs side by side: settings that differ, scores, curves, loss terms.

    Attributes:
        runs: their folders.
        output: JSON file to write, with a plot of the same name beside it.
    """

    runs: Annotated[Positional[tuple[Path, Path]], arg(metavar="RUN RUN")]
    output: Path | None = None


def main(argv: Sequence[str]) -> int:
    is_of_finished_runs = bool(argv) and not argv[0].startswith("-")
    return compare_runs(argv) if is_of_finished_runs else compare_variants(argv)


def compare_runs(argv: Sequence[str]) -> int:
    """``compare RUN RUN``."""
    options = parse_arguments(FinishedRuns, argv, PROG)
    comparison = compare_finished(*options.runs)
    print(comparison.text())
    if options.output is not None:
        from sbrrt_fast.experiments.plots import finished_figure  # slow to import

        write(comparison, options.output, finished_figure)
    return 0


def compare_variants(argv: Sequence[str]) -> int:
    """``compare --a ... --b ...``."""
    options, flags = parse_arguments(CompareOptions, argv, PROG, return_unknown_args=True)
    if options.rounds < 1:
        raise ConfigError(f"--rounds: must be at least 1, got {options.rounds}")
    base = parse_run_config(flags, prog=PROG)
    comparison = train_in_lockstep(
        with_overrides(base, options.a, "--a"),
        with_overrides(base, options.b, "--b"),
        options.rounds,
        yardstick=options.ulp,
        labels=(options.a or "as configured", options.b or "as configured"),
    )
    print(comparison.text())
    if options.output is not None:
        from sbrrt_fast.experiments.plots import comparison_figure  # slow to import

        write(comparison, options.output, comparison_figure)
    return int(options.check and bool(comparison.problems()))


def write(
    comparison: Comparison | FinishedComparison, path: Path, figure_of: Callable[[Any], Any]
) -> None:
    """The comparison as JSON, and its plot as PNG beside it."""
    from sbrrt_fast.experiments.plots import save_figure  # slow to import

    make_folder(path.parent)
    write_json(path, comparison.to_dict())
    save_figure(figure_of(comparison), path.with_suffix(".png"))
    print(f"written: {path}, {path.with_suffix('.png')}")


def with_overrides(base: RunConfig, text: str, flag: str) -> RunConfig:
    """``base`` with the fields of ``key=value,key=value``, values as in YAML.

    Raises:
        ConfigError: naming ``flag``, for text of another form, an unknown key or a bad value.
    """
    values = {}
    for item in filter(None, re.split(r",(?=[^,=]*=)|,$", text)):  # not inside [0.8, 0.9]
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{flag}: '{shown(item)}' is not of the form key=value")
        key = key.strip()
        values[key] = parse_yaml(value, f"{flag}: {shown(key)}", has_lines=False)
    return config_with(base, values, flag)
