"""Softmax, LayerNorm and attention by elementary operations, inside a model that calls torch's own.

torch's attention kernels have no forward-mode derivative. Its softmax and LayerNorm have one that
cannot be differentiated: softmax's raises in the backward, LayerNorm's silently drops the terms
through mean and variance, and has another dtype than the output where bf16 meets float32 weights.
Elementary operations have all derivatives, and draw the same dropout masks as attention without a
fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class WrittenOut(TorchFunctionMode):
    """Inside, a model's calls of attention and LayerNorm are written out.

    Args:
        differentiable: softmax too, so that a tangent can be differentiated.
    """

    def __init__(self, differentiable: bool):
        super().__init__()
        self._written_out = _DIFFERENTIABLE if differentiable else _FORWARD

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self._written_out.get(func, func)(*args, **(kwargs or {}))


def layer_norm(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``torch.nn.functional.layer_norm``, with statistics in float32 at least."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide = _widened(x)
    centred = wide - wide.mean(dims, keepdim=True)
    out = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    out = out if weight is None else out * weight
    out = out if bias is None else out + bias
    return out.to(_result_dtype(x))


def softmax(x: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.nn.functional.softmax``, in float32 at least."""
    wide = _widened(x if dtype is None else x.to(dtype))
    powers = (wide - wide.detach().amax(dim, keepdim=True)).exp()
    return (powers / powers.sum(dim, keepdim=True)).to(dtype or _result_dtype(x))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    probabilities = _masked_softmax(scores, attn_mask)
    return torch.dropout(probabilities, dropout_p, True) @ value


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Rows that see nothing are 0, as in torch."""
    if mask is None:
        return softmax(scores, -1)
    if mask.dtype != torch.bool:
        mask, scores = mask > -math.inf, scores + mask.clamp(min=torch.finfo(mask.dtype).min)
    blocked = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return softmax(blocked, -1).masked_fill(~mask, 0.0)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _result_dtype(x: Tensor) -> torch.dtype:
    """Autocast computes both in float32 on CUDA, and leaves the dtype on CPUs."""
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        return torch.promote_types(x.dtype, torch.float32)
    return x.dtype


_FORWARD = {
    functional.scaled_dot_product_attention: attention,
    functional.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
}
_DIFFERENTIABLE = {
    **_FORWARD,
    functional.softmax: softmax,
    torch.softmax: softmax,
    Tensor.softmax: softmax,
}
