"""What a model got wrong on a split of one task."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.experiments.run_report.charts import histogram_chart, scatter_chart
from sbrrt_fast.experiments.run_report.curves import tasks_of
from sbrrt_fast.experiments.run_report.differences import class_order
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.rows import EvaluatedRow
from sbrrt_fast.experiments.run_report.shapes import Chart
from sbrrt_fast.experiments.run_report.texts import decimal, percent
from sbrrt_fast.messages import printable

NUM_EXAMPLES = 10
MOST_CLASSES = 12  # of a matrix; of more classes only the most frequent confusions are shown
_LONGEST_TEXT = 600


@dataclass(frozen=True)
class MatrixRow:
    """A label's rows by prediction: (number, share of the label's rows) each."""

    label: str
    cells: list[tuple[int, float]]
    num_rows: int
    recall: float | None


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of label and prediction; ``precision`` by prediction, None where it is undefined."""

    classes: list[str]
    rows: list[MatrixRow]
    precision: list[float | None]


@dataclass(frozen=True)
class Confusion:
    """A label, the other class that was predicted, and how often."""

    label: str
    prediction: str
    count: int


@dataclass(frozen=True)
class LengthRow:
    """Rows of similar length, and how well the model does on them."""

    low: int
    high: int
    num_rows: int
    value: float


@dataclass(frozen=True)
class WrongExample:
    """A row with a high loss, ready to be shown."""

    id: str
    texts: list[str]
    label: str
    prediction: str
    probability: str
    loss: str


@dataclass(frozen=True)
class TaskResult:
    """A run's rows of a split of a task.

    Attributes:
        matrix: where labels are a few classes; ``confusions`` where they are many.
        scatter: where labels are values.
        length_measure: what ``lengths`` have as their value.
    """

    run: RunRecord
    split: str
    num_rows: int
    num_wrong: int | None
    matrix: ConfusionMatrix | None
    confusions: list[Confusion]
    scatter: Chart | None
    histogram: Chart
    lengths: list[LengthRow]
    length_measure: str
    examples: list[WrongExample]


@dataclass(frozen=True)
class TaskSection:
    """All runs' results of a task, and the runs that have none."""

    name: str
    results: list[TaskResult]
    missing: list[RunRecord]


def task_sections(runs: Sequence[RunRecord]) -> list[TaskSection]:
    """A section per task. DataError if a file of rows cannot be read."""
    return [_section(name, runs) for name in tasks_of(runs)]


def _section(name: str, runs: Sequence[RunRecord]) -> TaskSection:
    having = [run for run in runs if name in run.config.tasks]
    results = [result for run in having for result in _results(run, name)]
    return TaskSection(
        name, results, [r for r in having if not any(task == name for task, _ in r.rows)]
    )


def _results(run: RunRecord, name: str) -> Iterator[TaskResult]:
    for (task, split), rows in run.rows.items():
        if task == name and rows:
            yield _result(run, run.config.tasks[name], split, rows)


def _result(
    run: RunRecord, task: TaskConfig, split: str, rows: Sequence[EvaluatedRow]
) -> TaskResult:
    is_wrong = None if task.is_regression else np.array([row.is_wrong for row in rows])
    num_tokens = np.array([row.num_tokens for row in rows])
    classes = [] if task.is_regression else class_order(task, rows)
    is_small = len(classes) <= MOST_CLASSES
    return TaskResult(
        run,
        split,
        len(rows),
        None if is_wrong is None else int(is_wrong.sum()),
        confusion_matrix(rows, classes) if classes and is_small else None,
        [] if is_small else confusions(rows),
        _scatter(rows, run.number) if task.is_regression else None,
        histogram_chart("lengths", num_tokens, is_wrong, "tokens"),
        by_length(rows, num_tokens, is_wrong),
        "root mean squared error" if is_wrong is None else "accuracy",
        most_wrong(rows, task.is_regression),
    )


def confusion_matrix(rows: Sequence[EvaluatedRow], classes: Sequence) -> ConfusionMatrix:
    """Labels down, predictions across, both in the order of ``classes``."""
    counts = Counter((row.label, row.prediction) for row in rows)
    table = np.array([[counts[label, p] for p in classes] for label in classes])
    labelled, predicted = table.sum(axis=1), table.sum(axis=0)
    matrix_rows = [
        MatrixRow(
            printable(label),
            [(int(n), float(n) / max(int(labelled[i]), 1)) for n in table[i]],
            int(labelled[i]),
            _share(table[i, i], labelled[i]),
        )
        for i, label in enumerate(classes)
    ]
    precision = [_share(table[i, i], predicted[i]) for i in range(len(classes))]
    return ConfusionMatrix([printable(c) for c in classes], matrix_rows, precision)


def _share(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


def confusions(rows: Sequence[EvaluatedRow], most: int = 20) -> list[Confusion]:
    """The most frequent pairs of a label and another prediction."""
    counts = Counter((row.label, row.prediction) for row in rows if row.is_wrong)
    return [Confusion(printable(a), printable(b), n) for (a, b), n in counts.most_common(most)]


def _scatter(rows: Sequence[EvaluatedRow], color: int) -> Chart:
    labels = np.array([float(row.label) for row in rows])
    predictions = np.array([float(row.prediction) for row in rows])
    return scatter_chart("prediction and label", labels, predictions, color)


def by_length(
    rows: Sequence[EvaluatedRow], num_tokens: np.ndarray, is_wrong: np.ndarray | None
) -> list[LengthRow]:
    """Accuracy, or the root mean squared error, in (up to) four groups of equally many rows."""
    edges = np.unique(np.percentile(num_tokens, [0, 25, 50, 75, 100]).astype(int))
    groups = np.searchsorted(edges[1:-1], num_tokens, side="left")
    result = []
    for group in np.unique(groups):
        here = np.flatnonzero(groups == group)
        if is_wrong is None:
            errors = [float(rows[i].label) - float(rows[i].prediction) for i in here]
            value = math.sqrt(float(np.mean(np.square(errors))))
        else:
            value = 1.0 - float(is_wrong[here].mean())
        tokens = num_tokens[here]
        result.append(LengthRow(int(tokens.min()), int(tokens.max()), len(here), value))
    return result


def most_wrong(
    rows: Sequence[EvaluatedRow], is_regression: bool, most: int = NUM_EXAMPLES
) -> list[WrongExample]:
    """Wrong rows of the highest loss; where labels are values, any rows."""
    wrong = [row for row in rows if (is_regression or row.is_wrong) and math.isfinite(row.loss)]
    return [_example(row) for row in heapq.nlargest(most, wrong, key=lambda row: row.loss)]


def _example(row: EvaluatedRow) -> WrongExample:
    return WrongExample(
        printable(row.id),
        [_cut(text) for text in row.texts],
        _shown_value(row.label),
        _shown_value(row.prediction),
        "" if row.probability is None else percent(row.probability),
        decimal(row.loss, ".2f"),
    )


def _shown_value(value: object) -> str:
    return decimal(value, ".4g") if isinstance(value, float) else printable(value)


def _cut(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip() + " …"
