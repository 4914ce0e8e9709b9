"""An encoder's weights as the written-out passes multiply with them, and their gradients.

Query, key and value are one matrix. In bf16 the matrices are copies that the optimiser's pass
refreshes; in fp32 they are the parameters' own memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.layers import BertLayer


@dataclass
class LayerWeights:
    """One layer's weights, or the gradients of them; H hidden, F intermediate.

    Attributes:
        qkv [3H, H], attention_out [H, H], inner [F, H], outer [H, F], qkv_bias [3H]: of the
            compute dtype. Products are x W^T, as in nn.Linear.
        attention_out_bias [H], inner_bias [F], outer_bias [H], norm1, shift1, norm2, shift2 [H]:
            float32.
    """

    qkv: Tensor
    qkv_bias: Tensor
    attention_out: Tensor
    attention_out_bias: Tensor
    norm1: Tensor
    shift1: Tensor
    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor
    norm2: Tensor
    shift2: Tensor


def layer_parameters(layer: BertLayer) -> dict[str, list[nn.Parameter]]:
    """The parameters behind each field of ``LayerWeights``; the fused ones have three."""
    attention = layer.attention.self
    projections = (attention.query, attention.key, attention.value)
    first, second = layer.attention.output, layer.output
    inner = layer.intermediate.dense
    return {
        "qkv": [p.weight for p in projections],
        "qkv_bias": [p.bias for p in projections],
        "attention_out": [first.dense.weight],
        "attention_out_bias": [first.dense.bias],
        "norm1": [first.LayerNorm.weight],
        "shift1": [first.LayerNorm.bias],
        "inner": [inner.weight],
        "inner_bias": [inner.bias],
        "outer": [second.dense.weight],
        "outer_bias": [second.dense.bias],
        "norm2": [second.LayerNorm.weight],
        "shift2": [second.LayerNorm.bias],
    }


MATRICES = frozenset({"qkv", "attention_out", "inner", "outer"})
MULTIPLIED = MATRICES | {"qkv_bias"}
# The order of ``Workspace.norm_sums``, then what is summed over rows.
NORM_VECTORS = ("attention_out_bias", "norm1", "shift1", "outer_bias", "norm2", "shift2")
VECTORS = (*NORM_VECTORS, "inner_bias", "qkv_bias")


class EncoderWeights:
    """The weights of all layers in a compute dtype.

    In float32 query, key and value of a layer are moved into one piece of memory, which their
    parameters then view; everything else is the parameters themselves.

    Args:
        encoder: whose weights. dtype: float32 or bfloat16.
    """

    def __init__(self, encoder: MiniBert, dtype: torch.dtype):
        self.dtype = dtype
        self.parameters = [layer_parameters(layer) for layer in encoder.encoder.layer]
        self.copies: dict[int, Tensor] = {}  # by id of the parameter, of the compute dtype
        self.layers = [self._layer(parameters) for parameters in self.parameters]
        self._sources = self._copied()
        self._members = [
            p for parameters in self.parameters for members in parameters.values() for p in members
        ]
        self._addresses = self.addresses()
        self._versions: list[int] = []
        self.refresh()

    @torch.no_grad()
    def _layer(self, parameters: dict[str, list[nn.Parameter]]) -> LayerWeights:
        return LayerWeights(
            **{name: self._field(name, members) for name, members in parameters.items()}
        )

    def _field(self, name: str, members: list[nn.Parameter]) -> Tensor:
        is_copy = name in MULTIPLIED and self.dtype != members[0].dtype
        if not is_copy and (whole := one_piece(members)) is not None:
            return whole
        fused = torch.cat([p.detach() for p in members]).to(self.dtype)
        for p, part in zip(members, fused.chunk(len(members)), strict=True):
            if is_copy:
                self.copies[id(p)] = part
            else:
                p.data = part
        return fused

    def _copied(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that have a copy, and the copies."""
        members = (p for parameters in self.parameters for m in parameters.values() for p in m)
        return [(p, self.copies[id(p)]) for p in members if id(p) in self.copies]

    def addresses(self) -> list[int]:
        """Where the parameters lie; it changes where someone gives them other memory."""
        return [p.data_ptr() for p in self._members]

    def _follow(self) -> None:
        """Takes over parameters that were given other memory, into the same records."""
        for layer, parameters in zip(self.layers, self.parameters, strict=True):
            vars(layer).update(vars(self._layer(parameters)))
        self._sources = self._copied()
        self._addresses, self._versions = self.addresses(), []

    def refresh(self) -> None:
        """Follows weights that something else than the optimiser's pass changed or replaced."""
        if self.addresses() != self._addresses:
            self._follow()
        versions = [p._version for p, _ in self._sources]
        if versions != self._versions:
            with torch.no_grad():
                for p, copy in self._sources:
                    copy.copy_(p)
            self._versions = versions

    def mark_fresh(self) -> None:
        """The optimiser's pass has just written the copies."""
        self._versions = [p._version for p, _ in self._sources]


