"""The Triton implementations of the ops on rows of features; mathematics in their own modules."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.ops import triton_ops
from sbrrt_fast.ops.dispatch import Implementation
from sbrrt_fast.ops.triton_autograd import differentiable

MAX_WIDTH = 8192  # of kernels.rows, which needs Triton
_ops = triton_ops.ops


def too_wide(width: int) -> str | None:
    """Why no Triton kernel holds a row of so many features, or None."""
    return f"rows of {width} features are above {MAX_WIDTH}" if width > MAX_WIDTH else None


def _vector(like: Tensor, needed: bool) -> Tensor:
    """A gradient of a vector; empty where it is not needed."""
    return like.new_empty(like.shape[0] if needed else 0)


def _rows_and_statistics(like: Tensor, num_rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (like.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    return like.new_empty(num_rows, width), mean, rstd


_DROPOUT = "float p, Tensor rng, int site, Tensor offsets"
_ROW = "Tensor x, Tensor bias, Tensor residual, Tensor weight"
triton_ops.define(
    f"dropout_add_layernorm_forward({_ROW}, Tensor shift, float eps, {_DROPOUT}) "
    "-> (Tensor out, Tensor mean, Tensor rstd)",
    "layernorm",
    "forward",
    lambda x, bias, residual, *_: _rows_and_statistics(residual, *x.shape),
)
triton_ops.define(
    f"dropout_add_layernorm_backward(Tensor grad, {_ROW}, Tensor mean, Tensor rstd, {_DROPOUT}, "
    "bool need_weight_grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "layernorm",
    "backward",
    lambda grad, x, bias, residual, weight, *others: (
        x.new_empty(x.shape),
        residual.new_empty(x.shape),
        *(_vector(v, others[-1]) for v in (bias, weight, weight)),
    ),
)
triton_ops.define(
    f"dropout_add_layernorm_jvp(Tensor x_tangent, Tensor residual_tangent, {_ROW}, Tensor mean, "
    f"Tensor rstd, {_DROPOUT}) -> Tensor",
    "layernorm",
    "jvp",
    lambda x_tangent, residual_tangent, x, bias, residual, *_: residual.new_empty(x.shape),
)


def _layernorm_backward(grad, inputs, kept, needs):
    x, bias, residual, weight, _, _, *dropout = inputs
    needed = any(needs[i] for i in (1, 3, 4))
    dx, dresidual, *weights = _ops.dropout_add_layernorm_backward(
        grad, x, bias, residual, weight, *kept, *dropout, needed
    )
    dbias, dweight, dshift = weights if needed else (None,) * 3
    return dx, dbias, dresidual, dweight, dshift, *(None,) * 5


def _layernorm_jvp(tangents, inputs, kept):
    x, bias, residual, weight, _, _, *dropout = inputs
    tx = torch.zeros_like(x) if tangents[0] is None else tangents[0]
    tresidual = torch.zeros_like(residual) if tangents[2] is None else tangents[2]
    row = x, bias, residual, weight
    return _ops.dropout_add_layernorm_jvp(tx, tresidual, *row, *kept, *dropout)


def _layernorm_why_not(x, bias, residual, weight, shift, *_) -> str | None:
    reason = triton_ops.triton_reason(
        differentiable={"x": x, "residual": residual},
        constant={"bias": bias, "weight": weight, "shift": shift},
    )
    return reason or too_wide(x.shape[-1])


LAYERNORM = Implementation(
    "triton",
    differentiable(
        "dropout_add_layernorm_forward",
        _layernorm_backward,
        _layernorm_jvp,
        weights=(1, 3, 4),
    ),
    _layernorm_why_not,
    triton_ops.missing,
)


triton_ops.define(
    "bias_gelu_forward(Tensor x, Tensor bias) -> Tensor",
    "gelu",
    "forward",
    lambda x, bias: x.new_empty(x.shape),
)
triton_ops.define(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, bool need_weight_grads) "
    "-> (Tensor, Tensor)",
    "gelu",
    "backward",
    lambda grad, x, bias, needed: (x.new_empty(x.shape), _vector(bias, needed)),
)
triton_ops.define(
    "bias_gelu_jvp(Tensor x_tangent, Tensor x, Tensor bias) -> Tensor",
    "gelu",
    "jvp",
    lambda x_tangent, x, bias: x.new_empty(x.shape),
)


def _gelu_backward(grad, inputs, kept, needs):
    dx, dbias = _ops.bias_gelu_backward(grad, *inputs, needs[1])
    return dx, dbias if needs[1] else None


GELU = Implementation(
    "triton",
    differentiable(
        "bias_gelu_forward",
        _gelu_backward,
        lambda tangents, inputs, kept: _ops.bias_gelu_jvp(tangents[0], *inputs),
        weights=(1,),
    ),
    lambda x, bias: triton_ops.triton_reason(differentiable={"x": x}, constant={"bias": bias}),
    triton_ops.missing,
)


def _embed_gradients(
    grad, ids, positions, types, word, position, type_, weight, mean, rstd, p, rng, site, offsets,
    needs, order=None,
) -> tuple[Tensor, ...]:  # fmt: skip
    tables = [
        table.new_empty(table.shape[0] if needed else 0, table.shape[1])
        for table, needed in zip((word, position, type_), needs[:3], strict=True)
    ]
    return *tables, *(_vector(weight, needed) for needed in needs[3:])


_INDICES = "Tensor ids, Tensor positions, Tensor types"
_TABLES = "Tensor word, Tensor position, Tensor type"
triton_ops.define(
    f"embed_forward({_INDICES}, {_TABLES}, Tensor weight, Tensor shift, float eps, {_DROPOUT}) "
    "-> (Tensor out, Tensor mean, Tensor rstd)",
    "embed",
    "forward",
    lambda ids, positions, types, word, *_: _rows_and_statistics(word, ids.shape[0], word.shape[1]),
)
triton_ops.define(
    f"embed_backward(Tensor grad, {_INDICES}, {_TABLES}, Tensor weight, Tensor mean, Tensor rstd, "
    f"{_DROPOUT}, bool[5] needs, Tensor? order=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "embed",
    "backward",
    _embed_gradients,
)


def _embed_backward(grad, inputs, kept, needs):
    *places, _shift, _eps, p, rng, site, offsets = inputs
    dropout, needs = (p, rng, site, offsets), needs[3:8]
    found = _ops.embed_backward(grad, *places, *kept, *dropout, needs)
    found = [g if needed else None for g, needed in zip(found, needs, strict=True)]
    return *(None,) * 3, *found, *(None,) * 5


def _embed_why_not(ids, positions, types, word, position, type_, weight, shift, *_) -> str | None:
    tables = {"word": word, "position": position, "type": type_}
    vectors = {"weight": weight, "shift": shift}
    reason = triton_ops.triton_reason(differentiable={}, constant=tables | vectors)
    return reason or too_wide(word.shape[-1])


EMBED = Implementation(
    "triton",
    differentiable(
        "embed_forward",
        _embed_backward,
        weights=(3, 4, 5, 6, 7),
    ),
    _embed_why_not,
    triton_ops.missing,
)
