"""The residual connection of a BERT layer: LN(residual + dropout(x + bias)).

With s = residual + M * (x + bias), mean m and variance v of s over its last dimension:

    y = weight * (s - m) / sqrt(v + eps) + shift

M holds dropout's factors. Source: arXiv 1810.04805 and arXiv 1607.06450, equation 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops._backend.autograd import Rule, differentiable
from sbrrt_fast.ops._backend.backends import CUDA, Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.dropout_arguments import dropout_arguments
from sbrrt_fast.ops._backend.library import define, empty_floats, empty_like
from sbrrt_fast.ops.autodiff import tangent_is_differentiated
from sbrrt_fast.ops.column_sums import column_sums
from sbrrt_fast.ops.dropout import dropout_mask

_ROW = "Tensor x, Tensor bias, Tensor residual, Tensor weight"
_DROPOUT = "float p, Tensor rng, int site, Tensor offsets"
_SEGMENT_ROWS = 32
# the tangents [num_tangent_rows, width] are those of the last rows
define(
    f"dropout_add_layernorm_forward_into({_ROW}, Tensor shift, float eps, {_DROPOUT}, "
    "Tensor(a!) out, Tensor(b!)? low, Tensor(c!) mean, Tensor(d!) rstd, Tensor? x_tangent=None, "
    "Tensor? residual_tangent=None, Tensor(e!)? out_tangent=None, Tensor(f!)? low_tangent=None)",
    "layernorm.forward_into",
)
# segments int32 [num_segments + 1], row bounds from 0 to num_rows; sums float32 [num_segments, 3,
# width], over each segment's rows for bias, weight and shift
define(
    f"dropout_add_layernorm_backward_into(Tensor grad, Tensor? product, {_ROW}, Tensor mean, "
    f"Tensor rstd, {_DROPOUT}, Tensor(a!) dx, Tensor(b!) dresidual, Tensor? segments, "
    "Tensor(c!)? sums)",
    "layernorm.backward_into",
)
define(
    f"dropout_add_layernorm_jvp_into(Tensor x_tangent, Tensor residual_tangent, {_ROW}, "
    f"Tensor mean, Tensor rstd, {_DROPOUT}, Tensor(a!) out, Tensor(b!)? low)",
    "layernorm.jvp_into",
)


def dropout_add_layernorm_reference(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    factors: Tensor | None = None,
) -> Tensor:
    """LayerNorm of a residual sum.

    Args:
        x: [num_rows, hidden], the output of a matrix product, in the compute dtype.
        bias: [hidden], that product's bias.
        residual: [num_rows, hidden], float32 or float64: the residual stream keeps its precision.
        weight, shift: [hidden], LayerNorm's.
        eps: added to the variance.
        factors: dropout's factors [num_rows, hidden], or None.

    Returns:
        [num_rows, hidden] of the residual's dtype.
    """
    update = x + bias.to(x.dtype)
    if factors is not None:
        update = update * factors
    return layernorm_reference(residual + update, weight, shift, eps)


def layernorm_reference(x: Tensor, weight: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension, statistics in float32 or above."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not tangent_is_differentiated(x):
        return F.layer_norm(x, x.shape[-1:], weight, shift, eps)
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return weight * (centred * torch.rsqrt(variance + eps)) + shift


def _forward(ops, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    """out, and the rows' mean and rstd."""
    x, _, residual = inputs[:3]
    out = empty_like(residual)
    mean, rstd = empty_floats(x, x.shape[0]), empty_floats(x, x.shape[0])
    ops.dropout_add_layernorm_forward_into(*inputs, out, None, mean, rstd)
    return out, mean, rstd


