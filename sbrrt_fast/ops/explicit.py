"""The fused ops as the written-out passes call them: results go into memory that is there already.

One object per backend, chosen once per run. Nothing here is differentiable by autograd; where
autograd is wanted, use the ops' public functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast import _extension
from sbrrt_fast.ops.native import DTYPES, cuda_missing


class NativeOps:
    """The extension's ops, of the device that the tensors are on.

    Arguments as in the schemas; those after the star are written. Shapes: R rows, H hidden,
    F intermediate, A heads. ``low`` tensors are of the compute dtype.
    """

    def mm(self, a: Tensor, b: Tensor, *, out: Tensor) -> None:
        """a [M, K] times b [K, N]."""
        torch.ops.sbrrt.mm_into.default(a, b, out)

    def attention_forward(self, *args, out: Tensor, logsumexp: Tensor) -> None:
        """(query, key, value [R, H], cu_seqlens, max_length, A, p, rng, site, rows, positions)."""
        torch.ops.sbrrt.attention_forward_into.default(*args, out, logsumexp)

    def attention_jvp(self, *args, out: Tensor) -> None:
        """(query, key, value, their tangents, logsumexp, geometry and dropout as above)."""
        torch.ops.sbrrt.attention_jvp_into.default(*args, out)

    def attention_backward(self, *args, out: Tensor) -> None:
        """(grad, query, key, value, context, logsumexp, ...) -> d qkv [R, 3H]."""
        torch.ops.sbrrt.attention_backward_into.default(*args, *out.chunk(3, 1))

    def layernorm_forward(
        self, *args, out: Tensor, low: Tensor, mean: Tensor, rstd: Tensor
    ) -> None:
        """(x low, bias, residual, weight, shift, eps, p, rng, site, offsets)."""
        torch.ops.sbrrt.dropout_add_layernorm_forward_into.default(
            *args, out, _copy_of(low), mean, rstd
        )

    def layernorm_jvp(self, *args, out: Tensor, low: Tensor) -> None:
        """(x tangent, residual tangent, x, bias, residual, weight, mean, rstd, dropout)."""
        torch.ops.sbrrt.dropout_add_layernorm_jvp_into.default(*args, out, _copy_of(low))

    def layernorm_backward(
        self, grad: Tensor, product: Tensor | None, *args, hidden: Tensor, low: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x, bias, residual, weight, mean, rstd, dropout, need_weight_grads) at grad + product.

        Returns:
            gradients [H] of bias, weight and shift, empty where they are not needed.
        """
        return torch.ops.sbrrt.dropout_add_layernorm_backward_into.default(
            grad, product, *args, low, hidden
        )

    def gelu_forward(self, x: Tensor, bias: Tensor, *, out: Tensor) -> None:
        """x [R, F]."""
        torch.ops.sbrrt.bias_gelu_forward_into.default(x, bias, out)

    def gelu_jvp(self, tangent: Tensor, x: Tensor, bias: Tensor, *, out: Tensor) -> None:
        """tangent, x [R, F]."""
        torch.ops.sbrrt.bias_gelu_jvp_into.default(tangent, x, bias, out)

    def gelu_backward(
        self, grad: Tensor, x: Tensor, bias: Tensor, need_weight_grads: bool, *, out: Tensor
    ) -> Tensor:
        """Returns the bias's gradient [F], empty where it is not needed."""
        return torch.ops.sbrrt.bias_gelu_backward_into.default(
            grad, x, bias, need_weight_grads, out
        )

    def embed_forward(self, *args) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, positions, types, tables, weight, shift, eps, dropout) -> (y, mean, rstd)."""
        return torch.ops.sbrrt.embed_forward.default(*args)

    def embed_backward(self, *args) -> tuple[Tensor, ...]:
        """(grad, ids, positions, types, tables, weight, mean, rstd, dropout, needs, order)."""
        return torch.ops.sbrrt.embed_backward.default(*args)


def _copy_of(low: Tensor) -> Tensor | None:
    """The copy to be written; in float32 there is none beside the result itself."""
    return None if low.dtype == torch.float32 else low


def explicit_ops(backend: str, device: torch.device) -> NativeOps | None:
    """The ops of a backend, or None where the written-out passes cannot run; see ``why_not``."""
    return None if explicit_why_not(backend, device) else NativeOps()


def explicit_why_not(backend: str, device: torch.device) -> str | None:
    """Why the written-out passes cannot run with this backend on this device, or None."""
    if backend not in ("auto", "cpu", "cuda"):
        return f"backend '{backend}' has no written-out passes"
    if device.type not in DTYPES or backend not in ("auto", device.type):
        return f"backend '{backend}' has no written-out passes on {device.type}"
    return cuda_missing() if device.type == "cuda" else _extension.extension_error