def one_piece(members: list[nn.Parameter]) -> Tensor | None:
    """Tensors that lie one after the other in memory as one; None where they do not."""
    first = members[0].detach()
    if len(members) == 1:
        return first
    place = first.data_ptr()
    for p in members:
        if p.data_ptr() != place or not p.is_contiguous() or p.dtype != first.dtype:
            return None
        place += p.nbytes
    if any(p.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() for p in members):
        return None
    return first.as_strided((sum(len(p) for p in members), *first.shape[1:]), first.stride())


class ModelGradients:
    """The gradients of a model in two flat buffers, in the order in which a backward makes them.

    That is: heads, the pooler, the layers from the last to the first, the embedding layer but for
    its words, whose gradient has as many rows as words occur. Everything that makes a gradient
    writes here.

    Args:
        encoder: and its weights, as the passes multiply with them.
        num_head_weights: elements of all heads' weights.
        dtype: of the matrices' gradients; that of the passes if None.
        memory: ``matrices`` and ``flat`` to lie in; of its own if None.

    Attributes:
        matrices: of ``dtype`` [num_layers, width]. flat: float32, all else.
        heads: float32 [num_head_weights]. vectors: float32 [num_layers, width], of each layer what
            ``VECTORS`` names. Both are parts of ``flat``.
        layers: records of views, the first layer first.
        by_parameter: each of the encoder's parameters' views by its id; not the word table's.
    """

    def __init__(
        self,
        encoder: MiniBert,
        weights: EncoderWeights,
        num_head_weights: int,
        dtype: torch.dtype | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
    ):
        matrices = [{n: getattr(w, n) for n in sorted(MATRICES)} for w in weights.layers]
        vectors = [{n: getattr(w, n) for n in VECTORS} for w in weights.layers]
        pooler = [] if encoder.pooler is None else list(encoder.pooler.parameters())
        tables = embedding_tables(encoder)[1:]
        count, width = len(vectors), sum(x.numel() for x in vectors[0].values())
        others = [x.numel() for x in (*pooler, *tables)]
        first, num_pooler = vectors[0]["norm1"], sum(others[: len(pooler)])
        length = num_head_weights + count * width + sum(others)
        self.flat = first.new_zeros(length) if memory is None else memory[1]
        sizes = [num_head_weights, num_pooler, count * width, sum(others) - num_pooler]
        self.heads, of_pooler, of_layers, of_tables = self.flat.split(sizes)
        self.vectors = of_layers.view(count, width)
        first = matrices[0]["qkv"]
        width = sum(x.numel() for x in matrices[0].values())
        made = memory is None
        self.matrices = first.new_zeros(count, width, dtype=dtype) if made else memory[0]
        self.layers = [
            LayerWeights(**(_views(self.matrices[-1 - i], a) | _views(self.vectors[-1 - i], b)))
            for i, (a, b) in enumerate(zip(matrices, vectors, strict=True))
        ]
        self.by_parameter = _views(of_pooler, {id(p): p for p in pooler})
        self.by_parameter |= _views(of_tables, {id(p): p for p in tables})
        for buffers, parameters in zip(self.layers, weights.parameters, strict=True):
            for name, members in parameters.items():
                parts = getattr(buffers, name).chunk(len(members))
                self.by_parameter |= {id(p): g for p, g in zip(members, parts, strict=True)}

    @property
    def num_bytes(self) -> int:
        return self.matrices.nbytes + self.flat.nbytes

    def vectors_of(self, *names: str) -> Tensor:
        """float32 [num_layers, width]: these neighbours in ``VECTORS``, the last layer first."""
        views = [getattr(self.layers[-1], name) for name in names]
        start = views[0].storage_offset() - self.vectors.storage_offset()
        return self.vectors[:, start : start + sum(view.numel() for view in views)]


def embedding_tables(encoder: MiniBert) -> list[nn.Parameter]:
    """The embedding layer's parameters in the order of ``embed``'s gradients."""
    layer = encoder.embeddings
    return [
        layer.word_embeddings.weight,
        layer.position_embeddings.weight,
        layer.token_type_embeddings.weight,
        layer.LayerNorm.weight,
        layer.LayerNorm.bias,
    ]


def _views(flat: Tensor, tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """Pieces of ``flat``, one after the other, of the shapes of ``tensors``."""
    parts = flat.split([x.numel() for x in tensors.values()])
    return {key: part.view(x.shape) for (key, x), part in zip(tensors.items(), parts, strict=True)}
