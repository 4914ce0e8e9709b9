"""BERT's first layer: LN(word[id] + position[p] + type[t]), then dropout.

Source: arXiv 1810.04805, figure 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops import triton_rows
from sbrrt_fast.ops.autodiff import is_transformed, needs_weight_gradients
from sbrrt_fast.ops.dispatch import Implementation, Op, never
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.dropout_arguments import dropout_arguments
from sbrrt_fast.ops.layernorm import layernorm_reference
from sbrrt_fast.ops.native import native, native_reason, width_reason
from sbrrt_fast.ops.triton_ops import with_triton


def embed_reference(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    word: Tensor,
    position: Tensor,
    type_: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    factors: Tensor | None = None,
) -> Tensor:
    """Embeddings of a batch of tokens.

    Args:
        ids, positions, types: int64 [num_tokens], rows of the three tables.
        word, position, type_: the tables, [rows, hidden].
        weight, shift, eps: LayerNorm's.
        factors: dropout's factors [num_tokens, hidden], or None.

    Returns:
        [num_tokens, hidden] of the tables' dtype.
    """
    total = F.embedding(ids, word) + F.embedding(positions, position) + F.embedding(types, type_)
    hidden = layernorm_reference(total, weight, shift, eps)
    return hidden if factors is None else hidden * factors


class _Function(torch.autograd.Function):
    """The C++ op under autograd for torch.compile and torch.func; tokens have no derivative."""

    @staticmethod
    def forward(ids, positions, types, word, position, type_, weight, shift, eps, *dropout):
        return torch.ops.sbrrt.embed_forward(
            ids, positions, types, word, position, type_, weight, shift, eps, *dropout
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, _, _, ctx.p, rng, ctx.site, offsets = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(*tensors, mean, rstd, rng, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        *tensors, rng, offsets = ctx.saved_tensors
        needs = [needs_weight_gradients(ctx, i) for i in range(3, 8)]
        found = torch.ops.sbrrt.embed_backward(grad, *tensors, ctx.p, rng, ctx.site, offsets, needs)
        found = [g if needed else None for g, needed in zip(found, needs, strict=True)]
        return None, None, None, *found, None, None, None, None, None


def _run_native(*args) -> Tensor:
    if torch.compiler.is_compiling() or is_transformed():
        return _Function.apply(*args)[0]
    return torch.ops.sbrrt.embed(*args)


def _why_not(
    device: str, ids, positions, types, word, position, type_, weight, shift, *_
) -> str | None:
    tensors = {
        "word": word,
        "position": position,
        "type": type_,
        "weight": weight,
        "shift": shift,
    }
    reason = native_reason(device, differentiable={}, constant=tensors)
    if reason is None and device == "cuda" and not word.dtype == position.dtype == type_.dtype:
        return "the tables differ in dtype, which runs on the reference"
    return reason or width_reason(device, "word", word)


def _run_reference(*args) -> Tensor:
    *tensors, eps, p, rng, site, offsets = args
    word = tensors[3]
    factors = dropout_mask(offsets, word.shape[1], p, rng, site, word.dtype) if p > 0 else None
    return embed_reference(*tensors, eps, factors)


_op = Op(
    "embed",
    with_triton(
        triton_rows.EMBED,
        *native(_run_native, _why_not),
        Implementation("reference", _run_reference, lambda *args: None, never),
    ),
)


def embed(
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    word: Tensor,
    position: Tensor,
    type_: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
    offsets: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """dropout(LN(word[id] + position[p] + type[t])).

    Differentiable in the tables, ``weight`` and ``shift``. The native op computes in float32
    whatever the dtypes. Gradients of the tables are dense: rows that no token reads are zeros,
    and filling them is most of the backward's time where the vocabulary is large.

    Args:
        ids, positions, types: int64 [num_tokens], rows of the three tables.
        word, position, type_: [rows, hidden], float32 or bfloat16 (float64 on the reference).
        weight, shift, eps: LayerNorm's, [hidden].
        p: probability of dropping an element of the result, in [0, 1).
        rng: int64 [2], (seed, step); not needed for p = 0.
        site: which dropout of the model this is.
        offsets: int64 [num_tokens], the logical index of each token's first element
            (``ops.dropout``); not needed for p = 0.
        backend: ``auto``, ``cpu``, ``triton`` or ``reference``.

    Returns:
        [num_tokens, hidden] of the word table's dtype.

    Raises:
        ValueError, TypeError: an argument does not fit, by its name; an index out of its table.
        BackendError: the named backend cannot run these inputs.
    """
    rng, offsets = dropout_arguments("embed", p, rng, offsets, ids)
    tables = (word, position, type_)
    arguments = (ids, positions, types, *tables, weight, shift, eps, p, rng, site, offsets)
    return _op(*arguments, backend=backend)


OPS = (_op,)
