"""Bootstrap confidence intervals of metrics: rows are drawn anew, and all draws scored at once.

Of 1,000 resamples of the split's rows, with replacement, an interval holds the middle 95% of the
metric's values (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). It
says how much a score depends on which rows happen to be in the split; not how much it would differ
for another seed. Draws are seeded, so the same rows and predictions have the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from sbrrt_fast.data.task import Metric
from sbrrt_fast.training.scores.metrics import log_odds
from sbrrt_fast.training.scores.scored import ScoredTask

NUM_RESAMPLES, LEVEL = 1000, 0.95
_SEED = 0
_VALUES_AT_ONCE = 1 << 20  # bounds memory
_LEAST_DEFINED = 0.95  # share of resamples in which a metric must exist
_MOST_AREAS = 20  # classes; each has an area of its own to resample

# Row numbers [num_resamples, num_rows] to the metric's values [num_resamples], float64, NaN where
# it does not exist.
Statistic = Callable[[np.ndarray], np.ndarray]


def intervals_of(scored: Mapping[str, ScoredTask]) -> dict[str, dict[str, list[float] | None]]:
    """``{"sst": {"accuracy": [low, high], …}, …}`` of the tasks' metrics; see ``interval``.

    None also for ``auc`` of more than 20 classes, which would take long.
    """
    return {
        name: {metric: _interval_of(metric, one) for metric in one.config.metric_names}
        for name, one in scored.items()
    }


def _interval_of(metric: Metric, scored: ScoredTask) -> list[float] | None:
    if metric == "auc" and scored.config.num_labels > _MOST_AREAS:
        return None
    return interval(_statistic(metric, scored), scored.num_examples)


def _statistic(metric: Metric, scored: ScoredTask) -> Statistic:
    if metric == "auc":
        return _auc(scored)
    return statistic_of(metric, scored.predictions.numpy(), scored.labels.numpy())


def statistic_of(metric: Metric, predictions: np.ndarray, labels: np.ndarray) -> Statistic:
    """A metric of predictions and labels [num_rows], numbers of classes or values; not ``auc``."""
    return _STATISTICS[metric](np.float64(predictions), np.float64(labels))


def interval(
    statistic: Statistic, num_rows: int, *, may_be_point: bool = False
) -> list[float] | None:
    """[low, high] of a metric.

    Args:
        may_be_point: give ``[x, x]`` where all resamples have the same value, as the difference of
            equal predictions has.

    Returns:
        None for fewer than two rows, where more than 5% of the resamples have no value, as when a
        class has one row, and, unless it may be a point, where all have the same, as when no row
        is wrong.
    """
    if num_rows < 2:
        return None
    values = np.concatenate([statistic(rows) for rows in _resamples(num_rows)])
    defined = values[np.isfinite(values)]
    if len(defined) < _LEAST_DEFINED * NUM_RESAMPLES:
        return None
    if np.ptp(defined) == 0 and not may_be_point:
        return None
    return np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def _resamples(num_rows: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _VALUES_AT_ONCE // num_rows)
    for first in range(0, NUM_RESAMPLES, at_once):
        count = min(at_once, NUM_RESAMPLES - first)
        yield generator.integers(num_rows, size=(count, num_rows))


def _mean_of(values: np.ndarray) -> Statistic:
    return lambda rows: values[rows].mean(axis=1)


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> Statistic:
    return _mean_of(predictions == labels)


def _mse(predictions: np.ndarray, labels: np.ndarray) -> Statistic:
    return _mean_of((predictions - labels) ** 2)


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> Statistic:
    return lambda rows: _correlation(predictions[rows], labels[rows])


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> Statistic:
    x, y = (np.unique(values, return_inverse=True)[1] for values in (predictions, labels))
    return lambda rows: _correlation(_mean_ranks(x[rows]), _mean_ranks(y[rows]))


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of each row of two arrays, NaN where one of them is constant."""
    is_defined = (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0)
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    norms = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    norms[~is_defined | (norms == 0)] = np.nan
    return (x * y).sum(axis=1) / norms


def _mean_ranks(places: np.ndarray) -> np.ndarray:
    """Ranks within each row, from 1; equal values share the mean of theirs.

    Args:
        places: int64 [num_resamples, num_rows], the values' places among all distinct ones.
    """
    counts = _counts(places, places.max() + 1)
    ranks = counts.cumsum(axis=1) - (counts - 1) / 2
    return np.take_along_axis(ranks, places, axis=1)


def _counts(numbers: np.ndarray, size: int) -> np.ndarray:
    """How often each number below ``size`` is in each row, int64 [num_resamples, size].

    A number that is ``size`` or above is not counted.
    """
    width = size + 1
    offsets = np.arange(len(numbers))[:, None] * width
    flat = (np.minimum(numbers, size) + offsets).ravel()
    return np.bincount(flat, minlength=len(numbers) * width).reshape(-1, width)[:, :size]


def _auc(scored: ScoredTask) -> Statistic:
    """The Mann-Whitney form: the mean of each class against the rest, of two classes one."""
    logits, labels = scored.class_logits, scored.labels.numpy()
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    areas = [_area(log_odds(logits, c).numpy(), labels == c) for c in classes]
    return lambda rows: sum(area(rows) for area in areas) / len(areas)


def _area(values: np.ndarray, is_class: np.ndarray) -> Statistic:
    places = np.unique(values, return_inverse=True)[1]

    def area(rows: np.ndarray) -> np.ndarray:
        is_in = is_class[rows]
        num_in = is_in.sum(axis=1)
        pairs = (num_in * (rows.shape[1] - num_in)).astype(np.float64)
        pairs[pairs == 0] = np.nan
        rank_sum = (_mean_ranks(places[rows]) * is_in).sum(axis=1)
        return (rank_sum - num_in * (num_in + 1) / 2) / pairs

    return area


def _of_classes(formula: Callable[..., np.ndarray]) -> Callable[..., Statistic]:
    """A statistic of the counts of right rows, labels and predictions by class.

    Args:
        formula: of three int64 [num_resamples, num_classes].
    """

    def build(predictions: np.ndarray, labels: np.ndarray) -> Statistic:
        both = np.unique(np.stack([predictions, labels]), return_inverse=True)
        predictions, labels = both[1].reshape(2, -1)
        size = len(both[0])
        right = np.where(predictions == labels, labels, size)
        columns = (right, labels, predictions)
        return lambda rows: formula(*(_counts(column[rows], size) for column in columns))

    return build


def _macro_f1(right: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    counts = labels + predictions
    scores = 2 * right / np.maximum(counts, 1)
    return scores.sum(axis=1) / (counts > 0).sum(axis=1)


def _mcc(right: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Gorodkin's R_K (doi:10.1016/j.compbiolchem.2004.09.006), 0 where a side is constant."""
    num_rows = labels.sum(axis=1)

    covariance = right.sum(axis=1) * num_rows - (labels * predictions).sum(axis=1)
    variances = [num_rows**2 - (counts**2).sum(axis=1) for counts in (labels, predictions)]
    norms = np.sqrt(variances[0]) * np.sqrt(variances[1])
    return covariance / np.where(norms > 0, norms, np.inf)


_STATISTICS: dict[Metric, Callable[[np.ndarray, np.ndarray], Statistic]] = {
    "accuracy": _accuracy,
    "f1": _of_classes(_macro_f1),
    "mcc": _of_classes(_mcc),
    "pearson": _pearson,
    "spearman": _spearman,
    "mse": _mse,
}
