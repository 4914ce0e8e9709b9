"""``ops.objective`` in plain PyTorch, without autograd; float32 or float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops.objective_table import LossSpec, Objective, ObjectiveTable
from sbrrt_fast.ops.symmetric_kl import (
    bernoulli_logits,
    log_ratio_and_change,
    symmetric_kl_fisher_reference,
    symmetric_kl_reference,
)


class _Change(NamedTuple):
    """Mean l_s(z, w) over a task's examples, and its gradients [num_examples, num_outputs]."""

    value: Tensor
    grad_z: Tensor
    grad_w: Tensor


def objective_reference(
    table: ObjectiveTable,
    outputs: Tensor,
    labels: Tensor,
    adversarial: Tensor | None = None,
    targets: Tensor | None = None,
    smart_factor: float = 1.0,
    smart_values: Tensor | None = None,
) -> Objective:
    """See ``objective.objective``."""
    terms, grads, adversarial_grads = outputs.new_zeros(len(table.specs), 4), [], []
    parts, labels = table.split(outputs), labels.split([s.num_examples for s in table.specs])
    for i, (spec, w) in enumerate(zip(table.specs, parts, strict=True)):
        terms[i, 0], grad = _loss(spec, w, labels[i])
        if adversarial is not None:
            smart = _mean_change(spec, table.split(adversarial)[i], w)
            value = smart_factor * smart.value
            terms[i, 1] = value if smart_values is None else smart_values[i]
            factor = table.smart_weight * smart_factor
            grad = grad + factor * smart.grad_w
            adversarial_grads.append((spec.weight * factor * smart.grad_z).flatten())
        if targets is not None:
            bregman = _mean_change(spec, w, table.split(targets)[i])
            terms[i, 2] = bregman.value
            grad = grad + table.bregman_weight * bregman.grad_z
        grads.append((spec.weight * grad).flatten())
        total = terms[i, 0] + table.smart_weight * terms[i, 1] + table.bregman_weight * terms[i, 2]
        terms[i, 3] = spec.weight * total
    return Objective(
        terms, torch.cat(grads), torch.cat(adversarial_grads) if adversarial_grads else None
    )


def smoothness_cotangents_reference(
    table: ObjectiveTable, outputs: Tensor, tangents: Tensor
) -> Tensor:
    """See ``objective.smoothness_cotangents``."""
    parts = []
    for spec, w, t in zip(table.specs, table.split(outputs), table.split(tangents), strict=True):
        if spec.loss == "squared":
            product = 2.0 * t
        else:
            product = symmetric_kl_fisher_reference(_logits(spec, w), _logits(spec, t))
            product = product[:, -spec.num_outputs :]
        parts.append((product / spec.num_examples).flatten())
    return torch.cat(parts)


def smoothness_values_reference(table: ObjectiveTable, outputs: Tensor, changes: Tensor) -> Tensor:
    """See ``objective.smoothness_values``."""
    values = []
    for spec, w, d in zip(table.specs, table.split(outputs), table.split(changes), strict=True):
        if spec.loss == "squared":
            values.append(d.square().mean())
        else:
            values.append(symmetric_kl_reference(_logits(spec, w), _logits(spec, d)).mean())
    return torch.stack(values)


def _logits(spec: LossSpec, outputs: Tensor) -> Tensor:
    """Outputs [num_examples, num_outputs], or changes of them, as class logits."""
    return bernoulli_logits(outputs[:, 0]) if spec.loss == "binary_cross_entropy" else outputs


def _mean_change(spec: LossSpec, z: Tensor, w: Tensor) -> _Change:
    n, d = spec.num_examples, z - w
    if spec.loss == "squared":
        return _Change(d.square().mean(), 2.0 * d / n, -2.0 * d / n)
    q, c, difference = log_ratio_and_change(_logits(spec, w), _logits(spec, d))
    p, divergence = q + difference, (difference * c).sum(dim=-1, keepdim=True)
    centred = c - (p * c).sum(dim=-1, keepdim=True)
    grad_z = p * centred + difference
    grad_w = -q * (centred + divergence) - difference
    # of two-class logits the first is a constant
    grad_z, grad_w = (g[:, -spec.num_outputs :] / n for g in (grad_z, grad_w))
    return _Change(divergence.mean(), grad_z, grad_w)


def _loss(spec: LossSpec, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A task's mean loss, and its gradient [num_examples, num_outputs]."""
    if spec.loss == "squared":
        error = w[:, 0] - _standardized(spec, labels).to(w.dtype)
        return error.square().mean(), 2.0 * error[:, None] / spec.num_examples
    losses, grads = (_cross_entropy if spec.loss == "cross_entropy" else _binary)(spec, w, labels)
    factors = _example_factors(spec, labels, w.dtype)
    return (factors * losses).mean(), factors[:, None] * grads / spec.num_examples


def _standardized(spec: LossSpec, labels: Tensor) -> Tensor:
    if spec.label_mean is None:
        return labels
    return (labels.double() - spec.label_mean) / spec.label_scale


def _cross_entropy(spec: LossSpec, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each example, with its gradient."""
    k, smoothing = spec.num_outputs, spec.label_smoothing
    is_label = labels[:, None] == torch.arange(k, device=w.device)
    target = smoothing / k + (1 - smoothing) * is_label.to(w.dtype)
    log_q = torch.log_softmax(w, dim=-1)
    # a target of 0 takes no part, whatever the log
    losses = -torch.where(target > 0, target * log_q, torch.zeros_like(log_q)).sum(dim=-1)
    return losses, log_q.exp() - target


def _binary(spec: LossSpec, w: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each example, with its gradient."""
    smoothing, x = spec.label_smoothing, w[:, 0]
    target = labels.to(w.dtype) * (1 - smoothing) + smoothing / 2
    losses = F.softplus(-x.abs()) + x.clamp(min=0) - x * target
    return losses, (x.sigmoid() - target)[:, None]


def _example_factors(spec: LossSpec, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """The class's weight of each example; NaN where the label is no class."""
    k = spec.num_classes
    index = labels.to(torch.int64).clamp(0, k - 1)
    ones = torch.ones_like(labels, dtype=dtype)
    factors = ones if spec.class_weights is None else spec.class_weights.to(dtype)[index]
    return torch.where(index == labels, factors, torch.nan)
