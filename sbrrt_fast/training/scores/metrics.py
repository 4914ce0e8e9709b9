"""Metrics of a split by torch, scikit-learn and SciPy, and the overall score.

Accuracy, Pearson's r and the mean squared error need torch alone, so that a machine without the
other two trains and scores the tasks that ask for no more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.data.task import OVERALL, Metric, TaskConfig
from sbrrt_fast.errors import ConfigError

UNDEFINED = "undefined"  # beside a metric that is None: the reason
COURSE_TASKS = ("sst", "para", "sts")
LOWER_IS_BETTER = ("mse",)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two tensors [num_examples] of class numbers."""
    _check_shapes(predictions, labels)
    return (predictions.double() == labels.double()).double().mean().item()


def macro_f1(predictions: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the harmonic mean of precision and recall.

    Classes that are neither among the labels nor among the predictions do not count.

    Args:
        predictions, labels: class numbers [num_examples].
    """
    _check_shapes(predictions, labels)
    y, predicted = labels.long().numpy(), predictions.long().numpy()
    return float(library("f1").f1_score(y, predicted, average="macro", zero_division=0.0))


def mcc(predictions: Tensor, labels: Tensor) -> float:
    """Matthews' correlation of class numbers [num_examples], in [-1, 1].

    It is 0 where all labels or all predictions are the same class.
    """
    _check_shapes(predictions, labels)
    matthews_corrcoef = library("mcc").matthews_corrcoef
    if any(bool((x == x[0]).all()) for x in (predictions, labels)):
        return 0.0
    y, predicted = labels.long().numpy(), predictions.long().numpy()
    return float(matthews_corrcoef(y, predicted))


def auc(logits: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve; with more than two classes the mean of each against the rest.

    None where a class has no row; ``why_no_auc`` says which.

    Args:
        logits: [num_examples, num_classes].
        labels: class numbers [num_examples].
    """
    _check_shapes(logits[..., 0], labels)
    num_classes = logits.shape[1]
    if why_no_auc(labels, range(num_classes)):
        return None
    roc_auc_score = library("auc").roc_auc_score
    classes = [1] if num_classes == 2 else range(num_classes)
    y = labels.long().numpy()
    areas = [roc_auc_score(y == c, log_odds(logits, c).numpy()) for c in classes]
    return float(sum(areas) / len(areas))


def log_odds(logits: Tensor, class_number: int) -> Tensor:
    """log(p / (1 - p)) of a class, float64 [num_examples]: no tie where p rounds to 0 or 1."""
    is_other = torch.arange(logits.shape[1]) != class_number
    logits = logits.double()
    return logits[:, class_number] - logits[:, is_other].logsumexp(dim=1)


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


def spearman(predictions: Tensor, labels: Tensor) -> float | None:
    """Spearman's rank correlation of two tensors [num_examples], in [-1, 1].

    None where it is undefined; ``why_undefined`` says why.
    """
    if why_undefined(predictions, labels):
        return None
    return float(library("spearman").spearmanr(predictions.numpy(), labels.numpy()).statistic)


def mse(predictions: Tensor, labels: Tensor) -> float:
    """Mean squared error of two tensors [num_examples], in the labels' unit squared."""
    _check_shapes(predictions, labels)
    return (predictions.double() - labels.double()).square().mean().item()


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


def why_no_auc(labels: Tensor, names: Sequence[str | int]) -> str | None:
    """Which class is no row's label, or None where the area is defined.

    Args:
        labels: class numbers [num_examples].
        names: of the classes.
    """
    counts = torch.bincount(labels.long(), minlength=len(names)).tolist()
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    return f"no row has the label {missing[0]}" if missing else None


# Each takes predictions, ``auc`` logits, and labels.
METRICS: dict[Metric, Callable[[Tensor, Tensor], float | None]] = {
    "accuracy": accuracy,
    "f1": macro_f1,
    "mcc": mcc,
    "auc": auc,
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
}
_SKLEARN = ("sklearn.metrics", "scikit-learn")
_LIBRARIES = {
    "f1": _SKLEARN,
    "mcc": _SKLEARN,
    "auc": _SKLEARN,
    "spearman": ("scipy.stats", "scipy"),
}


def library(metric: str) -> ModuleType | None:
    """The module that a metric is computed by, slow to import; None where torch is enough.

    Raises:
        ConfigError: it is not installed or cannot be imported.
    """
    if metric not in _LIBRARIES:
        return None
    module, package = _LIBRARIES[metric]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"metric '{metric}' needs {package}, which cannot be imported ({error}); "
            f"`pip install {package}`, or leave the metric out"
        ) from None


def check_libraries(tasks: Mapping[str, TaskConfig]) -> None:
    """Raises ConfigError naming the first task whose metric cannot be computed here."""
    for name, task in tasks.items():
        for metric in task.metric_names:
            try:
                library(metric)
            except ConfigError as error:
                raise ConfigError(f"tasks.{name}: {error}") from None


def overall(scores: Mapping[str, float | Mapping[str, float] | None]) -> float | None:
    """Mean of the tasks' main metrics; None where one of them is: a mean of the others misleads.

    Where ``sst``, ``para`` and ``sts`` are all there it is the mean of these three, the course's
    overall score: a further task such as ``cfimdb`` does not count. A main metric of which less is
    better counts with a minus sign.

    Args:
        scores: per task its score, or a mapping of metrics of which the first is the main one.
    """
    names = COURSE_TASKS if set(COURSE_TASKS) <= set(scores) else tuple(scores)
    assert names, "no task was scored"
    values = [_as_gain(scores[name]) for name in names]
    return None if None in values else sum(values) / len(values)


def chosen_by(scores: Mapping[str, Any], tasks: Mapping[str, TaskConfig]) -> float | None:
    """The score by which a run's models are chosen: ``overall`` of the tasks that it trains.

    Args:
        scores: of all ``tasks``, with ``overall``, or that alone where the model was not scored.
    """
    trained = {name: scores[name] for name, task in tasks.items() if task.train and name in scores}
    return overall(trained) if 0 < len(trained) < len(tasks) else scores[OVERALL]


def main_metric(score: float | Mapping[str, Any] | None) -> float | None:
    """A task's score from the mapping of its metrics, of which the first is the main one."""
    return next(iter(score.values())) if isinstance(score, Mapping) else score


def is_better(score: float | None, best: float | None) -> bool:
    """Whether an overall score replaces the best so far; the latest does where none is defined."""
    return best is None or (score is not None and score > best)


def _as_gain(score: float | Mapping[str, Any] | None) -> float | None:
    """A task's score with the sign by which more is better."""
    value = main_metric(score)
    is_cost = isinstance(score, Mapping) and next(iter(score)) in LOWER_IS_BETTER
    return -value if is_cost and value is not None else value


def _check_shapes(predictions: Tensor, labels: Tensor) -> None:
    shapes = tuple(predictions.shape), tuple(labels.shape)
    assert predictions.ndim == 1 and shapes[0] == shapes[1], f"shapes differ: {shapes}"
    assert torch.numel(labels) > 0, "no examples to score"
