"""``sbrrt-fast reproduce``: every row of a table, the paper's or one of ours."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.config import RunConfig
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.experiments.commit import source_commit
from sbrrt_fast.experiments.record import (
    RunRecord,
    backbone_name,
    check_same_run,
    identity_of,
    read_record,
    read_records,
    record_of,
    record_path,
    save_record,
)
from sbrrt_fast.experiments.report import SAMPLE_WARNING, Report, RowResult
from sbrrt_fast.experiments.table import Row
from sbrrt_fast.experiments.table_rows import TABLES
from sbrrt_fast.experiments.tables import (
    check_run,
    check_same_settings,
    claimed,
    complete_run,
    pick_rows,
    read_run,
    row_config,
    run_folder,
)
from sbrrt_fast.files import make_folder, write_json, write_text
from sbrrt_fast.recipe_files import recipes_folder
from sbrrt_fast.training.logging import FINAL
from sbrrt_fast.training.run_folder import is_run

PROG = "sbrrt-fast reproduce"
RECORDS = "metrics"  # in the output folder


@dataclass(frozen=True)
class ReproduceOptions:
    """Train every row of a table and print it, with the paper's values beside ours.

    Called again it trains only what is missing; several processes on one output folder share the
    runs out. Further flags are those of ``sbrrt-fast train`` and hold for every row, such as
    --precision fp32 or --log.dev-rows 2000.

    Attributes:
        table: 1 is the paper's single-task and 2 its multi-task table; radius, data, noise and
            ingredients are ours.
        data_dir: folder of the task files; the built-in sample, whose numbers mean nothing, if
            not given.
        seeds: runs per row, with seeds 0 to N - 1.
        rounds: rounds per run, instead of the recipes' own.
        rows: rows to train and show; all if not given.
        output: folder of the runs and the table.
        backbone: minilm, a folder or a hub id, instead of the recipes' own.
        configs: folder of the recipes; the package's own if not given.
        records: folder of records of runs that were made elsewhere, such as the metrics folder of
            another output; a run with a record there is shown and not trained.
        report_only: train nothing, show the finished runs of any seed.
    """

    table: Literal["1", "2", "radius", "data", "noise", "ingredients"]
    data_dir: Path | None = None
    seeds: int = 1
    rounds: int | None = None
    rows: tuple[str, ...] = ()
    output: Path = Path("runs/reproduce")
    backbone: str | None = None
    configs: Path = field(default_factory=recipes_folder)
    records: Path | None = None
    report_only: bool = False


def main(argv: Sequence[str]) -> int:
    options, flags = parse_arguments(ReproduceOptions, argv, PROG, return_unknown_args=True)
    table = TABLES[options.table]
    rows = pick_rows(table, options.rows)
    if options.seeds < 1:
        raise ConfigError(f"--seeds: must be at least 1, got {options.seeds}")
    if options.records and not any(options.records.glob("*/seed*.json")):
        raise ConfigError(
            f"--records: {options.records} has no ROW/seedN.json; name the metrics folder of an "
            "output of this command"
        )
    failures: list[str] = []
    if not options.report_only:
        _train_all(options, rows, flags, failures)
    by_seed = attrgetter("seed")
    results = {
        row.name: RowResult(row, sorted(_records(options, row), key=by_seed)) for row in table.rows
    }
    shown = [results.pop(row.name) for row in rows]
    report = Report(table, shown, failures, bases=list(results.values()))
    print(report.text())
    print("written:", *write_report(report, options.output))
    return int(bool(failures))


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes ``table<T>.md``, ``.json`` and ``.png`` into ``folder``; returns their paths."""
    from sbrrt_fast.experiments.plots import save_figure, table_figure  # slow to import

    make_folder(folder)
    paths = [folder / f"table-{report.table.name}{suffix}" for suffix in (".md", ".json", ".png")]
    write_text(paths[0], report.markdown())
    write_json(paths[1], report.to_dict())
    save_figure(table_figure(report), paths[2])
    return paths