def _backward(ops, grad: Tensor, inputs, saved, needs) -> tuple[Tensor | None, ...]:
    x, bias, residual, weight, _shift, _eps, *dropout = inputs
    dx, dresidual = empty_like(x), empty_like(residual)
    segments = sums = None
    if needs[1] or needs[3] or needs[4]:
        segments = _segments_of(x)
        sums = empty_floats(x, len(segments) - 1, 3, x.shape[1])
    ops.dropout_add_layernorm_backward_into(
        grad, None, x, bias, residual, weight, *saved, *dropout, dx, dresidual, segments, sums
    )
    if sums is None:
        return dx, None, dresidual, None, None
    dbias, dweight, dshift = column_sums(ops, sums.flatten(1)).chunk(3)
    return dx, dbias.to(bias.dtype), dresidual, dweight.to(weight.dtype), dshift.to(weight.dtype)


def _segments_of(x: Tensor) -> Tensor:
    """Bounds of blocks of rows, int32: few for the sums of each, many for a GPU."""
    num_rows = x.shape[0]
    num_segments = -(-num_rows // _SEGMENT_ROWS)
    bounds = torch.arange(num_segments + 1, dtype=torch.int32, device=x.device)
    return (bounds * _SEGMENT_ROWS).clamp_(max=num_rows)


def _jvp(ops, tangents, inputs, saved) -> Tensor:
    x, bias, residual, weight, _shift, _eps, *dropout = inputs
    x_tangent = torch.zeros_like(x) if tangents[0] is None else tangents[0]
    residual_tangent = torch.zeros_like(residual) if tangents[2] is None else tangents[2]
    out = empty_like(residual)
    ops.dropout_add_layernorm_jvp_into(
        x_tangent, residual_tangent, x, bias, residual, weight, *saved, *dropout, out, None
    )
    return out


def _why_not(backend: Backend, x, bias, residual, weight, shift, *_) -> str | None:
    reason = backend.tensor_reason(
        differentiable={"x": x, "residual": residual},
        constant={"bias": bias, "weight": weight, "shift": shift},
    )
    if reason is None and backend is CUDA and residual.dtype not in (torch.float32, x.dtype):
        return f"the residual is {residual.dtype}, neither float32 nor of the dtype of x"
    return reason or backend.width_reason("x", x)


def _run_reference(x, bias, residual, weight, shift, eps, p, rng, site, offsets) -> Tensor:
    factors = dropout_mask(offsets, x.shape[1], p, rng, site, x.dtype) if p > 0 else None
    return dropout_add_layernorm_reference(x, bias, residual, weight, shift, eps, factors)


_run = differentiable(
    Rule("dropout_add_layernorm_forward_into", _forward, _backward, _jvp, weights=(1, 3, 4))
)
_op = fused_op("dropout_add_layernorm", _run, _why_not, _run_reference)


def dropout_add_layernorm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
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
    """LN(residual + dropout(x + bias)).

    Differentiable in the five tensors; in forward mode in x and residual. The fused ops add, drop
    and normalise in float32 whatever the dtypes, so a kept element is scaled by 1 / (1 - p) rounded
    to float32; the reference rounds to the dtype of ``x`` in between.

    Args:
        x: [num_rows, hidden], float32 or bfloat16 (float64 on the reference).
        bias, weight, shift: [hidden].
        residual: [num_rows, hidden], of its own dtype.
        eps: added to the variance, >= 0.
        p: probability of dropping an element of x + bias, in [0, 1).
        rng: int64 [2], (seed, step); not needed for p = 0.
        site: which dropout of the model this is.
        offsets: int64 [num_rows], the logical index of each row's first element (``ops.dropout``);
            not needed for p = 0.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Returns:
        [num_rows, hidden] of the residual's dtype.

    Raises:
        ValueError, TypeError: an argument does not fit, by its name.
        BackendError: the named backend cannot run these inputs.
    """
    rng, offsets = dropout_arguments("dropout_add_layernorm", p, rng, offsets, x)
    return _op(x, bias, residual, weight, shift, eps, p, rng, site, offsets, backend=backend)


OPS = (_op,)
