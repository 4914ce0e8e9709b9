"""Dev scores with their intervals, and runs beside one another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_io import CALL_FIELDS, portable
from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.experiments.run_report.charts import whisker_chart
from sbrrt_fast.experiments.run_report.curves import tasks_of
from sbrrt_fast.experiments.run_report.differences import (
    Interval,
    PairedDifference,
    is_computed,
    paired_difference,
    score_interval,
)
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.shapes import Chart
from sbrrt_fast.experiments.run_report.texts import decimal
from sbrrt_fast.training.scores.metrics import LOWER_IS_BETTER, UNDEFINED


def metric_text(metric: str) -> str:
    """A metric's name, with a word on those of which less is better."""
    return f"{metric} (less is better)" if metric in LOWER_IS_BETTER else metric


@dataclass(frozen=True)
class Score:
    """A run's score on one metric; ``value`` is None where it has none, with ``reason``."""

    value: float | None = None
    interval: Interval | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        return "—" if self.value is None else decimal(self.value)

    @property
    def interval_text(self) -> str:
        if self.interval is None or self.value is None:
            return ""
        return f"{decimal(self.interval[0])} to {decimal(self.interval[1])}"


@dataclass(frozen=True)
class ScoreRow:
    """A metric of a task by run.

    Attributes:
        is_main: the metric that counts in the overall score.
        spread: mean and standard deviation over runs that differ in their seed alone.
    """

    task: str
    metric: str
    is_main: bool
    scores: list[Score]
    spread: str = ""


@dataclass(frozen=True)
class DifferenceRow:
    """A run's main score on a task less the first run's; ``reason`` where there is none."""

    task: str
    metric: str
    run: RunRecord
    difference: PairedDifference | None
    reason: str = ""

    @property
    def text(self) -> str:
        return "—" if self.difference is None else decimal(self.difference.value, "+.3f")

    @property
    def interval_text(self) -> str:
        if self.difference is None or self.difference.interval is None:
            return ""
        return " to ".join(decimal(bound, "+.3f") for bound in self.difference.interval)

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return self.reason
        if self.difference.interval is None:
            return "no interval: the score is undefined on more than 5% of the draws"
        return "excludes 0" if self.difference.excludes_zero else "includes 0"


@dataclass(frozen=True)
class ScoreSection:
    """Scores of one or several runs."""

    runs: Sequence[RunRecord]

    @cached_property
    def rows(self) -> list[ScoreRow]:
        rows = [row for name in tasks_of(self.runs) for row in self._task_rows(name)]
        overall = [Score(_known(run.scores.get(OVERALL))) for run in self.runs]
        return [*rows, ScoreRow(OVERALL, "", False, overall, self._spread(overall))]

    @property
    def has_intervals(self) -> bool:
        return any(score.interval for row in self.rows for score in row.scores)

    @cached_property
    def differ_in_seed_alone(self) -> bool:
        """Whether the runs are repetitions of one recipe."""
        settings = [_settings(run) for run in self.runs]
        seeds = {run.config.seed for run in self.runs}
        return len(seeds) == len(self.runs) > 1 and all(s == settings[0] for s in settings)

    @cached_property
    def charts(self) -> list[Chart]:
        """A picture per task with the main score of every run and its interval."""
        charts = []
        for row in self.rows:
            values = [
                (run.name, run.number, score.value, score.interval)
                for run, score in zip(self.runs, row.scores, strict=True)
                if score.value is not None
            ]
            if row.is_main or row.task == OVERALL:
                title = f"{row.task}: {row.metric}" if row.metric else f"{row.task} score"
                charts.append(whisker_chart(title, values, x_title="dev score"))
        return [chart for chart in charts if chart]

    @cached_property
    def differences(self) -> list[DifferenceRow]:
        """Of every run from the first one, task by task."""
        first, *others = self.runs
        return [
            _difference(task, first, run)
            for task in first.config.tasks
            for run in others
            if task in run.config.tasks
        ]

    @property
    def runs_without_rows(self) -> list[RunRecord]:
        """Runs whose dev rows are missing for a task."""
        return [r for r in self.runs if any((name, "dev") not in r.rows for name in r.config.tasks)]

    @cached_property
    def difference_chart(self) -> Chart | None:
        values = [
            (f"{row.task}: {row.run.name}", row.run.number, d.value, d.interval)
            for row in self.differences
            if (d := row.difference)
        ]
        title = f"differences from {self.runs[0].name}"
        return whisker_chart(title, values, x_title="difference of dev scores", has_zero=True)

    def _task_rows(self, name: str) -> list[ScoreRow]:
        dev = [run.scores.get(name) or {} for run in self.runs]
        metrics = [m for m in dict.fromkeys(m for scores in dev for m in scores) if m != UNDEFINED]
        rows = []
        for number_of, metric in enumerate(metrics):
            scores = [_score(run, name, metric, number_of == 0) for run in self.runs]
            rows.append(ScoreRow(name, metric, number_of == 0, scores, self._spread(scores)))
        return rows

    def _spread(self, scores: Sequence[Score]) -> str:
        values = [score.value for score in scores]
        if not self.differ_in_seed_alone or None in values:
            return ""
        return f"{decimal(statistics.fmean(values))} ± {decimal(statistics.stdev(values))}"


def _score(run: RunRecord, task: str, metric: str, is_main: bool) -> Score:
    scores = run.scores.get(task) or {}
    value = _known(scores.get(metric))
    if value is None:
        return Score(reason=str(scores.get(UNDEFINED, "")) if metric in scores else "not scored")
    return Score(value, _interval(run, task, metric, is_main))


def _interval(run: RunRecord, task: str, metric: str, is_main: bool) -> Interval | None:
    """The run's own interval; without one that of the rows it was scored on."""
    saved = run.metrics.intervals.get(task, {}) if run.metrics else {}
    if metric in saved:
        return saved[metric]  # None where the metric has none
    rows = run.rows.get((task, "dev"))
    return score_interval(run.config.tasks[task], rows) if is_main and rows else None


def _difference(task: str, first: RunRecord, run: RunRecord) -> DifferenceRow:
    config = first.config.tasks[task]
    row = DifferenceRow(task, config.metric_name, run, None)
    if run.config.tasks[task].metric_name != config.metric_name:
        return _without(row, "the runs have different metrics")
    rows = [r.rows.get((task, "dev")) for r in (first, run)]
    for record, found in zip((first, run), rows, strict=True):
        if not found:
            return _without(row, f"no rows of {record.name}")
    if not is_computed(config):
        return _without(row, f"{config.metric_name} is not compared row by row")
    difference = paired_difference(config, *rows)
    if difference is None:
        return _without(row, "too few rows in common, or an undefined score")
    return DifferenceRow(task, config.metric_name, run, difference)


def _without(row: DifferenceRow, reason: str) -> DifferenceRow:
    return DifferenceRow(row.task, row.metric, row.run, None, reason)


def _settings(run: RunRecord) -> dict[str, Any]:
    leaves = config_leaves(portable(run.config))
    return {key: value for key, value in leaves.items() if key not in ("seed", *CALL_FIELDS)}


def _known(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None
