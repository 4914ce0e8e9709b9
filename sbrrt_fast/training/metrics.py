"""Scores on a dev split: accuracy, Pearson's r, and the course's overall score."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

COURSE_TASKS = ("sst", "para", "sts")


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two tensors [num_examples] of class numbers."""
    _check_shapes(predictions, labels)
    return (predictions.double() == labels.double()).double().mean().item()


def pearson(predictions: Tensor, labels: Tensor) -> float:
    """Pearson's correlation of two tensors [num_examples], computed in float64, in [-1, 1].

    Where one of them is constant the correlation is undefined; such predictions explain nothing,
    so the score is 0.0.
    """
    _check_shapes(predictions, labels)
    x, y = predictions.double(), labels.double()
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / x.abs().max(), y / y.abs().max()  # squares neither overflow nor vanish
    return (x @ y / (x.norm() * y.norm())).clamp(-1.0, 1.0).item()


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"accuracy": accuracy, "pearson": pearson}


def overall(scores: Mapping[str, float | Mapping[str, float]]) -> float:
    """Mean of the tasks' main metrics.

    Where ``sst``, ``para`` and ``sts`` are all there it is the mean of these three, the course's
    overall score: a further task such as ``cfimdb`` does not count.

    Args:
        scores: per task its score, or a mapping of metrics of which the first is the main one.
    """
    names = COURSE_TASKS if set(COURSE_TASKS) <= set(scores) else tuple(scores)
    assert names, "no task was scored"
    return sum(_main_metric(scores[name]) for name in names) / len(names)


def _main_metric(score: float | Mapping[str, float]) -> float:
    return next(iter(score.values())) if isinstance(score, Mapping) else score


def _check_shapes(predictions: Tensor, labels: Tensor) -> None:
    shapes = tuple(predictions.shape), tuple(labels.shape)
    assert predictions.ndim == 1 and shapes[0] == shapes[1], f"shapes differ: {shapes}"
    assert torch.numel(labels) > 0, "no examples to score"
