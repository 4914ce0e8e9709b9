"""Bias and exact GELU: gelu(x + bias) with gelu(t) = t * Phi(t), Phi the normal distribution.

Its derivative is Phi(t) + t phi(t), phi the normal density. Source: arXiv 1606.08415, section 2;
BERT uses the exact form with erf.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops._backend.autograd import Rule, differentiable
from sbrrt_fast.ops._backend.backends import Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_like

# x_tangent and out_tangent [num_tangent_rows, features] are those of the last rows
define(
    "bias_gelu_forward_into(Tensor x, Tensor bias, Tensor(a!) out, Tensor? x_tangent=None, "
    "Tensor(b!)? out_tangent=None)",
    "gelu.forward_into",
)
define(
    "bias_gelu_backward_into(Tensor grad, Tensor x, Tensor bias, Tensor(a!) dx, Tensor(b!)? dbias)",
    "gelu.backward_into",
)
define(
    "bias_gelu_jvp_into(Tensor x_tangent, Tensor x, Tensor bias, Tensor(a!) out)", "gelu.jvp_into"
)


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) for x [num_rows, features] and bias [features]; dtype of ``x``."""
    return F.gelu(x + bias.to(x.dtype))


def _forward(ops, x: Tensor, bias: Tensor) -> tuple[Tensor]:
    out = empty_like(x)
    ops.bias_gelu_forward_into(x, bias, out)
    return (out,)


def _backward(ops, grad: Tensor, inputs, saved, needs) -> tuple[Tensor, Tensor | None]:
    x, bias = inputs
    dx, dbias = empty_like(x), empty_like(bias) if needs[1] else None
    ops.bias_gelu_backward_into(grad, x, bias, dx, dbias)
    return dx, dbias


def _jvp(ops, tangents, inputs, saved) -> Tensor:
    out = empty_like(inputs[0])
    ops.bias_gelu_jvp_into(tangents[0], *inputs, out)
    return out


def _why_not(backend: Backend, x: Tensor, bias: Tensor) -> str | None:
    return backend.tensor_reason(differentiable={"x": x}, constant={"bias": bias})


_run = differentiable(Rule("bias_gelu_forward_into", _forward, _backward, _jvp, weights=(1,)))
_op = fused_op("bias_gelu", _run, _why_not, bias_gelu_reference)


def bias_gelu(x: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """gelu(x + bias), with the exact erf.

    Differentiable in both; in forward mode in x. The fused ops compute in float32 whatever the
    dtypes.

    Args:
        x: [num_rows, features], float32 or bfloat16 (float64 on the reference).
        bias: [features].
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``.

    Returns:
        [num_rows, features] of the dtype of ``x``.

    Raises:
        ValueError, TypeError: an argument does not fit, by its name.
        BackendError: the named backend cannot run these inputs.
    """
    return _op(x, bias, backend=backend)


OPS = (_op,)
