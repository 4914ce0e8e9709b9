"""LN(residual + dropout(dense(x))) of transformers' modules, by the fused op."""

from __future__ import annotations

from torch import Tensor, nn

from sbrrt_fast.hf.packing import EncoderPass
from sbrrt_fast.hf.plain import dropout_rate, is_plain_norm
from sbrrt_fast.ops.layernorm import dropout_add_layernorm


def is_fusable(dropout: nn.Module, norm: nn.Module) -> bool:
    """Whether the two are torch's own, and the probability is below 1."""
    p = dropout_rate(dropout)
    return p is not None and p < 1.0 and is_plain_norm(norm)


def residual_norm(
    product: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm: nn.LayerNorm,
    dropout: tuple = (),
    backend: str = "auto",
) -> Tensor:
    """LN(residual + dropout(product + bias)) of packed rows [num_tokens, hidden].

    Args:
        dropout: (p, rng, site, offsets), or nothing; see ``EncoderPass.hidden``.
    """
    return dropout_add_layernorm(
        product, bias, residual, norm.weight, norm.bias, norm.eps, *dropout, backend=backend
    )


def hidden_dropout(encoder_pass: EncoderPass, dropout: nn.Module, site: int) -> tuple:
    """What ``residual_norm`` takes of a plain dropout module."""
    return encoder_pass.hidden(dropout_rate(dropout), site)
