"""Scores on a dev split: accuracy, Pearson's r, and the course's overall score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

UNDEFINED = "undefined"  # beside a metric that is None: the reason
COURSE_TASKS = ("sst", "para", "sts")


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two tensors [num_examples] of class numbers."""
    _check_shapes(predictions, labels)
    return (predictions.double() == labels.double()).double().mean().item()


def pearson(predictions: Tensor, labels: Tensor) -> float | None:
    """Pearson's correlation of two tensors [num_examples], computed in float64, in [-1, 1].

    None where it is undefined; ``why_undefined`` says why.
    """
    if why_undefined(predictions, labels):
        return None
    x, y = predictions.double(), labels.double()
    x, y = x - x.mean(), y - y.mean()
    x, y = x / x.abs().max(), y / y.abs().max()  # squares neither overflow nor vanish
    return (x @ y / (x.norm() * y.norm())).clamp(-1.0, 1.0).item()


def why_undefined(predictions: Tensor, labels: Tensor) -> str | None:
    """Why two tensors [num_examples] have no correlation, or None where they have one."""
    _check_shapes(predictions, labels)
    if torch.numel(labels) == 1:
        return "there is only one row"
    for name, values in (("labels", labels), ("predictions", predictions)):
        if not values.isfinite().all():
            return f"some {name} are not finite"
        if values.min() == values.max():
            return f"all {name} are {values[0].item():g}"
    return None


METRICS: dict[str, Callable[[Tensor, Tensor], float | None]] = {
    "accuracy": accuracy,
    "pearson": pearson,
}


def overall(scores: Mapping[str, float | Mapping[str, float] | None]) -> float | None:
    """Mean of the tasks' main metrics; None where one of them is: a mean of the others misleads.

    Where ``sst``, ``para`` and ``sts`` are all there it is the mean of these three, the course's
    overall score: a further task such as ``cfimdb`` does not count.

    Args:
        scores: per task its score, or a mapping of metrics of which the first is the main one.
    """
    names = COURSE_TASKS if set(COURSE_TASKS) <= set(scores) else tuple(scores)
    assert names, "no task was scored"
    values = [main_metric(scores[name]) for name in names]
    return None if None in values else sum(values) / len(values)


def main_metric(score: float | Mapping[str, Any] | None) -> float | None:
    """A task's score from the mapping of its metrics, of which the first is the main one."""
    return next(iter(score.values())) if isinstance(score, Mapping) else score


def is_better(score: float | None, best: float | None) -> bool:
    """Whether an overall score replaces the best so far; the latest does where none is defined."""
    return best is None or (score is not None and score > best)


def _check_shapes(predictions: Tensor, labels: Tensor) -> None:
    shapes = tuple(predictions.shape), tuple(labels.shape)
    assert predictions.ndim == 1 and shapes[0] == shapes[1], f"shapes differ: {shapes}"
    assert torch.numel(labels) > 0, "no examples to score"
