"""Attention in Triton as ops under autograd; mathematics and arguments: ``ops.attention``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops import triton_ops
from sbrrt_fast.ops.attention_limits import shape_reason
from sbrrt_fast.ops.dispatch import Implementation
from sbrrt_fast.ops.triton_ops import define, ops, triton_reason

_MATRICES = "Tensor query, Tensor key, Tensor value"
_BATCH = (
    "Tensor cu_seqlens, int max_length, int num_heads, float p, Tensor rng, int site, "
    "Tensor rows, int max_positions"
)


def _forward_fake(query, key, value, cu_seqlens, max_length, num_heads, *batch):
    logsumexp = query.new_empty((query.shape[0], num_heads), dtype=torch.float32)
    return query.new_empty(query.shape), logsumexp


def _backward_fake(grad, query, *others):
    return tuple(query.new_empty(query.shape) for _ in range(3))


define(
    f"attention_forward({_MATRICES}, {_BATCH}) -> (Tensor out, Tensor logsumexp)",
    "attention",
    "forward",
    _forward_fake,
)
define(
    f"attention_backward(Tensor grad, {_MATRICES}, Tensor out, Tensor logsumexp, {_BATCH}) "
    "-> (Tensor, Tensor, Tensor)",
    "attention",
    "backward",
    _backward_fake,
)
define(
    f"attention_jvp({_MATRICES}, Tensor query_tangent, Tensor key_tangent, Tensor value_tangent, "
    f"Tensor logsumexp, {_BATCH}) -> Tensor",
    "attention",
    "jvp",
    lambda query, *others: query.new_empty(query.shape),
)


class _Function(torch.autograd.Function):
    """Without a tangent, so that torch.compile can trace it."""

    @staticmethod
    def forward(*inputs):
        return ops.attention_forward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *matrices, cu_seqlens, max_length, num_heads, p, rng, site, rows, positions = inputs
        ctx.numbers = max_length, num_heads, p, site, positions
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*matrices, *output, cu_seqlens, rng, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        *matrices, out, logsumexp, cu_seqlens, rng, rows = ctx.saved_tensors
        batch = _batch(ctx.numbers, cu_seqlens, rng, rows)
        grads = ops.attention_backward(grad, *matrices, out, logsumexp, *batch)
        return *grads, *[None] * len(batch)


class _FunctionWithTangent(_Function):
    """The same with its forward-mode derivative."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Function.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3], *output, inputs[3], inputs[7], inputs[9])

    @staticmethod
    def jvp(ctx, *tangents):
        *matrices, _out, logsumexp, cu_seqlens, rng, rows = ctx.saved_tensors
        batch = _batch(ctx.numbers, cu_seqlens, rng, rows)
        return ops.attention_jvp(*matrices, *tangents[:3], logsumexp, *batch), None


def _batch(numbers: tuple, cu_seqlens: Tensor, rng: Tensor, rows: Tensor) -> tuple:
    """The ops' last arguments, in order."""
    max_length, num_heads, p, site, max_positions = numbers
    return cu_seqlens, max_length, num_heads, p, rng, site, rows, max_positions


def _run(*inputs) -> Tensor:
    function = _Function if torch.compiler.is_compiling() else _FunctionWithTangent
    return function.apply(*inputs)[0]


def _why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    num_heads: int,
    p: float,
    rng: Tensor,
    site: int,
    rows: Tensor,
    max_positions: int,
) -> str | None:
    inputs = {"query": query, "key": key, "value": value}
    if reason := triton_reason(differentiable=inputs, constant={}):
        return reason
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value differ in dtype, which runs on the reference"
    if query.dim() != 2:
        return None  # a mistake, which the op names
    return shape_reason(query.shape[1], num_heads, max_length, max_positions)


IMPLEMENTATION = Implementation("triton", _run, _why_not, triton_ops.missing)
