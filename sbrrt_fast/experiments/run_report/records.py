"""A run as its folder tells it: settings, log, scores, and what it said of every row."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError, SbrrtError, WeightsError
from sbrrt_fast.experiments.run_report.rows import EvaluatedRow, evaluation_files, read_rows
from sbrrt_fast.experiments.run_report.saved_metrics import SavedMetrics, read_metrics
from sbrrt_fast.training.logging import FINAL, LINES
from sbrrt_fast.training.run_folder import CONFIG

MOST_RUNS = 8  # as many as there are colours that can be told apart


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Attributes:
        name: what the page calls it; no two runs of a page have the same.
        number: its place on the page, from 0.
        log: the lines of ``metrics.jsonl``.
        metrics: of ``metrics.json``; None while the run is not finished.
    """

    folder: Path
    name: str
    number: int
    config: RunConfig
    log: list[dict[str, Any]]
    metrics: SavedMetrics | None

    @property
    def is_finished(self) -> bool:
        return self.metrics is not None

    @property
    def rounds(self) -> int:
        """Rounds done, as far as they were logged."""
        if self.metrics and self.metrics.rounds is not None:
            return self.metrics.rounds
        return max((int(line["round"]) for line in self.log), default=0)

    @property
    def scores(self) -> dict[str, Any]:
        """Dev scores of the best model, or of the last evaluation while there is no best one."""
        return self.metrics.dev if self.metrics else _last_scores(self.log)

    @property
    def best_round(self) -> int | None:
        return self.metrics.best_round if self.metrics else None

    @cached_property
    def rows(self) -> dict[tuple[str, str], list[EvaluatedRow]]:
        """By task and split. DataError if a file cannot be read."""
        files = evaluation_files(self.folder, self.config.tasks)
        return {key: read_rows(path) for key, path in files.items()}


def read_records(folders: Sequence[Path]) -> list[RunRecord]:
    """The runs of several folders.

    Raises:
        ConfigError: a folder is given twice, there are too many, or a config.yaml cannot be used.
        WeightsError: a folder is not that of a run.
        SbrrtError: a log or a metrics.json cannot be read.
    """
    if not folders:
        raise ConfigError("name the folder of a run, the --output of `sbrrt-fast train`")
    if len(folders) > MOST_RUNS:
        raise ConfigError(f"{len(folders)} runs: a page shows at most {MOST_RUNS}; name fewer")
    names = run_names(folders)
    return [
        _read_record(folder, name, number)
        for number, (folder, name) in enumerate(zip(folders, names, strict=True))
    ]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart.

    Raises:
        ConfigError: a folder is given twice.
    """
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ConfigError(f"{folders[number]}: is given twice; name each run once")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_record(folder: Path, name: str, number: int) -> RunRecord:
    if not os.path.isfile(folder / CONFIG):  # Path.is_file raises for a name that is too long
        raise WeightsError(
            f"{folder}: is not the folder of a run, it has no {CONFIG}; give the --output of "
            "`sbrrt-fast train`"
        )
    config = load_config(folder / CONFIG)
    return RunRecord(folder, name, number, config, _read_log(folder), read_metrics(folder / FINAL))


def _read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log; an unfinished last one is passed over, for a run may be writing it."""
    path, records = folder / LINES, []
    for number, line in enumerate(_text(path).splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            record["round"] = int(record["round"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SbrrtError(
                f"{path}:{number}: is not a line that training wrote; mend or remove it"
            ) from None
        records.append(record)
    return records


def _text(path: Path) -> str:
    """A file's text; empty where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SbrrtError(f"{path}: cannot be read ({error}); restore it from a copy") from None


def _last_scores(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of the last evaluation in the shape of ``metrics.json``."""
    scores: dict[str, Any] = {}
    last = next((line for line in reversed(log) if "dev/overall" in line), {})
    for key, value in last.items():
        section, _, name = key.partition("/")
        task, _, metric = name.rpartition("/")
        if section == "dev" and task:
            scores.setdefault(task, {})[metric] = value
        elif section == "dev":
            scores[name] = value
    return scores
