"""BERT's first layer: LN(word[id] + position[p] + type[t]), then dropout.

Source: arXiv 1810.04805, figure 2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops._backend.autograd import Rule, differentiable
from sbrrt_fast.ops._backend.backends import CUDA, Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.dropout_arguments import dropout_arguments
from sbrrt_fast.ops._backend.library import define, empty_floats, empty_like
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.layernorm import layernorm_reference

_TOKENS = "Tensor ids, Tensor positions, Tensor types"
_TABLES = "Tensor word, Tensor position, Tensor type"
_DROPOUT = "float p, Tensor rng, int site, Tensor offsets"
define(
    f"embed_forward_into({_TOKENS}, {_TABLES}, Tensor weight, Tensor shift, float eps, {_DROPOUT}, "
    "Tensor(a!) out, Tensor(b!) mean, Tensor(c!) rstd)",
    "embed.forward_into",
)
define(
    f"embed_backward_into(Tensor grad, {_TOKENS}, {_TABLES}, Tensor weight, Tensor mean, "
    f"Tensor rstd, {_DROPOUT}, Tensor? order, Tensor(a!)? dword, Tensor(b!)? dposition, "
    "Tensor(c!)? dtype, Tensor(d!)? dweight, Tensor(e!)? dshift)",
    "embed.backward_into",
)


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


def embed_forward(ops, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mean, rstd) for the inputs of ``embed``, by the writing ops of a backend."""
    ids, word = inputs[0], inputs[3]
    num_tokens = ids.shape[0]
    out = word.new_empty(num_tokens, word.shape[1])
    mean, rstd = empty_floats(word, num_tokens), empty_floats(word, num_tokens)
    ops.embed_forward_into(*inputs, out, mean, rstd)
    return out, mean, rstd


def _backward(ops, grad: Tensor, inputs, saved, needs) -> tuple[Tensor | None, ...]:
    *tokens_and_tables, weight, shift, _eps, p, rng, site, offsets = inputs
    parameters = *tokens_and_tables[3:], weight, shift
    grads = [
        empty_like(parameter) if needed else None
        for parameter, needed in zip(parameters, needs[3:8], strict=True)
    ]
    ops.embed_backward_into(
        grad, *tokens_and_tables, weight, *saved, p, rng, site, offsets, None, *grads
    )
    return None, None, None, *grads


def _why_not(
    backend: Backend, ids, positions, types, word, position, type_, weight, shift, *_
) -> str | None:
    tables = {"word": word, "position": position, "type": type_}
    constant = tables | {"weight": weight, "shift": shift}
    reason = backend.tensor_reason(differentiable={}, constant=constant)
    if reason is None and backend is CUDA and not word.dtype == position.dtype == type_.dtype:
        return "the tables differ in dtype, which runs on the reference"
    return reason or backend.width_reason("word", word)


def _run_reference(*args) -> Tensor:
    *tensors, eps, p, rng, site, offsets = args
    word = tensors[3]
    factors = dropout_mask(offsets, word.shape[1], p, rng, site, word.dtype) if p > 0 else None
    return embed_reference(*tensors, eps, factors)


_run = differentiable(Rule("embed_forward_into", embed_forward, _backward, weights=(3, 4, 5, 6, 7)))
_op = fused_op("embed", _run, _why_not, _run_reference)


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

    Differentiable in the tables, ``weight`` and ``shift``. The fused ops compute in
    float32 whatever the dtypes. Gradients of the tables are dense: rows that no token reads are
    zeros, and filling them is most of the backward's time where the vocabulary is large.

    Args:
        ids, positions, types: int64 [num_tokens], rows of the three tables.
        word, position, type_: [rows, hidden], float32 or bfloat16 (float64 on the reference).
        weight, shift, eps: LayerNorm's, [hidden].
        p: probability of dropping an element of the result, in [0, 1).
        rng: int64 [2], (seed, step); not needed for p = 0.
        site: which dropout of the model this is.
        offsets: int64 [num_tokens], the logical index of each token's first element
            (``ops.dropout``); not needed for p = 0.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

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
