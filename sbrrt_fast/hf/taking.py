"""Which modules of a model can be taken, and why the others are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from torch import nn

from sbrrt_fast.hf.calls import encoder_of
from sbrrt_fast.hf.embeddings import EmbeddingsKernels
from sbrrt_fast.hf.layers import Fused
from sbrrt_fast.hf.report import KernelRow
from sbrrt_fast.ops.attention import shape_reason

_STOCK = "transformers.models.{0}.modeling_{0}"
FAMILIES = {_STOCK.format(name): name for name in ("bert", "roberta", "distilbert", "electra")}
"""The module of ``sbrrt_fast.hf`` by the module of transformers whose classes it takes."""


@dataclass(frozen=True)
class Candidate:
    """A module that the kernels are for.

    Attributes:
        name: as the whole model's ``named_modules`` has it.
        fused: the class for it. reason: why it is left alone; empty where it is taken.
    """

    name: str
    module: nn.Module
    fused: type[Fused]
    reason: str = ""

    @property
    def row(self) -> KernelRow:
        ops = () if self.reason else self.fused._sbrrt_ops
        return KernelRow(self.name, type(self.module).__name__, ops, self.reason)


def family_of(module: nn.Module) -> ModuleType | None:
    """The module of ``sbrrt_fast.hf`` for a model's class, or None."""
    for kind in type(module).__mro__:
        name = FAMILIES.get(kind.__module__)
        if name is not None:
            return import_module(f"sbrrt_fast.hf.{name}")
    return None


def candidates_of(name: str, model: nn.Module) -> Iterator[Candidate]:
    """The candidates inside a family's bare model (``BertModel``), by its name."""
    family = family_of(model)
    encoder = encoder_of(model)
    reason = _why_no_model(family, model)
    blocks = reason or _why_no_encoder(family, model, encoder)
    for path, module in model.named_modules(prefix=name):
        fused = _fused_class(family, module)
        if fused is not None:
            why = reason if issubclass(fused, EmbeddingsKernels) else blocks
            yield Candidate(path, module, fused, why or fused._sbrrt_why_not(module))


def _fused_class(family: ModuleType, module: nn.Module) -> type[Fused] | None:
    if isinstance(module, Fused):
        return type(module)
    return family.FUSED.get(type(module))


def _why_no_model(family: ModuleType, model: nn.Module) -> str:
    if type(model).forward is not family.MODEL.forward:
        return f"{type(model).__name__} has a forward of its own"
    config = model.config
    for name in ("is_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            return f"config.{name} is set, and the kernels are an encoder's"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"config.position_embedding_type is {config.position_embedding_type!r}"
    return ""


def _why_no_encoder(family: ModuleType, model: nn.Module, encoder: nn.Module) -> str:
    """Why the layers cannot run on packed rows, or nothing."""
    if getattr(model.config, "chunk_size_feed_forward", 0):
        return "config.chunk_size_feed_forward cuts padded batches"
    parts = [("", encoder)] + [
        (f"layer {i}{path}", part)
        for i, layer in enumerate(encoder.layer)
        for path, part in _parts_of(layer)
    ]
    for path, part in parts:
        if _fused_class(family, part) is None:
            return f"{path or 'the encoder'} is a {type(part).__name__}, unknown here"
    return _why_no_attention(encoder)


def _parts_of(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a layer that hand the packing on."""
    yield "", layer
    if hasattr(layer, "attention"):
        yield ".attention", layer.attention
    for name in ("self", "output"):
        if hasattr(getattr(layer, "attention", None), name):
            yield f".attention.{name}", getattr(layer.attention, name)
    if hasattr(layer, "output"):
        yield ".output", layer.output


def _why_no_attention(encoder: nn.Module) -> str:
    for layer in encoder.layer:
        attention = getattr(layer.attention, "self", layer.attention)
        heads = getattr(attention, "num_attention_heads", None) or attention.n_heads
        head_dim = attention.attention_head_size
        if reason := shape_reason(heads * head_dim, heads, 0, 0):
            return reason
        if getattr(attention, "scaling", head_dim**-0.5) != head_dim**-0.5:
            return f"attention scales by {attention.scaling:g}, not by {head_dim}^-0.5"
    return ""
