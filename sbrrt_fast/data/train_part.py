"""Less training data and noisy labels: which training rows a run takes, and what it takes for true.

Both are drawn once, by ``split_seed`` and the task's name, so all seeds of a run and all processes
of one see the same rows. Draws belong to rows: the first 100 rows drawn are among the first 1,000,
and the rows that get another label at a share of 0.1 are among those at 0.2.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sbrrt_fast.data.reader import ReadReport
from sbrrt_fast.data.task import Example, TaskConfig


@dataclass(frozen=True)
class TrainPart:
    """The training rows that are taken, with the labels that they are taken with.

    Attributes:
        labels: float64 [num_all], in the order of the rows, NaN for a row that is left out.
        num_noisy: labels that were replaced.
        note: a line that says so.
    """

    labels: np.ndarray
    num_noisy: int
    note: str

    @classmethod
    def draw(cls, name: str, task: TaskConfig, labels: Sequence[float]) -> TrainPart:
        """The part that a task's ``train_rows`` and ``label_noise`` ask for.

        Args:
            name: of the task. labels: of all its training rows, in their order.
        """
        true = np.asarray(labels, dtype=np.float64)
        rows = _chosen(name, task, true)
        noisy = _noisy(name, task, len(true), rows)
        taken = np.full(len(true), np.nan)
        taken[rows] = true[rows]
        taken[noisy] = _other_labels(name, task, true, noisy)
        note = _note(name, task, (len(true), len(rows), len(noisy)))
        return cls(taken, len(noisy), note)

    def of(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Those that are taken, of all examples in their order."""
        for example, label in zip(examples, self.labels.tolist(), strict=True):
            if label == example.label:
                yield example
            elif label == label:  # not NaN
                yield replace(example, label=label)

    def report(self, report: ReadReport) -> ReadReport:
        """That of the rows that are taken, of that of all."""
        num_rows = int(np.isfinite(self.labels).sum())
        return replace(report, num_rows=num_rows, num_noisy=self.num_noisy, note=self.note)


def _chosen(name: str, task: TaskConfig, labels: np.ndarray) -> np.ndarray:
    """int64, rising: ``train_rows`` of the rows.

    The rows of a class are spread evenly over the order that is drawn, so that each class has its
    share in the first ones, whatever their number.
    """
    draws = _draws("train_rows", name, task, len(labels))
    places = draws.copy()
    for label in () if task.is_regression else np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        order = of_class[np.argsort(draws[of_class], kind="stable")]
        places[order] = (np.arange(len(order)) + 0.5) / len(order)
    return np.sort(np.lexsort((draws, places))[: task.train_rows])


def _noisy(name: str, task: TaskConfig, num_all: int, rows: np.ndarray) -> np.ndarray:
    """Which of the rows get another label, in the order drawn."""
    draws = _draws("noisy rows", name, task, num_all)[rows]
    count = round(task.label_noise * len(rows))
    if task.is_regression and count == 1:
        count = 0  # there is none to change places with
    return rows[np.argsort(draws, kind="stable")[:count]]


def _other_labels(name: str, task: TaskConfig, labels: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """float64 [num_noisy]: another class for each row, or the value of the next one of them."""
    if task.is_regression:
        return labels[np.roll(noisy, -1)]
    num_others = task.num_labels - 1
    draws = _draws("noisy labels", name, task, len(labels))[noisy]
    steps = 1 + np.minimum(np.floor(draws * num_others), num_others - 1)
    return (labels[noisy] + steps) % task.num_labels


def _draws(purpose: str, name: str, task: TaskConfig, num_rows: int) -> np.ndarray:
    """float64 [num_rows], uniform in [0, 1)."""
    # Python keeps what random() gives from version to version.
    draw = random.Random(f"{purpose}/{task.split_seed}/{name}").random
    return np.fromiter((draw() for _ in range(num_rows)), np.float64, num_rows)


def _note(name: str, task: TaskConfig, counts: tuple[int, int, int]) -> str:
    num_all, num_rows, num_noisy = counts
    parts = []
    if task.train_rows is not None and num_rows < num_all:
        parts.append(f"{num_rows:,} of {num_all:,} rows (train_rows)")
    elif task.train_rows is not None:
        parts.append(f"all {num_all:,} rows (train_rows is {task.train_rows:,})")
    if task.label_noise:
        noise = f"(label_noise {task.label_noise:g})"
        parts.append(f"{num_noisy:,} of {num_rows:,} labels replaced {noise}")
    return f"{name} train: {', '.join(parts)}"
