"""What the writing ops of heads and objectives should leave, from the numbers they are given."""

from __future__ import annotations

from torch import Tensor

from sbrrt_fast.ops.objective import LossSpec, ObjectiveTable
from sbrrt_fast.ops.objective_reference import (
    objective_reference,
    smoothness_cotangents_reference,
    smoothness_values_reference,
)
from sbrrt_fast.ops.objective_table import LOSSES
from sbrrt_fast.ops.task_heads import HeadSpec, HeadTable
from sbrrt_fast.ops.task_heads_reference import (
    heads_forward_reference,
    heads_jvp_reference,
    heads_vjp_reference,
    heads_weight_gradients_reference,
)
from sbrrt_fast.ops.task_heads_table import KINDS


def head_table(heads: list[int], scales: list[float] | None, hidden_size: int) -> HeadTable:
    rows = [heads[i : i + 6] for i in range(0, len(heads), 6)]
    scales = scales or [1.0] * len(rows)
    specs = [HeadSpec(KINDS[r[0]], *r[1:], s) for r, s in zip(rows, scales, strict=True)]
    return HeadTable(specs, hidden_size, "cpu")


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double()


def heads_forward(pooled, factors, weights, heads, scales):
    table = head_table(heads, scales, pooled.shape[1])
    return [heads_forward_reference(table, *map(_double, (pooled, factors, weights)))]


def heads_jvp(pooled, factors, weights, tangent, heads, scales):
    table = head_table(heads, scales, pooled.shape[1])
    return [heads_jvp_reference(table, *map(_double, (pooled, factors, weights, tangent)))]


def heads_vjp(pooled, factors, weights, cotangents, heads, scales):
    table = head_table(heads, scales, pooled.shape[1])
    return [heads_vjp_reference(table, *map(_double, (pooled, factors, weights, cotangents)))]


def heads_weight_gradients(pooled, factors, cotangents, *others):
    *second, heads, dweights = others
    out = dweights.detach().double()
    passes = [(pooled, factors, cotangents), *([second] if second[0] is not None else [])]
    lists = [[_double(x) for x in part] for part in zip(*passes, strict=True)]
    heads_weight_gradients_reference(head_table(heads, None, pooled.shape[1]), *lists, out)
    return [out]


def loss_table(losses, numbers=None, lists=None, weights=(0.0, 0.0)) -> ObjectiveTable:
    """lists: class weights, means and scales of labels, without elements where there is none."""
    specs = []
    for i in range(len(losses) // 3):
        kind, count, outputs = losses[3 * i : 3 * i + 3]
        number = numbers[2 * i : 2 * i + 2] if numbers else (1.0, 0.0)
        tensors = [x[i] if x[i].numel() else None for x in lists] if lists else [None] * 3
        specs.append(LossSpec(LOSSES[kind], count, outputs, *number, *tensors))
    return ObjectiveTable(specs, *weights, "cpu")


def objective(outputs, labels, adversarial, targets, smart_values, *others):
    *lists, losses, numbers, smart_weight, bregman_weight, factor = others
    table = loss_table(losses, numbers, lists, (smart_weight, bregman_weight))
    vectors = [_double(x) for x in (outputs, labels, adversarial, targets)]
    found = objective_reference(table, *vectors, factor, _double(smart_values))
    return [*found]


def smoothness_cotangents(outputs, tangents, losses):
    return [smoothness_cotangents_reference(loss_table(losses), *map(_double, (outputs, tangents)))]


def smoothness_values(outputs, changes, losses):
    return [smoothness_values_reference(loss_table(losses), *map(_double, (outputs, changes)))]
