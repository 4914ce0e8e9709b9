"""The heads of a group of tasks over pooled sequences, with their derivatives written out.

With the features x = pooled * factors, and u and v the two sequences of a pair:

    linear             W x + b
    concat             W [u, v] + b
    concat_difference  W [u, v, |u - v|] + b        (arXiv 1908.10084, section 3)
    cosine             scale * u v / (max(|u|, eps) max(|v|, eps))

Outputs of all tasks are one flat vector: task after task, example after example;
``HeadTable.split`` has its parts. Nothing here is differentiable: the tangent (``heads_jvp``), the
gradient of the pooled vectors (``heads_vjp``) and of the weights are functions of their own.
Derivatives at u = v take sign(0) = 0, and a vector shorter than eps is divided by eps, a constant.
``docs/math/task_heads.md`` has the derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import CUDA, Backend, dtype_name
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_floats, empty_like
from sbrrt_fast.ops.task_heads_reference import (
    heads_forward_reference,
    heads_jvp_reference,
    heads_vjp_reference,
    heads_weight_gradients_reference,
)
from sbrrt_fast.ops.task_heads_table import HeadSpec, HeadTable

__all__ = [
    "HeadSpec",
    "HeadTable",
    "heads_forward",
    "heads_jvp",
    "heads_vjp",
    "heads_weight_gradients",
]


define(
    "heads_forward_into(Tensor pooled, Tensor? factors, Tensor weights, int[] heads, "
    "float[] scales, Tensor(a!) out)",
    "task_heads.forward_into",
)
define(
    "heads_jvp_into(Tensor pooled, Tensor? factors, Tensor weights, Tensor pooled_tangent, "
    "int[] heads, float[] scales, Tensor(a!) out)",
    "task_heads.jvp_into",
)
define(
    "heads_vjp_into(Tensor pooled, Tensor? factors, Tensor weights, Tensor cotangents, "
    "int[] heads, float[] scales, Tensor(a!) dpooled)",
    "task_heads.vjp_into",
)
define(
    "heads_weight_gradients_into(Tensor pooled, Tensor? factors, Tensor cotangents, "
    "Tensor? other_pooled, Tensor? other_factors, Tensor? other_cotangents, int[] heads, "
    "Tensor(a!) dweights)",
    "task_heads.weight_gradients_into",
)

MAX_CUDA_HEADS = 64  # kMaxHeads of csrc/cuda/task_heads.h
MAX_PASSES = 2  # of heads_weight_gradients_into


def _why_not(backend: Backend, table: HeadTable, *tensors: Tensor | None) -> str | None:
    for x in tensors:
        if x is not None and (reason := _tensor_reason(backend, x)):
            return reason
    if backend is CUDA and len(table.specs) > MAX_CUDA_HEADS:
        return f"{len(table.specs)} heads are above {MAX_CUDA_HEADS}"
    return None


def _tensor_reason(backend: Backend, x: Tensor) -> str | None:
    if x.dtype != torch.float32:
        return f"{dtype_name(x)} tensors run on the reference"
    return backend.device_reason("a tensor", x)


def _weights_why_not(
    backend: Backend, table: HeadTable, pooled, factors, cotangents, grad_weights: Tensor
) -> str | None:
    if len(pooled) > MAX_PASSES:
        return f"{len(pooled)} passes are above {MAX_PASSES}"
    return _why_not(backend, table, *pooled, *factors, *cotangents, grad_weights)


def _run_forward(
    backend: Backend, table: HeadTable, pooled: Tensor, factors: Tensor | None, weights: Tensor
) -> Tensor:
    out = empty_floats(pooled, table.num_outputs)
    backend.ops.heads_forward_into(pooled, factors, weights, table.heads, table.scales, out)
    return out


def _run_jvp(
    backend: Backend,
    table: HeadTable,
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    pooled_tangent: Tensor,
) -> Tensor:
    out = empty_floats(pooled, table.num_outputs)
    inputs = pooled, factors, weights, pooled_tangent
    backend.ops.heads_jvp_into(*inputs, table.heads, table.scales, out)
    return out


def _run_vjp(
    backend: Backend,
    table: HeadTable,
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    cotangents: Tensor,
) -> Tensor:
    out = empty_like(pooled)
    inputs = pooled, factors, weights, cotangents
    backend.ops.heads_vjp_into(*inputs, table.heads, table.scales, out)
    return out


def _run_weight_gradients(
    backend: Backend, table: HeadTable, pooled, factors, cotangents, grad_weights: Tensor
) -> None:
    passes = [*zip(pooled, factors, cotangents, strict=True)]
    passes += [(None, None, None)] * (MAX_PASSES - len(passes))
    inputs = [x for one in passes for x in one]
    backend.ops.heads_weight_gradients_into(*inputs, table.heads, grad_weights)


_forward = fused_op("heads_forward", _run_forward, _why_not, heads_forward_reference)
_jvp = fused_op("heads_jvp", _run_jvp, _why_not, heads_jvp_reference)
_vjp = fused_op("heads_vjp", _run_vjp, _why_not, heads_vjp_reference)
_weight_gradients = fused_op(
    "heads_weight_gradients",
    _run_weight_gradients,
    _weights_why_not,
    heads_weight_gradients_reference,
)


@torch.no_grad()
def heads_forward(
    table: HeadTable, pooled: Tensor, factors: Tensor | None, weights: Tensor, *, backend: str
) -> Tensor:
    """The heads' outputs, flat.

    Args:
        pooled: float32 (the reference: or float64) [>= table.num_sequences, hidden]; further rows,
            of padding sequences, are not read.
        factors: dropout's, of the shape of ``pooled``; None is 1.
        weights: one flat vector with all heads' weights, [>= table.num_weights].
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Returns:
        [table.num_outputs] of the dtype of ``pooled``.

    Raises:
        ValueError: a shape does not fit the table.
        BackendError: the named backend cannot run these inputs.
    """
    _check_inputs("heads_forward", table, pooled, factors)
    _check_weights("heads_forward", table, weights)
    return _forward(table, pooled, factors, weights, backend=backend)


@torch.no_grad()
def heads_jvp(
    table: HeadTable,
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    pooled_tangent: Tensor,
    *,
    backend: str,
) -> Tensor:
    """The outputs' tangents [table.num_outputs] from that of ``pooled``.

    Args, errors raised: see ``heads_forward``; ``pooled_tangent`` is of the shape of ``pooled``.
    """
    _check_inputs("heads_jvp", table, pooled, factors, pooled_tangent)
    _check_weights("heads_jvp", table, weights)
    return _jvp(table, pooled, factors, weights, pooled_tangent, backend=backend)


@torch.no_grad()
def heads_vjp(
    table: HeadTable,
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    cotangents: Tensor,
    *,
    backend: str,
) -> Tensor:
    """The gradient of ``pooled``, of its shape, from that of the outputs [table.num_outputs].

    Rows of no task are zero. Args, errors raised: see ``heads_forward``.
    """
    _check_inputs("heads_vjp", table, pooled, factors)
    _check_weights("heads_vjp", table, weights)
    _check_flat("heads_vjp", table, cotangents)
    return _vjp(table, pooled, factors, weights, cotangents, backend=backend)


@torch.no_grad()
def heads_weight_gradients(
    table: HeadTable,
    pooled: Sequence[Tensor],
    factors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
    grad_weights: Tensor,
    *,
    backend: str,
) -> None:
    """Writes the gradient of the weights, summed over passes, where their weights are.

    Args:
        pooled, factors, cotangents: one entry per pass (clean, adversarial): the pooled vectors,
            dropout's factors or None, and the gradient of the outputs [table.num_outputs].
        grad_weights: flat [>= table.num_weights]; elements of no head of the table stay.

    Raises:
        ValueError: a shape does not fit the table, or the lists differ in length.
        BackendError: the named backend cannot run these inputs.
    """
    if not len(pooled) == len(factors) == len(cotangents) >= 1:
        lengths = f"{len(pooled)}, {len(factors)} and {len(cotangents)}"
        raise ValueError(f"heads_weight_gradients: lists of one length are needed, got {lengths}")
    for x, f, c in zip(pooled, factors, cotangents, strict=True):
        _check_inputs("heads_weight_gradients", table, x, f)
        _check_flat("heads_weight_gradients", table, c)
    _check_weights("heads_weight_gradients", table, grad_weights)
    _weight_gradients(
        table, list(pooled), list(factors), list(cotangents), grad_weights, backend=backend
    )


def _check_inputs(op: str, table: HeadTable, pooled: Tensor, *others: Tensor | None) -> None:
    if pooled.shape[0] < table.num_sequences or pooled.shape[1:] != (table.hidden_size,):
        shape = f"[>= {table.num_sequences}, {table.hidden_size}]"
        raise ValueError(f"{op}: pooled must be {shape}, got {tuple(pooled.shape)}")
    for other in others:
        if other is not None and other.shape != pooled.shape:
            shapes = f"{tuple(pooled.shape)}, got {tuple(other.shape)}"
            raise ValueError(f"{op}: factors and tangents must have the shape of pooled, {shapes}")


def _check_flat(op: str, table: HeadTable, cotangents: Tensor) -> None:
    if cotangents.shape != (table.num_outputs,):
        shapes = f"[{table.num_outputs}], got {tuple(cotangents.shape)}"
        raise ValueError(f"{op}: cotangents must be {shapes}")


def _check_weights(op: str, table: HeadTable, weights: Tensor) -> None:
    if weights.dim() != 1 or len(weights) < table.num_weights:
        raise ValueError(
            f"{op}: weights must be [>= {table.num_weights}], got {tuple(weights.shape)}"
        )


OPS = (_forward, _jvp, _vjp, _weight_gradients)
