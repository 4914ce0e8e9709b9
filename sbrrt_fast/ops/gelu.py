"""Bias and exact GELU: gelu(x + bias) with gelu(t) = t * Phi(t), Phi the normal distribution.

Its derivative is Phi(t) + t phi(t), phi the normal density. Source: arXiv 1606.08415, section 2;
BERT uses the exact form with erf.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops import triton_rows
from sbrrt_fast.ops.autodiff import is_transformed, needs_weight_gradients
from sbrrt_fast.ops.dispatch import Implementation, Op, never
from sbrrt_fast.ops.native import native, native_reason
from sbrrt_fast.ops.triton_ops import with_triton


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) for x [num_rows, features] and bias [features]; dtype of ``x``."""
    return F.gelu(x + bias.to(x.dtype))


class _Function(torch.autograd.Function):
    """The C++ op under autograd for torch.compile to trace; without a tangent."""

    @staticmethod
    def forward(x, bias):
        return torch.ops.sbrrt.bias_gelu_forward(x, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needed = needs_weight_gradients(ctx, 1)
        dx, dbias = torch.ops.sbrrt.bias_gelu_backward(grad, *ctx.saved_tensors, needed)
        return dx, dbias if needed else None


class _Transformed(_Function):
    """The same with its forward-mode derivative in x."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Function.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, x_tangent, _bias):
        return torch.ops.sbrrt.bias_gelu_jvp(x_tangent, *ctx.saved_tensors)


def _run_native(x: Tensor, bias: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _Function.apply(x, bias)
    if is_transformed(x):
        return _Transformed.apply(x, bias)
    return torch.ops.sbrrt.bias_gelu(x, bias)


def _why_not(device: str, x: Tensor, bias: Tensor) -> str | None:
    return native_reason(device, differentiable={"x": x}, constant={"bias": bias})


_op = Op(
    "bias_gelu",
    with_triton(
        triton_rows.GELU,
        *native(_run_native, _why_not),
        Implementation("reference", bias_gelu_reference, lambda *args: None, never),
    ),
)


def bias_gelu(x: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """gelu(x + bias), with the exact erf.

    Differentiable in both; in forward mode on ``cpu`` in x. The native op computes in float32
    whatever the dtypes.

    Args:
        x: [num_rows, features], float32 or bfloat16 (float64 on the reference).
        bias: [features].
        backend: ``auto``, ``cpu``, ``triton`` or ``reference``.

    Returns:
        [num_rows, features] of the dtype of ``x``.

    Raises:
        ValueError, TypeError: an argument does not fit, by its name.
        BackendError: the named backend cannot run these inputs.
    """
    return _op(x, bias, backend=backend)


OPS = (_op,)
