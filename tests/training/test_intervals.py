"""Bootstrap intervals: statistics as the libraries have them, and intervals as SciPy's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sbrrt_fast.data.task import metrics_of
from sbrrt_fast.training.scores import intervals
from sbrrt_fast.training.scores.intervals import interval, intervals_of
from sbrrt_fast.training.scores.metrics import METRICS
from tests.training.scored_tasks import TASKS, random_scored, scored

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
scipy_stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")

CASES = [(kind, metric) for kind, task in TASKS.items() for metric in metrics_of(task.head)]


def by_library(metric, one, rows: np.ndarray) -> float:
    """The metric of some rows; NaN where there is none."""
    value = METRICS[metric](one.values(metric)[rows], one.labels[rows])
    return math.nan if value is None else value


@pytest.mark.parametrize("num_rows", [2, 5, 60])
@pytest.mark.parametrize(("kind", "metric"), CASES)
def test_a_statistic_is_the_metric_of_each_resample(kind, metric, num_rows):
    one = random_scored(kind, num_rows)
    rows = np.random.default_rng(1).integers(num_rows, size=(40, num_rows))
    rows[0] = np.arange(num_rows)
    found = intervals._statistic(metric, one)(rows)
    expected = [by_library(metric, one, row) for row in rows]
    assert np.allclose(found, expected, rtol=0, atol=1e-12, equal_nan=True)
    assert num_rows < 60 or np.isfinite(found).all()


@pytest.mark.parametrize("metric", ["f1", "mcc"])
def test_classes_without_a_row_do_not_count(metric):
    labels = torch.tensor([0, 0, 2, 2, 2, 0])
    outputs = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 2, 0, 0]), 4).float()
    one = scored(TASKS["classes"], outputs, labels)
    rows = np.array([range(6), [0] * 6, [0, 1, 2, 3, 4, 0]])
    found = intervals._statistic(metric, one)(rows)
    assert np.allclose(found, [by_library(metric, one, row) for row in rows], atol=1e-12)


@pytest.mark.parametrize(("kind", "metric"), [("classes", "accuracy"), ("classes", "f1")])
@pytest.mark.parametrize("kind_of_rows", ["many", "few"])
def test_intervals_do_not_depend_on_what_is_held_at_once(kind, metric, kind_of_rows, monkeypatch):
    one = random_scored(kind, {"many": 50, "few": 3}[kind_of_rows], (metric,))
    whole = intervals_of({"task": one})
    monkeypatch.setattr(intervals, "_VALUES_AT_ONCE", 7 * 50)
    assert intervals_of({"task": one}) == whole


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("classes", "accuracy"), ("binary", "auc"), ("cosine", "pearson"), ("cosine", "mse")],
)
def test_intervals_are_scipy_s_percentiles(kind, metric):
    one = random_scored(kind, 150, (metric,))
    theirs = scipy_stats.bootstrap(
        (np.arange(150),),
        lambda rows: by_library(metric, one, rows),
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    low, high = intervals_of({"task": one})["task"][metric]
    # The standard error of such a percentile is about 2.7 / sqrt(n) standard deviations of the
    # metric: 0.10 with 1,000 resamples and the two ends of one with 2,000.
    tolerance = 4 * 0.10 * theirs.standard_error
    assert low == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=tolerance)
    assert low < by_library(metric, one, np.arange(150)) < high


def test_intervals_hold_the_true_score_as_often_as_they_say():
    generator = np.random.default_rng(0)
    num_held = 0
    for _ in range(200):
        is_right = (generator.random(200) < 0.7).astype(float)
        low, high = interval(intervals._mean_of(is_right), 200)
        num_held += low <= 0.7 <= high
    assert 0.90 <= num_held / 200 <= 0.99  # 0.95, give or take 3.2 standard errors


def test_an_area_of_many_classes_has_no_interval():
    config = replace(TASKS["classes"], num_classes=21, metrics=("auc",))
    labels = torch.arange(21 * 10) % 21
    one = scored(config, torch.randn(210, 21), labels)
    assert one.scores()["auc"] > 0
    found = intervals_of({"task": one})["task"]
    assert found["auc"] is None and len(found["accuracy"]) == 2


def test_some_scores_have_no_interval():
    one = scored(TASKS["binary"], torch.randn(30), (torch.arange(30) == 0).long())
    assert intervals._statistic("auc", one)(np.arange(30)[None])[0] >= 0
    assert interval(intervals._statistic("auc", one), 30) is None  # a class has one row
    assert interval(intervals._statistic("accuracy", one), 30) is not None
    assert interval(intervals._mean_of(np.ones(1)), 1) is None
    assert interval(intervals._mean_of(np.ones(50)), 50) is None  # no row is wrong
    assert interval(intervals._mean_of(np.arange(2.0)), 2) == [0.0, 1.0]
