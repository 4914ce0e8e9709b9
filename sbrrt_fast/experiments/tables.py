"""How a run of a table's row is trained, resumed or kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_cli import parse_cli
from sbrrt_fast.config_fields import config_leaves, did_you_mean
from sbrrt_fast.config_io import CALL_FIELDS, load_config, portable
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.experiments.table import Row, Table
from sbrrt_fast.files import acquired, make_folder
from sbrrt_fast.training.callbacks import Callback
from sbrrt_fast.training.logging import FINAL, LINES, read_log
from sbrrt_fast.training.run_folder import (
    CONFIG,
    check_output,
    has_state,
    is_finished,
    is_run,
)
from sbrrt_fast.training.trainer import Trainer


def pick_rows(table: Table, names: Sequence[str]) -> tuple[Row, ...]:
    """The named rows in the table's order; all without names.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    known = [row.name for row in table.rows]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; its rows are {', '.join(known)}"
            raise ConfigError(f"--rows: table {table.name} has no row '{name}'{hint}")
    return tuple(row for row in table.rows if not names or row.name in names)


def row_config(row: Row, configs: Path, flags: Sequence[str], prog: str) -> RunConfig:
    """The configuration of a row's runs; ``seed`` and ``output`` are still to be set.

    Args:
        configs: folder of the recipes.
        flags: those of ``sbrrt-fast train`` that hold for every row.

    Raises:
        ConfigError: the recipe is missing or cannot be used, or a flag is not one of them.
    """
    path = configs / f"{row.recipe}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such recipe for row '{row.name}'; name the folder of the "
            "recipes with --configs DIR, or leave --configs out for the package's own"
        )
    overrides = {"log.keep_state": False, **row.overrides}  # a table's runs are not extended
    config = parse_cli(flags, load_config(path, overrides), prog)
    for name in ("seed", "resume", "overwrite"):
        if getattr(config, name):
            raise ConfigError(
                f"{name}: is set for each run by this command; use --seeds N for the number of "
                "seeds, and another --output to start anew"
            )
    return replace(config, recipe=row.name)


def run_folder(output: Path, row: Row, seed: int) -> Path:
    """Of a run; a row has the same ones in every table."""
    return output / row.name / f"seed{seed}"


def check_run(config: RunConfig) -> None:
    """Looks whether ``complete_run`` can take ``config.output``; changes nothing.

    Raises:
        SbrrtError: the folder holds a run with other settings, or is not a run's.
    """
    if is_run(config.output):
        started = load_config(config.output / CONFIG)
        check_same_settings([started, config], [f"{config.output} holds", "now"])
    else:
        check_output(config.output)


@contextlib.contextmanager
def claimed(run: Path) -> Iterator[bool]:
    """Whether this process has a run to itself inside the block: False where another one has it.

    The lock lies beside the run's folder, and the system gives it back when a process ends.
    """
    make_folder(run.parent)
    lock = filelock.FileLock(run.parent / f".{run.name}.lock")
    if not acquired(lock):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def complete_run(
    config: RunConfig,
    log: Callable[[str], object] = print,
    callbacks: Sequence[Callback] = (),
    title: str | None = None,
) -> bool:
    """Sees to it that ``config.output`` holds this run, finished.

    A finished run is kept. An interrupted one goes on from its saved state, or starts anew where
    it has none.

    Args:
        callbacks: follow it while it trains. title: of its progress bar; the recipe if None.

    Returns:
        whether anything was trained.

    Raises:
        SbrrtError: see ``check_run``; or training fails.
    """
    check_run(config)
    output = config.output
    if is_finished(output):
        log(f"{output}: is finished, kept")
        return False
    if not is_run(output):
        log(f"{output}: training")
    elif has_state(output):
        log(f"{output}: was interrupted, goes on")
        config = replace(config, resume=True, overwrite=False)
    else:
        log(f"{output}: was interrupted before a state was saved, starts anew")
        config = replace(config, overwrite=True, resume=False)
    Trainer(config, log, callbacks, title=title).run()
    return True


def check_same_settings(configs: Sequence[RunConfig], names: Sequence[str]) -> None:
    """SbrrtError if two runs differ in more than seed, folder and how they were started."""
    first = _settings(configs[0])
    for config, name in zip(configs[1:], names[1:], strict=True):
        other = _settings(config)
        differing = [k for k in sorted(first.keys() | other.keys()) if first.get(k) != other.get(k)]
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more fields)" if len(differing) > 1 else ""
            raise SbrrtError(
                f"{names[0]} a run with {key} {first.get(key)!r}, {name} it is "
                f"{other.get(key)!r}{more}; their numbers do not belong in one row: choose "
                "another --output, or delete the folder"
            )


def _settings(config: RunConfig) -> dict[str, Any]:
    leaves = config_leaves(portable(config))
    return {key: value for key, value in leaves.items() if key not in ("seed", *CALL_FIELDS)}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        metrics: the contents of its ``metrics.json``.
        log: the lines of its ``metrics.jsonl``.
    """

    folder: Path
    config: RunConfig
    metrics: dict[str, Any]
    log: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """A finished run from its folder. SbrrtError if a file of it cannot be read."""
    config = load_config(folder / CONFIG)
    try:
        metrics = json.loads((folder / FINAL).read_text(encoding="utf-8"))
        log = read_log(folder / LINES)
    except (OSError, ValueError) as error:
        raise SbrrtError(
            f"{folder}: its metrics cannot be read ({error}); delete the folder to train it again"
        ) from None
    return Run(folder, config, metrics, log)
