"""Multi-head attention of short sequences, with dropout on the probabilities.

For one (sequence, head) with queries Q, keys K and values V, each [length, head_dim]:

    P = softmax(Q K^T / sqrt(head_dim)),    O = (P * M) V

M holds dropout's factors, 0 or 1 / (1 - p). Derivatives: docs/math/attention.md. Source: arXiv
1706.03762, section 3.2.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops.attention_limits import shape_reason
from sbrrt_fast.ops.autodiff import has_tangent, tangent_is_differentiated
from sbrrt_fast.ops.dispatch import Implementation, Op, never
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.native import native, native_reason
from sbrrt_fast.ops.triton_attention import IMPLEMENTATION as TRITON
from sbrrt_fast.ops.triton_ops import with_triton


def attention_reference(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, factors: Tensor | None = None
) -> Tensor:
    """Attention on a padded batch, by the definition.

    Args:
        query, key, value: [num_sequences, num_heads, max_length, head_dim], any floating dtype.
        key_mask: bool [num_sequences, max_length], True where a real token is.
        factors: dropout's factors on the probabilities,
            [num_sequences, num_heads, max_length, max_length], or None.

    Returns:
        [num_sequences, num_heads, max_length, head_dim] of ``value``'s dtype. A sequence without
        any real token gets the mean of its values; nothing reads it.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~key_mask[:, None, None, :], lowest)
    probabilities = _softmax(scores).to(value.dtype)
    if factors is not None:
        probabilities = probabilities * factors
    return probabilities @ value


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 or above."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if not tangent_is_differentiated(scores):
        return torch.softmax(scores, dim=-1)
    exponential = (scores - scores.amax(dim=-1, keepdim=True).detach()).exp()
    return exponential / exponential.sum(dim=-1, keepdim=True)


