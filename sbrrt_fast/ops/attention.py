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

from sbrrt_fast.ops._backend.autograd import Rule, differentiable
from sbrrt_fast.ops._backend.backends import Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_floats, empty_like
from sbrrt_fast.ops.autodiff import tangent_is_differentiated
from sbrrt_fast.ops.dropout import dropout_mask

HEAD_DIMS = (32, 64)
MAX_LENGTH = 512
_NUM_HEADS_END, _POSITIONS_END = 2**16, 2**31

_MATRICES = "Tensor query, Tensor key, Tensor value"
_BATCH = (
    "Tensor cu_seqlens, int max_length, int num_heads, float p, Tensor rng, int site, "
    "Tensor rows, int max_positions"
)
define(
    f"attention_forward_into({_MATRICES}, {_BATCH}, Tensor(a!) out, Tensor(b!) logsumexp)",
    "attention.forward_into",
)
define(
    f"attention_backward_into(Tensor grad, {_MATRICES}, Tensor out, Tensor logsumexp, {_BATCH}, "
    "Tensor(a!) dquery, Tensor(b!) dkey, Tensor(c!) dvalue)",
    "attention.backward_into",
)
define(
    f"attention_jvp_into({_MATRICES}, Tensor query_tangent, Tensor key_tangent, "
    f"Tensor value_tangent, Tensor logsumexp, {_BATCH}, Tensor(a!) out)",
    "attention.jvp_into",
)


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


def _forward(ops, query: Tensor, *inputs) -> tuple[Tensor, Tensor]:
    num_heads = inputs[4]
    out = empty_like(query)
    logsumexp = empty_floats(query, query.shape[0], num_heads)
    ops.attention_forward_into(query, *inputs, out, logsumexp)
    return out, logsumexp


def _backward(ops, grad: Tensor, inputs, saved, needs) -> tuple[Tensor, ...]:
    matrices, batch = inputs[:3], inputs[3:]
    grads = tuple(empty_like(x) for x in matrices)
    ops.attention_backward_into(grad, *matrices, *saved, *batch, *grads)
    return grads


def _jvp(ops, tangents, inputs, saved) -> Tensor:
    matrices, batch, logsumexp = inputs[:3], inputs[3:], saved[1]
    pairs = zip(matrices, tangents, strict=False)
    tangents = [torch.zeros_like(x) if t is None else t for x, t in pairs]
    out = empty_like(matrices[0])
    ops.attention_jvp_into(*matrices, *tangents, logsumexp, *batch, out)
    return out


def shape_reason(hidden: int, num_heads: int, max_length: int, max_positions: int) -> str | None:
    """Why no fused attention takes these shapes, or None.

    ``csrc/common/attention_checks.h`` and ``kernels/attention.py`` refuse the others; what is said
    here is why, before one of them is called.
    """
    if max_length > MAX_LENGTH:
        return f"max_length is {max_length}, above {MAX_LENGTH}"
    if hidden not in [num_heads * head_dim for head_dim in HEAD_DIMS]:
        return f"the head dimension, {hidden} / {num_heads}, is neither 32 nor 64"
    if num_heads >= _NUM_HEADS_END:
        return f"there are {num_heads} heads, not below {_NUM_HEADS_END}"
    if max_positions >= _POSITIONS_END:
        return f"max_positions is {max_positions}, not below {_POSITIONS_END}"
    return None


def _why_not(
    backend: Backend,
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
    reason = backend.tensor_reason(differentiable=inputs, constant={})
    if reason is not None:
        return reason
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value differ in dtype, which runs on the reference"
    if query.dim() != 2:
        return None  # a mistake, which the op names
    return shape_reason(query.shape[1], num_heads, max_length, max_positions)


_run = differentiable(Rule("attention_forward_into", _forward, _backward, _jvp, saves_out=True))
_op = fused_op("attention", _run, _why_not, packed_attention_reference)


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

    Differentiable in query, key and value, in reverse and in forward mode. The fused ops compute
    in float32 whatever the dtype; on a GPU, and on a CPU that multiplies bfloat16, they round
    probabilities and their gradients to it before a product.

    Args:
        query, key, value: [num_tokens, num_heads * head_dim], of one dtype, float32 or bfloat16
            (float64 on the reference); row-strided views of a fused projection are read in place.
        cu_seqlens: int32 [num_sequences + 1], cumulative lengths.
        max_length: the longest of them, or more; the fused ops take up to 512.
        num_heads: their dimension is 32 or 64 for the fused ops.
        p: probability of dropping a probability, in [0, 1).
        rng: int64 [2], (seed, step).
        site: which dropout of the model this is.
        rows: int64 [num_sequences], each sequence's row in dropout's index (see ``ops.dropout``).
        max_positions: the model's maximum length, which that index counts against.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

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
