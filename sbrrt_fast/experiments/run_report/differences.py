"""How far two runs' scores on the same rows are apart, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.experiments.run_report.rows import EvaluatedRow
from sbrrt_fast.training.scores.metrics import METRICS

NUM_RESAMPLES = 1000
_SEED = 0
_NEEDS_PROBABILITIES = ("auc",)
Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """Another run's score less the first one's.

    Attributes:
        interval: 95%, by a paired bootstrap over rows; None where the score is undefined for
            most resamples.
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
    metric = METRICS[task.metric_name]
    classes = _class_numbers(task, [row for pair in pairs for row in pair])
    labels = _numbers([a.label for a, _ in pairs], classes)
    a, b = (_numbers([pair[i].prediction for pair in pairs], classes) for i in (0, 1))

    def difference(rows: torch.Tensor) -> float | None:
        scores = [metric(predictions[rows], labels[rows]) for predictions in (a, b)]
        return None if None in scores else scores[1] - scores[0]

    value = difference(torch.arange(len(pairs)))
    if value is None:
        return None
    return PairedDifference(value, _bootstrap(difference, len(pairs)), len(pairs))


def score_interval(task: TaskConfig, rows: Sequence[EvaluatedRow]) -> Interval | None:
    """95% of the task's main metric, by a bootstrap over rows; None where it cannot be had."""
    if len(rows) < 2 or not is_computed(task):
        return None
    metric, classes = METRICS[task.metric_name], _class_numbers(task, rows)
    labels, predictions = (
        _numbers([getattr(row, name) for row in rows], classes) for name in ("label", "prediction")
    )
    return _bootstrap(lambda rows: metric(predictions[rows], labels[rows]), len(labels))


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


def _bootstrap(score: Callable[[torch.Tensor], float | None], num_rows: int) -> Interval | None:
    """The middle 95% of the scores of resampled rows."""
    generator = np.random.default_rng(_SEED)
    values = []
    for _ in range(NUM_RESAMPLES):
        value = score(torch.from_numpy(generator.integers(0, num_rows, num_rows)))
        values += [] if value is None else [value]
    if len(values) < NUM_RESAMPLES / 2:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
