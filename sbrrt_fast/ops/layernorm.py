"""The residual connection of a BERT layer: LN(residual + dropout(x + bias)).

With s = residual + M * (x + bias), mean m and variance v of s over its last dimension:

    y = weight * (s - m) / sqrt(v + eps) + shift

M holds dropout's factors. Source: arXiv 1810.04805 and arXiv 1607.06450, equation 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops import triton_rows
from sbrrt_fast.ops.autodiff import (
    is_transformed,
    needs_weight_gradients,
    tangent_is_differentiated,
)
from sbrrt_fast.ops.dispatch import Implementation, Op, never
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.dropout_arguments import dropout_arguments
from sbrrt_fast.ops.native import native, native_reason, width_reason
from sbrrt_fast.ops.triton_ops import with_triton


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


class _Function(torch.autograd.Function):
    """The C++ op under autograd for torch.compile to trace; without a tangent."""

    @staticmethod
    def forward(x, bias, residual, weight, shift, eps, p, rng, site, offsets):
        return torch.ops.sbrrt.dropout_add_layernorm_forward(
            x, bias, residual, weight, shift, eps, p, rng, site, offsets
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, bias, residual, weight, _, _, ctx.p, rng, ctx.site, offsets = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, bias, residual, weight, mean, rstd, rng, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        *tensors, rng, offsets = ctx.saved_tensors
        needed = needs_weight_gradients(ctx, 1, 3, 4)
        dx, dresidual, *weights = torch.ops.sbrrt.dropout_add_layernorm_backward(
            grad, *tensors, ctx.p, rng, ctx.site, offsets, needed
        )
        dbias, dweight, dshift = weights if needed else (None, None, None)
        return dx, dbias, dresidual, dweight, dshift, None, None, None, None, None


class _Transformed(_Function):
    """The same with its forward-mode derivative in x and the residual."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Function.setup_context(ctx, inputs, output)
        x, bias, residual, weight, _, _, _, rng, _, offsets = inputs
        ctx.save_for_forward(x, bias, residual, weight, *output[1:], rng, offsets)

    @staticmethod
    def jvp(ctx, x_tangent, _bias, residual_tangent, *_):
        x, bias, residual, weight, mean, rstd, rng, offsets = ctx.saved_tensors
        tangent = torch.ops.sbrrt.dropout_add_layernorm_jvp(
            torch.zeros_like(x) if x_tangent is None else x_tangent,
            torch.zeros_like(residual) if residual_tangent is None else residual_tangent,
            *(x, bias, residual, weight, mean, rstd, ctx.p, rng, ctx.site, offsets),
        )
        return tangent, None, None


def _run_native(*args) -> Tensor:
    if torch.compiler.is_compiling():
        return _Function.apply(*args)[0]
    if is_transformed(args[0], args[2]):
        return _Transformed.apply(*args)[0]
    return torch.ops.sbrrt.dropout_add_layernorm(*args)


def _why_not(device: str, x, bias, residual, weight, shift, *_) -> str | None:
    reason = native_reason(
        device,
        differentiable={"x": x, "residual": residual},
        constant={"bias": bias, "weight": weight, "shift": shift},
    )
    if reason is None and device == "cuda" and residual.dtype not in (torch.float32, x.dtype):
        return f"the residual is {residual.dtype}, neither float32 nor of the dtype of x"
    return reason or width_reason(device, "x", x)


def _run_reference(x, bias, residual, weight, shift, eps, p, rng, site, offsets) -> Tensor:
    factors = dropout_mask(offsets, x.shape[1], p, rng, site, x.dtype) if p > 0 else None
    return dropout_add_layernorm_reference(x, bias, residual, weight, shift, eps, factors)


_op = Op(
    "dropout_add_layernorm",
    with_triton(
        triton_rows.LAYERNORM,
        *native(_run_native, _why_not),
        Implementation("reference", _run_reference, lambda *args: None, never),
    ),
)


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

    Differentiable in the five tensors; in forward mode on ``cpu`` in x and residual. The native op
    adds, drops and normalises in float32 whatever the dtypes, so a kept element is scaled by
    1 / (1 - p) rounded to float32; the reference rounds to the dtype of ``x`` in between.

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
        backend: ``auto``, ``cpu``, ``triton`` or ``reference``.

    Returns:
        [num_rows, hidden] of the residual's dtype.

    Raises:
        ValueError, TypeError: an argument does not fit, by its name.
        BackendError: the named backend cannot run these inputs.
    """
    rng, offsets = dropout_arguments("dropout_add_layernorm", p, rng, offsets, x)
    return _op(x, bias, residual, weight, shift, eps, p, rng, site, offsets, backend=backend)


OPS = (_op,)
