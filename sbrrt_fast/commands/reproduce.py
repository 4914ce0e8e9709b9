"""``sbrrt-fast reproduce``: every row of the paper's table 1 or 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.config import RunConfig
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.experiments.report import SAMPLE_WARNING, Report, RowResult
from sbrrt_fast.experiments.tables import (
    TABLES,
    Row,
    Run,
    Table,
    check_run,
    check_same_settings,
    complete_run,
    pick_rows,
    read_run,
    row_config,
    run_folder,
)
from sbrrt_fast.files import make_folder, write_json, write_text
from sbrrt_fast.recipe_files import recipes_folder
from sbrrt_fast.training.logging import FINAL

PROG = "sbrrt-fast reproduce"


@dataclass(frozen=True)
class ReproduceOptions:
    """Train every row of a table of the paper and print it with the paper's values beside ours.

    Called again it trains only what is missing. Further flags are those of ``sbrrt-fast train``
    and hold for every row, such as --precision fp32 or --log.dev-rows 2000.

    Attributes:
        table: 1 is single-task, 2 is multi-task.
        data_dir: folder of the task files; the built-in sample, whose numbers mean nothing, if
            not given.
        seeds: runs per row, with seeds 0 to N - 1.
        rounds: rounds per run, instead of the recipes' own.
        rows: rows to train and show; all if not given.
        output: folder of the runs and the table.
        backbone: minilm, a folder or a hub id, instead of the recipes' own.
        configs: folder of the recipes; the package's own if not given.
        report_only: train nothing, show the finished runs of any seed.
    """

    table: Literal[1, 2]
    data_dir: Path | None = None
    seeds: int = 1
    rounds: int | None = None
    rows: tuple[str, ...] = ()
    output: Path = Path("runs/reproduce")
    backbone: str | None = None
    configs: Path = field(default_factory=recipes_folder)
    report_only: bool = False


def main(argv: Sequence[str]) -> int:
    options, flags = parse_arguments(ReproduceOptions, argv, PROG, return_unknown_args=True)
    table = TABLES[options.table]
    rows = pick_rows(table, options.rows)
    if options.seeds < 1:
        raise ConfigError(f"--seeds: must be at least 1, got {options.seeds}")
    failures: list[str] = []
    if options.report_only:
        folders = {row.name: _finished(options.output, table, row) for row in rows}
    else:
        folders = _train_all(options, table, rows, flags, failures)
    results = [RowResult(row, _runs_of(folders[row.name])) for row in rows]
    report = Report(table, results, failures)
    print(report.text())
    print("written:", *write_report(report, options.output))
    return int(bool(failures))


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes ``table<T>.md``, ``.json`` and ``.png`` into ``folder``; returns their paths."""
    from sbrrt_fast.experiments.plots import save_figure, table_figure  # slow to import

    make_folder(folder)
    stem = folder / f"table{report.table.number}"
    paths = [stem.with_suffix(suffix) for suffix in (".md", ".json", ".png")]
    write_text(paths[0], report.markdown())
    write_json(paths[1], report.to_dict())
    save_figure(table_figure(report), paths[2])
    return paths


def _train_all(
    options: ReproduceOptions,
    table: Table,
    rows: Sequence[Row],
    flags: Sequence[str],
    failures: list[str],
) -> dict[str, list[Path]]:
    """Trains what is missing; the finished runs' folders by row.

    Raises:
        SbrrtError: before anything is trained, where a folder holds something else.
    """
    flags = [*flags, *_run_flags(options)]
    runs = {row.name: _configs(options, table, row, flags) for row in rows}
    for config in chain.from_iterable(runs.values()):
        check_run(config)
    if options.data_dir is None:
        print(f"!!! {SAMPLE_WARNING} !!!")
    return {
        name: [config.output for config in configs if _is_completed(config, failures)]
        for name, configs in runs.items()
    }


def _configs(
    options: ReproduceOptions, table: Table, row: Row, flags: Sequence[str]
) -> list[RunConfig]:
    """The row's runs, one per seed."""
    config = row_config(row, options.configs, flags, PROG)
    return [
        replace(config, seed=seed, output=run_folder(options.output, table, row, seed))
        for seed in range(options.seeds)
    ]


def _run_flags(options: ReproduceOptions) -> list[str]:
    values = {
        "--data-dir": options.data_dir and options.data_dir.expanduser().resolve(),
        "--rounds": options.rounds,
        "--backbone": options.backbone,
    }
    return [text for flag, v in values.items() if v is not None for text in (flag, str(v))]


def _is_completed(config: RunConfig, failures: list[str]) -> bool:
    try:
        complete_run(config)
    except SbrrtError as error:
        failures.append(f"{config.recipe}, seed {config.seed}: {error}")
        print(f"{PROG}: {failures[-1]}")
        return False
    return True


def _finished(output: Path, table: Table, row: Row) -> list[Path]:
    folder = run_folder(output, table, row, 0).parent
    folders = [path.parent for path in folder.glob(f"seed*/{FINAL}")]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def _runs_of(folders: Sequence[Path]) -> list[Run]:
    """The finished runs of a row. SbrrtError where they do not belong together."""
    runs = [read_run(folder) for folder in folders]
    if runs:
        names = [f"{folders[0]} holds", *(f"in {folder}" for folder in folders[1:])]
        check_same_settings([run.config for run in runs], names)
    return runs
