"""Whether a module is torch's own and nothing else, so that its weights say what it computes.

Adapters replace a module, hooks, parametrisations and sharding add to it: such a module is called,
never read past.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def is_traced() -> bool:
    """Whether a graph for elsewhere is made, which is to hold transformers' own operations."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of just this type, without hooks and with the forward of its type."""
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    return not any(getattr(module, name) for name in _HOOKS)


def product_and_bias(dense: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x W^T, bias), or the module's output and zeros where it is no plain linear layer."""
    if is_plain(dense, nn.Linear) and dense.bias is not None:
        return nn.functional.linear(x, dense.weight), dense.bias
    product = dense(x)
    return product, product.new_zeros(product.shape[-1])


def dropout_rate(dropout: nn.Module) -> float | None:
    """The probability with which a module drops now; None where only its forward knows."""
    if type(dropout) is nn.Identity:
        return 0.0
    if not is_plain(dropout, nn.Dropout):
        return None
    return float(dropout.p) if dropout.training else 0.0


def is_plain_norm(norm: nn.Module) -> bool:
    """Whether a module is LayerNorm with weights over the last dimension."""
    if not is_plain(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
        return False
    return norm.weight is not None and norm.bias is not None


def is_plain_table(table: nn.Module) -> bool:
    """Whether a module is an embedding whose gradient is dense and unscaled."""
    if not is_plain(table, nn.Embedding) or table.max_norm is not None:
        return False
    return not (table.sparse or table.scale_grad_by_freq)


def is_gelu(activation: object) -> bool:
    """Whether an activation is gelu by the error function: torch's, or transformers' ``gelu``."""
    if activation is nn.functional.gelu:
        return True
    if isinstance(activation, nn.GELU):
        return is_plain(activation, nn.GELU) and activation.approximate == "none"
    is_theirs = type(activation).__name__ == "GELUActivation"
    is_exact = is_theirs and activation.act is nn.functional.gelu
    return is_exact and is_plain(activation, type(activation))
