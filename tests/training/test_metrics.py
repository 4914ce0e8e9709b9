"""Accuracy, Pearson's r and the overall score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sbrrt_fast.training.scores.metrics import METRICS, accuracy, overall, pearson


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
        ({"sst": {"accuracy": 0.5}, "para": {"accuracy": 0.7}, "sts": {"pearson": 0.9}}, 0.7),
    ],
)
def test_overall_is_the_mean_of_the_courses_tasks(scores, expected):
    assert overall(scores) == pytest.approx(expected)
