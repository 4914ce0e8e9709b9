"""Metrics, as their libraries compute them, and the overall score."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sbrrt_fast.data.task import BUILTIN_TASKS, metrics_of
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training.scores.metrics import (
    METRICS,
    accuracy,
    auc,
    check_libraries,
    mcc,
    mse,
    overall,
    pearson,
    spearman,
)
from sbrrt_fast.training.scores.scored import scores_of
from tests.training.scored_tasks import TASKS, random_scored, scored


def test_accuracy_counts_equal_classes():
    predictions = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    labels = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 2.0])
    assert accuracy(predictions, labels) == 4 / 7


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_shapes_must_agree(metric):
    with pytest.raises(AssertionError, match="shapes differ"):
        METRICS[metric](torch.zeros(5, 2) if metric == "auc" else torch.zeros(5), torch.zeros(5, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "shift", "scale"), [(2, 0, 1), (863, 0, 1), (97, 1e4, 3e-2)])
def test_pearson_agrees_with_numpy(dtype, size, shift, scale):
    generator = torch.Generator().manual_seed(size)
    labels = torch.rand(size, generator=generator, dtype=dtype) * 5
    noise = torch.randn(size, generator=generator, dtype=dtype)
    predictions = (labels + noise) * scale + shift
    expected = np.corrcoef(predictions.double().numpy(), labels.double().numpy())[0, 1]
    assert pearson(predictions, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [2.5, -2.5, 1e-200, 1e200])
def test_pearson_of_a_line_is_its_sign(scale):
    labels = torch.tensor([0.0, 1.0, 4.0, 5.0, 2.2], dtype=torch.float64)
    assert pearson(labels * scale, labels) == pytest.approx(1.0 if scale > 0 else -1.0, abs=1e-12)


def test_pearson_by_hand():
    assert pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(
        0.5
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"sst": 0.3, "para": 0.6, "sts": 0.9}, 0.6),
        ({"sst": 0.3, "cfimdb": 1.0, "para": 0.6, "sts": 0.9}, 0.6),
        ({"sst": 0.3, "cfimdb": 0.9}, 0.6),
        ({"own": {"pearson": 0.4, "mse": 7.0}}, 0.4),
        ({"own": {"mse": 7.0, "pearson": 0.4}}, -7.0),  # less is better
        ({"own": {"mse": 0.5}, "sst": {"f1": 0.9}}, 0.2),
        ({"sst": {"accuracy": 0.5}, "para": {"accuracy": 0.7}, "sts": {"pearson": 0.9}}, 0.7),
    ],
)
def test_overall_is_the_mean_of_the_courses_tasks(scores, expected):
    assert overall(scores) == pytest.approx(expected)


@pytest.fixture
def libraries():
    """scikit-learn's metrics and SciPy's statistics."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    return metrics, pytest.importorskip("scipy.stats", reason="SciPy is not installed")


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_every_metric_is_that_of_its_library(kind, libraries):
    metrics, stats = libraries
    one = random_scored(kind, 200, metrics_of(TASKS[kind].head))
    labels, predictions = one.labels.numpy(), one.predictions.numpy()
    if one.config.is_regression:
        expected = {
            "pearson": stats.pearsonr(labels.astype(float), predictions.astype(float)).statistic,
            "spearman": stats.spearmanr(labels, predictions).statistic,
            "mse": metrics.mean_squared_error(labels.astype(float), predictions.astype(float)),
        }
    else:
        p = one.class_logits.softmax(dim=1).numpy()
        expected = {
            "accuracy": metrics.accuracy_score(labels, predictions),
            "f1": metrics.f1_score(labels, predictions, average="macro"),
            "mcc": metrics.matthews_corrcoef(labels, predictions),
            "auc": metrics.roc_auc_score(
                labels, p[:, 1] if p.shape[1] == 2 else p, multi_class="ovr"
            ),
        }
    found = one.scores()
    assert list(found) == list(expected)  # the main one first
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())


def test_the_main_metric_comes_first_and_once():
    task = replace(BUILTIN_TASKS["sst"], metric="mcc", metrics=("f1", "mcc", "accuracy", "f1"))
    assert task.metric_names == ("mcc", "f1", "accuracy")


@pytest.mark.parametrize(
    ("labels", "predictions"), [([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [1, 1, 1]), ([1, 1], [1, 1])]
)
def test_mcc_of_one_class_is_zero(labels, predictions, libraries):
    assert mcc(torch.tensor(predictions).float(), torch.tensor(labels).float()) == 0.0


def test_auc_tells_apart_what_probabilities_round_to_one(libraries):
    logits = torch.tensor([[0.0, 50.0], [0.0, 60.0], [0.0, 70.0], [0.0, 80.0]])
    assert auc(logits, torch.tensor([0.0, 0.0, 1.0, 1.0])) == 1.0
    assert auc(logits, torch.tensor([0.0, 1.0, 0.0, 1.0])) == 0.75


def test_an_area_without_a_class_is_undefined(libraries):
    named = replace(TASKS["classes"], labels=("a", "b", "c", "d"), metrics=("auc", "f1"))
    one = scored(named, torch.randn(6, 4), torch.tensor([0, 1, 3, 0, 1, 3]))
    scores = scores_of({"own": one})
    assert scores["own"]["auc"] is None and scores["own"]["f1"] >= 0
    assert scores["own"]["undefined"] == "no row has the label c"
    assert scores["overall"] == scores["own"]["accuracy"]  # the main one is defined
    main = replace(one, task=replace(one.task, config=replace(named, metric="auc", metrics=())))
    assert scores_of({"own": main})["overall"] is None


@pytest.mark.parametrize("metric", ["f1", "mcc", "auc", "spearman"])
def test_an_absent_library_is_one_line_where_it_is_needed(metric, monkeypatch):
    for module in ("sklearn.metrics", "scipy.stats"):
        monkeypatch.setitem(sys.modules, module, None)
    tasks = {"sst": BUILTIN_TASKS["sst"], "sts": replace(BUILTIN_TASKS["sts"], metrics=("mse",))}
    check_libraries(tasks)
    name = "sts" if metric == "spearman" else "sst"
    tasks[name] = replace(tasks[name], metrics=(metric,))
    package = "scipy" if metric == "spearman" else "scikit-learn"
    expected = rf"tasks\.{name}: metric '{metric}' needs {package}, .*`pip install {package}`"
    with pytest.raises(ConfigError, match=expected):
        check_libraries(tasks)


def test_a_metric_that_does_not_fit_the_head_is_refused():
    for field, value in (("metric", "auc"), ("metrics", ("mse", "f1"))):
        task = replace(BUILTIN_TASKS["sts"], **{field: value})
        with pytest.raises(ConfigError, match=rf"tasks\.sts\.{field}: '\w+' needs a classes or"):
            validate_task("sts", task)
    with pytest.raises(
        ConfigError, match=r"tasks\.sst\.metric: 'mse' needs a cosine or regression"
    ):
        validate_task("sst", replace(BUILTIN_TASKS["sst"], metric="mse"))


def test_ranks_and_errors_by_hand(libraries):
    x, y = torch.tensor([1.0, 2.0, 3.0, 100.0]), torch.tensor([0.0, 1.0, 5.0, 6.0])
    assert spearman(x, y) == pytest.approx(1.0) and pearson(x, y) < 0.9
    assert mse(x, y) == (1 + 1 + 4 + 94**2) / 4