def _train_all(
    options: ReproduceOptions, rows: Sequence[Row], flags: Sequence[str], failures: list[str]
) -> None:
    """Trains what is missing, seed by seed, and adds a sentence to ``failures`` for what fails.

    Raises:
        SbrrtError: before anything is trained, where a folder holds something else.
    """
    flags = [*flags, *_run_flags(options)]
    runs = [_configs(options, row, flags) for row in rows]
    for config in chain.from_iterable(runs):
        check_run(config)
    recorded = {
        row.name: {r.seed for r in _elsewhere(options, row, identity_of(configs[0]))}
        for row, configs in zip(rows, runs, strict=True)
    }
    if options.data_dir is None:
        print(f"!!! {SAMPLE_WARNING} !!!")
    for seed in range(options.seeds):
        for row, configs in zip(rows, runs, strict=True):
            if seed in recorded[row.name]:
                print(f"{configs[seed].output}: is recorded in {options.records}, kept")
            else:
                _complete(options, row, configs[seed], flags, failures)


def _configs(options: ReproduceOptions, row: Row, flags: Sequence[str]) -> list[RunConfig]:
    """The row's runs, one per seed."""
    config = row_config(row, options.configs, flags, PROG)
    return [
        replace(config, seed=seed, output=run_folder(options.output, row, seed))
        for seed in range(options.seeds)
    ]


def _elsewhere(
    options: ReproduceOptions, row: Row, identity: Mapping[str, Any] | None
) -> list[RunRecord]:
    """Records of the row's runs that were made elsewhere and have no folder here, by seed.

    Args:
        identity: of the runs here; the first record's if None.

    Raises:
        SbrrtError: a file is no record, or of a run with another identity.
    """
    records = [
        record
        for record in (read_records(options.records, row.name) if options.records else [])
        if (options.report_only or record.seed < options.seeds)
        and not is_run(run_folder(options.output, row, record.seed))
    ]
    for record in records:
        path = record_path(options.records, row.name, record.seed)
        check_same_run(record, identity or records[0].identity, path)
    return records


def _run_flags(options: ReproduceOptions) -> list[str]:
    values = {
        "--data-dir": options.data_dir and options.data_dir.expanduser().resolve(),
        "--rounds": options.rounds,
        "--backbone": options.backbone,
    }
    return [text for flag, v in values.items() if v is not None for text in (flag, str(v))]


def _complete(
    options: ReproduceOptions,
    row: Row,
    config: RunConfig,
    flags: Sequence[str],
    failures: list[str],
) -> None:
    """Sees to it that a run is finished, and writes its record if it was trained here."""
    commit = source_commit()
    with claimed(config.output) as is_ours:
        if not is_ours:
            print(f"{config.output}: another process trains it, passed over")
            return
        try:
            if complete_run(config):
                command = _command(options, row, config, flags)
                record = record_of(read_run(config.output), row.recipe, command, commit)
                save_record(record, options.output / RECORDS)
        except SbrrtError as error:
            failures.append(f"{config.recipe}, seed {config.seed}: {error}")
            print(f"{PROG}: {failures[-1]}")


def _command(options: ReproduceOptions, row: Row, config: RunConfig, flags: Sequence[str]) -> str:
    """That trains the row's runs, without the folders of this machine."""
    names = {"--data-dir": "DIR", "--backbone": backbone_name(config)}
    words = [names.get(before, word) for before, word in zip(["", *flags], flags, strict=False)]
    table = ["--table", options.table, "--rows", row.name, "--seeds", str(options.seeds)]
    return shlex.join([*PROG.split(), *table, *words])


def _records(options: ReproduceOptions, row: Row) -> Iterator[RunRecord]:
    """Of the row's finished runs; those that have none yet get one.

    Raises:
        SbrrtError: a run cannot be read, or the runs do not belong together.
    """
    folders = [path.parent for path in (options.output / row.name).glob(f"seed*/{FINAL}")]
    folders = sorted(folders, key=lambda path: (len(path.name), path.name))
    if not options.report_only:
        folders = [path for path in folders if int(path.name[4:]) < options.seeds]
    runs = [read_run(folder) for folder in folders]
    if runs:
        names = [f"{folders[0]} holds", *(f"in {folder}" for folder in folders[1:])]
        check_same_settings([run.config for run in runs], names)
    for run in runs:
        path = record_path(options.output / RECORDS, row.name, run.metrics["seed"])
        known = read_record(path) if path.is_file() else None
        record = record_of(
            run, row.recipe, known.command if known else "", known.commit if known else None
        )
        if known is None:
            save_record(record, options.output / RECORDS)
        yield record
    yield from _elsewhere(options, row, identity_of(runs[0].config) if runs else None)
