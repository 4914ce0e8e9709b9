"""Class weights and label smoothing: the loss by its formula, and how little it touches else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.model.heads import build_head, task_loss
from tests.model.models import TASKS, random_model

SST, PARA = BUILTIN_TASKS["sst"], BUILTIN_TASKS["para"]
LABELS = torch.tensor([0.0, 4.0, 4.0, 1.0])


def by_formula(logits, labels, weights, smoothing) -> torch.Tensor:
    """Mean over examples of ``w_y * sum_c q_c * -log p_c``, in float64, a row at a time."""
    num_classes, losses = logits.shape[1], []
    for row, label in zip(logits.double(), labels.long().tolist(), strict=True):
        target = [smoothing / num_classes] * num_classes
        target[label] += 1 - smoothing
        log_p = row - row.exp().sum().log()
        losses.append(weights[label] * -sum(q * p for q, p in zip(target, log_p, strict=True)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.0, 3.0)])
def test_classes(weights, smoothing):
    task = replace(SST, class_weights=weights, label_smoothing=smoothing)
    validate_task("sst", task)
    logits = torch.randn(4, 5)
    found = task_loss(task, logits, LABELS, build_head(task, 8, "concat").class_weights)
    expected = by_formula(logits, LABELS, weights or [1.0] * 5, smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0)])
def test_binary_is_the_loss_of_two_classes(weights, smoothing):
    task = replace(PARA, class_weights=weights, label_smoothing=smoothing)
    logit, labels = torch.randn(6), torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    found = task_loss(task, logit, labels, build_head(task, 8, "concat").class_weights)
    logits = torch.stack([torch.zeros(6), logit], dim=1)
    expected = by_formula(logits, labels, weights or [1.0, 1.0], smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_them_the_loss_has_the_bits_it_had():
    logits, labels = torch.randn(4, 5), torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert torch.equal(task_loss(SST, logits, LABELS), F.cross_entropy(logits, LABELS.long()))
    plain = F.binary_cross_entropy_with_logits(logits[:, 0], labels)
    assert torch.equal(task_loss(PARA, logits[:, 0], labels), plain)


def test_weights_follow_the_model_and_are_not_saved_with_it():
    tasks = TASKS | {"sst": replace(SST, class_weights=(1.0, 2.0, 3.0, 4.0, 5.0))}
    model = random_model(tasks=tasks)
    outputs = torch.randn(4, 5)
    assert model.loss("sst", outputs, LABELS) != random_model().loss("sst", outputs, LABELS)
    assert not [name for name in model.state_dict() if "class_weights" in name]
    assert model.trained_tensors().keys() == random_model().trained_tensors().keys()
    assert model.to("meta").heads["sst"].class_weights.device.type == "meta"
