"""What a taken model does before a call: it packs the batch, or leaves the call as it was."""

from __future__ import annotations

import inspect
import warnings

from torch import Tensor, nn

from sbrrt_fast.hf.layers import PACKING
from sbrrt_fast.hf.packing import Packing, full_packing, packing_of
from sbrrt_fast.hf.plain import is_traced

PARAMETERS = "_sbrrt_parameters"
"""The attribute of a taken model with its ``parameters_of``."""
ENCODERS = ("encoder", "transformer")  # the names that models give their stack of layers
_NOT_AN_ENCODER = (
    *("encoder_hidden_states", "encoder_attention_mask", "cache", "past_key_values"),
    *("use_cache", "head_mask", "is_causal", "cu_seq_lens_q", "cu_seq_lens_k"),
)
_INDIFFERENT = ("transformers.utils.output_capturing", "torch.distributed.fsdp")
"""Modules whose hooks do not look at hidden states: transformers' own are idle here."""


def encoder_of(model: nn.Module) -> nn.Module:
    """A model's stack of layers."""
    return next(getattr(model, name) for name in ENCODERS if hasattr(model, name))


def pack_call(model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A forward pre-hook: tells the encoder the packing, and takes the mask out of the call.

    A call that cannot be packed runs on transformers' own layers, with a warning that says why.
    """
    encoder = encoder_of(model)
    encoder.__dict__.pop(PACKING, None)
    if is_traced():
        return None
    call = {**dict(zip(model.__dict__[PARAMETERS], args, strict=False)), **kwargs}
    packing = _packing(model, call)
    if isinstance(packing, str):
        warnings.warn(f"a call runs on transformers' own layers: {packing}", stacklevel=2)
        return None
    encoder.__dict__[PACKING] = packing, _is_watched(model, encoder, call)
    return (), call | {"attention_mask": None}


def parameters_of(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of what a model's forward takes, in order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _packing(model: nn.Module, call: dict) -> Packing | str:
    for name in _NOT_AN_ENCODER:
        if call.get(name) is not None and call[name] is not False:
            return f"it has {name}"
    if _setting(model, call, "output_attentions"):
        return "output_attentions asks for probabilities, which they do not keep"
    ids, vectors = call.get("input_ids"), call.get("inputs_embeds")
    inputs = vectors if ids is None else ids
    if inputs is None or inputs.dim() < 2:
        return "it has no batch of input_ids or inputs_embeds"
    mask = call.get("attention_mask")
    if mask is None:
        return full_packing(inputs.shape[0], inputs.shape[1], inputs.device)
    if not isinstance(mask, Tensor) or mask.shape != inputs.shape[:2]:
        return "its attention_mask is no [num_sequences, length] mask of padding"
    return packing_of(mask.to(inputs.device))


def _setting(model: nn.Module, call: dict, name: str) -> object:
    asked = call.get(name)
    return getattr(model.config, name, False) if asked is None else asked


def _is_watched(model: nn.Module, encoder: nn.Module, call: dict) -> bool:
    """Whether somebody looks at hidden states between layers, which then are padded there."""
    if _setting(model, call, "output_hidden_states"):
        return True
    return any(_has_hooks(layer) for layer in encoder.layer)


def _has_hooks(layer: nn.Module) -> bool:
    """Whether a layer has hooks that look at hidden states."""
    hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
    owners = [getattr(hook, "__module__", None) or "" for hook in hooks]
    return not all(owner.startswith(_INDIFFERENT) for owner in owners)
