"""Probabilities from a head's outputs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.model.heads import predictions, probabilities

CLASSES, BINARY = BUILTIN_TASKS["sst"], BUILTIN_TASKS["para"]


def test_probabilities_of_classes_are_the_softmax():
    outputs = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15], [0.9, 0.1, 0.0, 0.0, 0.0]]))
    shifted = outputs + torch.tensor([[3.0], [-70.0]])
    found = probabilities(CLASSES, shifted)
    assert found.dtype == torch.float32
    assert torch.allclose(found, outputs.exp(), atol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -3.0, 0.0, 0.5, 90.0])
def test_a_binary_head_has_two_classes(logit):
    first, second = probabilities(BINARY, torch.tensor([logit]))[0].tolist()
    expected = 1 / (1 + torch.exp(torch.tensor(-logit, dtype=torch.float64)).item())
    assert second == pytest.approx(expected, rel=1e-6)
    assert first == pytest.approx(1 - expected, rel=1e-6, abs=1e-7)
    assert 0 <= first <= 1 and 0 <= second <= 1


@pytest.mark.parametrize("task", [CLASSES, BINARY])
def test_the_likeliest_class_is_the_predicted_one(task):
    outputs = torch.randn(100, *([5] if task is CLASSES else []))
    likeliest = probabilities(task, outputs).argmax(dim=1).float()
    assert torch.equal(likeliest, predictions(task, outputs))


def test_values_have_no_probabilities():
    for head in ("cosine", "regression"):
        task = dataclasses.replace(BUILTIN_TASKS["sts"], head=head)
        assert probabilities(task, torch.randn(4)) is None
