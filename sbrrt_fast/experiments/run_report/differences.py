"""How far two runs' scores on the same rows are apart, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.experiments.run_report.rows import EvaluatedRow
from sbrrt_fast.training.scores.intervals import interval, statistic_of
from sbrrt_fast.training.scores.metrics import METRICS

_NEEDS_PROBABILITIES = ("auc",)
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """Another run's score less the first one's.

    Attributes:
        interval: 95%, by a paired bootstrap over rows; None where more than 5% of the resamples
            have no value.
        num_rows: that both runs have, with the same label.
    """

    value: float
    interval: Interval | None
    num_rows: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def paired_difference(
    task: TaskConfig, first: Sequence[EvaluatedRow], other: Sequence[EvaluatedRow]
) -> PairedDifference | None:
    """The difference in the task's main metric on the rows that both runs were scored on.

    Every resample draws the same rows for both, so what makes a row hard for both cancels out.
    It covers the choice of rows, not that of the seed.

    Returns:
        None where there are fewer than two such rows, or the metric cannot be had from them.
    """
    by_id = {row.id: row for row in other}
    pairs = [(a, by_id[a.id]) for a in first if a.id in by_id and by_id[a.id].label == a.label]
    if len(pairs) < 2 or not is_computed(task):
        return None
    classes = _class_numbers(task, [row for pair in pairs for row in pair])
    labels = _numbers([a.label for a, _ in pairs], classes)
    both = [_numbers([pair[i].prediction for pair in pairs], classes) for i in (0, 1)]
    scores = [METRICS[task.metric_name](predictions, labels) for predictions in both]
    if None in scores:
        return None
    a, b = (statistic_of(task.metric_name, x.numpy(), labels.numpy()) for x in both)
    span = interval(lambda rows: b(rows) - a(rows), len(pairs), may_be_point=True)
    return PairedDifference(scores[1] - scores[0], span and tuple(span), len(pairs))


def score_interval(task: TaskConfig, rows: Sequence[EvaluatedRow]) -> Interval | None:
    """95% of the task's main metric, by a bootstrap over rows; None where it cannot be had."""
    if not is_computed(task):
        return None
    classes = _class_numbers(task, rows)
    labels, predictions = (
        _numbers([getattr(row, name) for row in rows], classes) for name in ("label", "prediction")
    )
    statistic = statistic_of(task.metric_name, predictions.numpy(), labels.numpy())
    span = interval(statistic, len(rows))
    return span and tuple(span)


def is_computed(task: TaskConfig) -> bool:
    """Whether the metric needs labels and predictions alone."""
    return task.metric_name in METRICS and task.metric_name not in _NEEDS_PROBABILITIES


def _class_numbers(task: TaskConfig, rows: Sequence[EvaluatedRow]) -> Mapping | None:
    """A number for every class; None where labels are values."""
    return None if task.is_regression else {c: i for i, c in enumerate(class_order(task, rows))}


def class_order(task: TaskConfig, rows: Sequence[EvaluatedRow]) -> list:
    """The classes of a task in its order, with those that only the rows tell at the end."""
    names = list(getattr(task, "labels", ()))
    if not names and task.num_classes:
        names = list(range(task.num_classes))
    elif not names and task.head == "binary":
        names = [0, 1]
    seen = {value for row in rows for value in (row.label, row.prediction)}
    if not seen <= set(names) and not getattr(task, "labels", ()):
        names = [] if any(isinstance(value, str) for value in seen) else names
    return names + sorted(seen - set(names), key=lambda v: (isinstance(v, str), v))


def _numbers(values: Sequence, numbers: Mapping | None) -> torch.Tensor:
    """float64 [num_rows]."""
    numbered = values if numbers is None else [numbers[value] for value in values]
    return torch.tensor([float(value) for value in numbered], dtype=torch.float64)
