"""``attn_implementation="sbrrt"``: the fused attention in all encoders of transformers.

What transformers hands a layer in the place of an attention mask is made here: None without
padding, a ``KeyMask`` for padding, and a 4-d mask for what torch's attention takes over.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.hf.packing import Packing, draw_rng, full_packing, packing_of
from sbrrt_fast.hf.versions import require_transformers
from sbrrt_fast.ops.attention import MAX_LENGTH, attention

NAME = "sbrrt"
_INSTEAD = "choose attn_implementation='sdpa' for this model"


def register_sbrrt_attention() -> None:
    """Makes ``attn_implementation="sbrrt"`` known to transformers; calling it again does nothing.

    Raises:
        ConfigError: transformers is not installed, or too old.
    """
    require_transformers()
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, sbrrt_attention)
    AttentionMaskInterface.register(NAME, sbrrt_mask)


class KeyMask(Tensor):
    """A mask [num_sequences, length] of padding, which knows its packing."""

    packing: Packing

    @classmethod
    def of(cls, mask: Tensor, packing: Packing) -> KeyMask:
        result = mask.as_subclass(cls)
        result.packing = packing
        return result

    __torch_function__ = torch._C._disabled_torch_function_impl


def sbrrt_mask(**call) -> Tensor | None:
    """What the layers get in the place of a mask [num_sequences, length] of padding.

    Args:
        call: as of ``sdpa_mask`` of transformers, ``cache_position`` for ``q_length`` in old ones.

    Raises:
        ConfigError: the model does not attend in both directions to all tokens of a sequence.
    """
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    length = call["q_length"] if "q_length" in call else len(call["cache_position"])
    is_known = call.get("mask_function") is bidirectional_mask_function
    if not is_known or length != call["kv_length"]:
        raise ConfigError(
            f"attn_implementation='{NAME}' attends to all tokens of a sequence, and this model's "
            f"mask is another one (causal, windows, or of another sequence); {_INSTEAD}"
        )
    mask = call.get("attention_mask")
    if mask is None:
        return None
    packing = packing_of(mask)
    if isinstance(packing, str):
        return sdpa_mask(**call)
    return None if packing.slots is None else KeyMask.of(mask, packing)


def sbrrt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention on packed rows, padded in and out; see ``AttentionInterface`` of transformers.

    Args:
        query, key, value: [num_sequences, num_heads, length, head_dim].
        attention_mask: what ``sbrrt_mask`` made, or a 4-d mask, for torch's own attention.

    Returns:
        [num_sequences, length, num_heads, head_dim], zeros at padding; and no probabilities.

    Raises:
        ConfigError: the call is no self-attention in both directions.
    """
    _check(module, query, key, kwargs)
    packing = _packing(query, attention_mask)
    if isinstance(packing, str):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        _warn(packing)
        numbers = {"scaling": scaling, "dropout": dropout, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **numbers)
    num_heads, head_dim = query.shape[1], query.shape[3]
    if scaling is not None and scaling != head_dim**-0.5:
        query = query * (scaling * math.sqrt(head_dim))
    matrices = (packing.pack(x.transpose(1, 2)).flatten(1) for x in (query, key, value))
    batch = packing.cu_seqlens, packing.max_length, num_heads
    out = attention(*matrices, *batch, *_dropout(packing, dropout))
    return packing.unpack(out.view(-1, num_heads, head_dim)), None


def _check(module: nn.Module, query: Tensor, key: Tensor, kwargs: dict) -> None:
    """Refuses what no packing can stand for."""
    if kwargs.get("output_attentions"):
        raise ConfigError(
            f"attn_implementation='{NAME}' keeps no probabilities for output_attentions; "
            "choose attn_implementation='eager' for them"
        )
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if is_causal or query.shape != key.shape:
        what = "is causal" if is_causal else "is not of a sequence with itself"
        raise ConfigError(f"attention of {type(module).__name__} {what}; {_INSTEAD}")


def _packing(query: Tensor, mask: Tensor | None) -> Packing | str:
    if mask is None:
        return full_packing(query.shape[0], query.shape[2], query.device)
    if mask.dim() == 2:
        return mask.packing if isinstance(mask, KeyMask) else packing_of(mask)
    return (
        "the attention mask is 4-dimensional: it was given so, or a row begins with padding, or a "
        f"sequence has more than {MAX_LENGTH} tokens"
    )


def _dropout(packing: Packing, p: float) -> tuple:
    """Masks of a call's own, drawn from torch's generator, whose state checkpointing replays."""
    if not p:
        return ()
    device = packing.cu_seqlens.device
    rows = torch.arange(packing.num_sequences, device=device)
    return p, draw_rng(device), 0, rows, packing.padded_length


def _warn(reason: str) -> None:
    warnings.warn(f"torch's attention runs in the place of sbrrt_fast's: {reason}", stacklevel=3)