def packed_attention_reference(
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
) -> Tensor:
    """``attention`` by padding, ``attention_reference`` and unpadding; any floating dtype."""
    num_sequences, device = rows.shape[0], rows.device
    starts = cu_seqlens.to(torch.int64)
    lengths = starts.diff()
    sequence = torch.repeat_interleave(
        torch.arange(num_sequences, device=device), lengths, output_size=query.shape[0]
    )
    slots = torch.arange(query.shape[0], device=device) + (
        torch.arange(num_sequences, device=device) * max_length - starts[:-1]
    ).index_select(0, sequence)
    shape = (num_sequences, max_length, num_heads, query.shape[1] // num_heads)

    def pad(x: Tensor) -> Tensor:  # [num_tokens, hidden] -> [sequence, head, position, feature]
        flat = x.new_zeros(num_sequences * max_length, x.shape[1]).index_copy(0, slots, x)
        return flat.view(shape).transpose(1, 2)

    key_mask = torch.arange(max_length, device=device) < lengths[:, None]
    factors = None
    if p > 0 and max_length > 0:
        places = (num_heads, max_length, max_positions, rng, site)
        factors = _factors(rows, places, p, value.dtype)
    out = attention_reference(pad(query), pad(key), pad(value), key_mask, factors)
    return out.transpose(1, 2).reshape(-1, query.shape[1]).index_select(0, slots)


def _factors(rows: Tensor, places: tuple, p: float, dtype: torch.dtype) -> Tensor:
    """Dropout's factors [num_sequences, num_heads, max_length, max_length]."""
    num_heads, max_length, max_positions, rng, site = places
    heads = torch.arange(num_heads, device=rows.device)[:, None]
    queries = torch.arange(max_length, device=rows.device)
    offsets = (rows[:, None, None] * num_heads + heads) * max_positions + queries
    mask = dropout_mask(offsets.flatten() * max_positions, max_length, p, rng, site, dtype)
    return mask.view(-1, num_heads, max_length, max_length)


class _Traced(torch.autograd.Function):
    """The C++ op under autograd for torch.compile to trace; without a tangent."""

    @staticmethod
    def forward(*inputs):
        return torch.ops.sbrrt.attention_forward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, cu_seqlens, max_length, num_heads, p, rng, site, rows, positions = inputs
        ctx.numbers = max_length, num_heads, p, site, positions
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(query, key, value, *output, cu_seqlens, rng, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        query, key, value, out, logsumexp, *batch = ctx.saved_tensors
        grads = torch.ops.sbrrt.attention_backward(
            grad, query, key, value, out, logsumexp, *_arguments(ctx.numbers, *batch)
        )
        return *grads, *[None] * 8


class _Transformed(_Traced):
    """The same with its forward-mode derivative, for torch.func."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Traced.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3], *output, inputs[3], inputs[7], inputs[9])

    @staticmethod
    def jvp(ctx, query_tangent, key_tangent, value_tangent, *_):
        query, key, value, _out, logsumexp, *batch = ctx.saved_tensors
        tangents = query_tangent, key_tangent, value_tangent
        tangent = torch.ops.sbrrt.attention_jvp(
            query, key, value, *tangents, logsumexp, *_arguments(ctx.numbers, *batch)
        )
        return tangent, None


class _Dual(torch.autograd.Function):
    """The same outside torch.func, in the older style: it spares 30 us of binding arguments."""

    @staticmethod
    def forward(ctx, *inputs):
        output = torch.ops.sbrrt.attention_forward(*inputs)
        _Transformed.setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_Traced.backward)
    jvp = staticmethod(_Transformed.jvp)


def _arguments(numbers: tuple, cu_seqlens: Tensor, rng: Tensor, rows: Tensor) -> tuple:
    """The op's last arguments, in order."""
    max_length, num_heads, p, site, max_positions = numbers
    return cu_seqlens, max_length, num_heads, p, rng, site, rows, max_positions


def _run_native(*args) -> Tensor:
    if torch.compiler.is_compiling():
        return _Traced.apply(*args)[0]
    if torch._C._are_functorch_transforms_active():
        return _Transformed.apply(*args)[0]
    if any(map(has_tangent, args[:3])):
        return _Dual.apply(*args)[0]
    return torch.ops.sbrrt.attention(*args)


def _why_not(
    device: str,
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
    reason = native_reason(device, differentiable=inputs, constant={})
    if reason is not None:
        return reason
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value differ in dtype, which runs on the reference"
    if query.dim() != 2:
        return None  # a mistake, which the op names
    return shape_reason(query.shape[1], num_heads, max_length, max_positions)


_op = Op(
    "attention",
    with_triton(
        TRITON,
        *native(_run_native, _why_not),
        Implementation("reference", packed_attention_reference, lambda *args: None, never),
    ),
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    num_heads: int,
    p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
    rows: Tensor | None = None,
    max_positions: int | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Attention within each sequence of a packed batch.

    Differentiable in query, key and value, in reverse and in forward mode. The native op computes
    in float32 whatever the dtype.

    Args:
        query, key, value: [num_tokens, num_heads * head_dim], of one dtype, float32 or bfloat16
            (float64 on the reference); row-strided views of a fused projection are read in place.
        cu_seqlens: int32 [num_sequences + 1], cumulative lengths.
        max_length: the longest of them, or more; the native op takes up to 512.
        num_heads: their dimension is 32 or 64 for the native op.
        p: probability of dropping a probability, in [0, 1).
        rng: int64 [2], (seed, step).
        site: which dropout of the model this is.
        rows: int64 [num_sequences], each sequence's row in dropout's index (see ``ops.dropout``).
        max_positions: the model's maximum length, which that index counts against.
        backend: ``auto``, ``cpu``, ``triton`` or ``reference``.

    Returns:
        [num_tokens, num_heads * head_dim] of the inputs' dtype.

    Raises:
        ValueError, TypeError: an argument does not fit, by its name.
        BackendError: the named backend cannot run these inputs.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"attention: p must be in [0, 1), got {p}")
    if p > 0 and (rng is None or rows is None or max_positions is None):
        raise ValueError(
            f"attention: p = {p} needs rng (seed, step), rows and max_positions; one is None"
        )
    if rng is None:
        rng = torch.zeros(2, dtype=torch.int64, device=query.device)
    if rows is None:
        rows = torch.zeros(cu_seqlens.shape[0] - 1, dtype=torch.int64, device=query.device)
    numbers = p, rng, site, rows, max_length if max_positions is None else max_positions
    return _op(query, key, value, cu_seqlens, max_length, num_heads, *numbers, backend=backend)


OPS = (_op,)
