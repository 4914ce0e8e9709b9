"""Classes that have the kernels before one of transformers' among their bases."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from sbrrt_fast.hf.layers import (
    AttentionKernels,
    EncoderKernels,
    Fused,
    IntermediateKernels,
    LayerKernels,
    OutputKernels,
    SelfAttentionKernels,
)

_BERT_LIKE = {
    "SelfAttention": SelfAttentionKernels,
    "SelfOutput": OutputKernels,
    "Attention": AttentionKernels,
    "Intermediate": IntermediateKernels,
    "Output": OutputKernels,
    "Layer": LayerKernels,
    "Encoder": EncoderKernels,
}


def bert_like(prefix: str, embeddings: type[Fused]) -> dict[str, type[Fused]]:
    """The kernels of modules that are BERT's with another prefix, by their name."""
    kernels = {"Embeddings": embeddings, **_BERT_LIKE}
    return {f"{prefix}{name}": kind for name, kind in kernels.items()}


def fused_classes(
    stock: ModuleType, kernels: Mapping[str, type[Fused]], module: str
) -> dict[type, type[Fused]]:
    """A subclass of each class of transformers, under its name, by which FSDP and others go.

    Args:
        stock: transformers' module. kernels: by the class's name there.
        module: which has the classes as attributes, where pickle looks for them.
    """
    pairs = [(getattr(stock, name), kind) for name, kind in kernels.items()]
    return {base: type(base.__name__, (kind, base), {"__module__": module}) for base, kind in pairs}
