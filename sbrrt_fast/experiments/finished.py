"""Two finished runs side by side: settings that differ, scores, curves, loss terms, speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_io import CALL_FIELDS, portable
from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.errors import SbrrtError, WeightsError
from sbrrt_fast.experiments.tables import Run, read_run
from sbrrt_fast.messages import columns, shown
from sbrrt_fast.training.run_folder import is_finished, is_run
from sbrrt_fast.training.scores.table import flatten_scores

Pair = tuple[Any, Any]

_DASH, _MOST_LINES = "—", 20
_COUNTS = ("rounds", "best_round", "stopped_early", "train_seconds", "rounds_per_second")
_DATA = ("data_dir", "log.dev_rows", "tasks.")  # where settings start that choose the dev rows
_NOT_DATA = (  # settings of a task that do not
    *("weight", "dropout", "train", "class_weights", "label_smoothing"),
    *("train_rows", "label_noise"),
    *("prediction_file", "prediction_header"),
)


@dataclass(frozen=True)
class FinishedComparison:
    """Two finished runs; every pair is (a, b), None where a run has no such value.

    Attributes:
        names: of their folders.
        settings: those that differ, by dotted key.
        scores: of the best models on dev, such as ``sst/accuracy``.
        intervals: bootstrap intervals of these scores, ``(low, high)``, where there are any.
        means: each loss term's mean over the whole run.
        counts: rounds, seconds, speed.
        curves: by score, ``(rounds done, score)`` of every evaluation during training.
        losses: by loss term, ``(rounds done, mean)`` of every logged interval.
    """

    names: tuple[str, str]
    settings: dict[str, Pair]
    scores: dict[str, Pair]
    intervals: dict[str, Pair]
    means: dict[str, Pair]
    counts: dict[str, Pair]
    curves: dict[str, tuple[list, list]]
    losses: dict[str, tuple[list, list]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-serialisable values."""
        return asdict(self)

    def text(self) -> str:
        """Tables for the terminal."""
        parts = [f"a = {self.names[0]}\nb = {self.names[1]}", self._settings_table()]
        parts += [self._score_table(), self._curve_table()]
        parts += [_table("means of the loss terms", self.means), _table("runs", self.counts)]
        return "\n\n".join(part for part in parts if part)

    def _settings_table(self) -> str:
        if not self.settings:
            return "no setting differs"
        rows = [("", "a", "b")]
        rows += [(key, *(shown(_word(v), 40) for v in p)) for key, p in self.settings.items()]
        return "\n".join(["settings that differ", *_indented(rows)])

    def _score_table(self) -> str:
        rows = [("", "a", "b", "b - a", *(("95% of a", "95% of b") if self.intervals else ()))]
        for name, pair in self.scores.items():
            known = None not in pair
            change = f"{pair[1] - pair[0]:+.4f}" if known else _DASH
            spans = map(_interval, self.intervals.get(name, (None, None)))
            rows.append((name, *map(_number, pair), change, *(spans if self.intervals else ())))
        lines = ["dev scores of the best models", *_indented(rows)]
        if other := [key for key in self.settings if _chooses_rows(key)]:
            lines.append(f"  the dev rows may not be the same: {', '.join(other)} differ")
        return "\n".join(lines)

    def _curve_table(self) -> str:
        """The overall score, or that of the first task where there is none, by round."""
        name = OVERALL if any(self.curves.get(OVERALL, ())) else next(iter(self.curves), None)
        if name is None:
            return ""
        a, b = map(dict, self.curves[name])
        rounds = sorted(a.keys() | b.keys())
        step = -(-len(rounds) // _MOST_LINES)
        chosen = [done for i, done in enumerate(rounds, 1) if i % step == 0 or i == len(rounds)]
        rows = [("round", "a", "b")]
        rows += [(str(done), _number(a.get(done)), _number(b.get(done))) for done in chosen]
        return "\n".join([f"dev {name} during training", *_indented(rows)])


def compare_finished(a: Path, b: Path) -> FinishedComparison:
    """Reads two runs' folders and puts them side by side.

    Raises:
        SbrrtError: a folder is not that of a finished run, or a file of it cannot be read.
    """
    runs = [_read(folder) for folder in (a, b)]
    metrics = [run.metrics for run in runs]
    logs = [run.log for run in runs]
    return FinishedComparison(
        names=(str(a), str(b)),
        settings=_differing(*map(_settings, runs)),
        scores=_pairs(*(_scores(m["dev"]) for m in metrics)),
        intervals=_pairs(*(_intervals(m.get("intervals", {})) for m in metrics)),
        means=_pairs(*(_terms(m.get("means", {})) for m in metrics)),
        counts=_pairs(*({key: m[key] for key in _COUNTS if key in m} for m in metrics)),
        curves=_curves(logs, lambda key: key.startswith("dev/"), "dev/"),
        losses=_curves(logs, lambda key: key.endswith("/loss")),
    )


def _read(folder: Path) -> Run:
    if not is_run(folder):
        raise WeightsError(
            f"{folder}: is not the folder of a run; give the --output of `sbrrt-fast train`"
        )
    if not is_finished(folder):
        raise SbrrtError(
            f"{folder}: this run is not finished; go on with "
            f"`sbrrt-fast train --output {folder} --resume`"
        )
    return read_run(folder)


def _settings(run: Run) -> dict[str, Any]:
    leaves = config_leaves(portable(run.config))
    return {key: value for key, value in leaves.items() if key not in CALL_FIELDS}


def _scores(dev: Mapping[str, Any]) -> dict[str, float | None]:
    """By task and metric; None where a score is undefined."""
    return {name: None if math.isnan(x) else x for name, x in flatten_scores(dev).items()}


def _intervals(intervals: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    return {
        f"{task}/{metric}": bounds
        for task, by_metric in intervals.items()
        for metric, bounds in by_metric.items()
    }


def _terms(means: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in means.items() if not name.startswith("learning_rate/")}


def _curves(
    logs: Sequence[Sequence[Mapping[str, Any]]], is_meant: Callable[[str], bool], prefix: str = ""
) -> dict[str, tuple[list, list]]:
    """By name without the prefix, what each run logged under it."""
    names = dict.fromkeys(key for log in logs for line in log for key in line if is_meant(key))
    return {
        name.removeprefix(prefix): tuple(
            [(line["round"], line[name]) for line in log if line.get(name) is not None]
            for log in logs
        )
        for name in names
    }


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Those that one has otherwise, or has not; of whole tasks, only their names."""
    pairs = {name: pair for name, pair in _pairs(a, b).items() if pair[0] != pair[1]}
    tasks = [{key.split(".")[1] for key in side if key.startswith("tasks.")} for side in (a, b)]
    alone = tasks[0] ^ tasks[1]
    kept = {
        k: pair
        for k, pair in pairs.items()
        if k.split(".")[:1] != ["tasks"] or k.split(".")[1] not in alone
    }
    return ({"tasks": tuple(", ".join(sorted(names)) for names in tasks)} if alone else {}) | kept


def _chooses_rows(key: str) -> bool:
    return key.startswith(_DATA) and key.split(".", 2)[-1] not in _NOT_DATA


# Text


def _table(title: str, pairs: Mapping[str, Pair]) -> str:
    if not pairs:
        return ""
    rows = [("", "a", "b"), *((name, *map(_word, pair)) for name, pair in pairs.items())]
    return "\n".join([title, *_indented(rows)])


def _indented(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in columns(rows)]


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.4f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return _DASH if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _word(value: Any) -> str:
    if value is None:
        return _DASH
    return f"{value:.6g}" if isinstance(value, float) else str(value)
