"""The encoder's passes over all layers, on a workspace."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from sbrrt_fast.model import dropout as sites
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.packed.layer import Block, Layer, span_of
from sbrrt_fast.model.packed.weights import EncoderGradients, EncoderWeights
from sbrrt_fast.model.packed.workspace import Workspace, padded_rows
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.ops.embed import embed_forward


class PackedEncoder:
    """A MiniBert's forward, tangent, pull-back and backward, without autograd.

    Args:
        encoder: whose weights; packed batches only.
        ops: the writing ops of one backend, by name (``ops._backend.backends``).
        dtype: of the matrix products, float32 or bfloat16. Hidden states between layers and
            LayerNorm's statistics are float32.
        trains: False for a teacher: nothing is saved for a backward.
    """

    def __init__(self, encoder: MiniBert, ops, dtype: torch.dtype, trains: bool = True):
        self.encoder, self.ops, self.config = encoder, ops, encoder.config
        self.weights = EncoderWeights(encoder, dtype)
        device = encoder.embeddings.word_embeddings.weight.device
        self.workspace = Workspace(self.config, dtype, device, keep=trains)
        self.gradients = EncoderGradients(self.weights) if trains else None
        self.layers = [
            Layer(ops, self.config, i, weights) for i, weights in enumerate(self.weights.layers)
        ]

    def begin(self, num_rows: int) -> None:
        """Makes room for a round; what was saved is lost."""
        self.saved = self.workspace.layers(num_rows)
        self.d = self.workspace.cotangents() if self.workspace.keep else None

    def embed(self, stream: DropoutStream) -> tuple[Tensor, Tensor, Tensor]:
        """The embedding layer's output [num_tokens, hidden], and its mean and rstd."""
        norm = self.encoder.embeddings.LayerNorm
        return embed_forward(
            self.ops,
            *self._tokens(stream),
            norm.weight,
            norm.bias,
            norm.eps,
            *self._embedding_site(stream),
        )

    def embed_backward(
        self, grad: Tensor, stream: DropoutStream, mean: Tensor, rstd: Tensor
    ) -> dict[int, Tensor | RowGradient]:
        """Gradients by id of the parameter; the word table's only for the words that occur.

        Args:
            grad: float32 [num_tokens, hidden]; mean, rstd: what ``embed`` returned.
        """
        tables, (_, positions, types, words, *others) = self._tables, self._tokens(stream)
        batch = stream.batch.with_words()
        occurring = words.detach()[batch.words]
        grads = [torch.empty_like(occurring), *(torch.empty_like(t) for t in tables[1:])]
        self.ops.embed_backward_into(
            grad, batch.word_index, positions, types, occurring, *others, tables[3], mean, rstd,
            *self._embedding_site(stream), batch.token_order.view(3, -1), *grads,
        )  # fmt: skip
        gradients = [RowGradient(batch.words, grads[0]), *grads[1:]]
        return {id(p): g for p, g in zip(tables, gradients, strict=True)}

    @property
    def _tables(self) -> list[nn.Parameter]:
        """In the order of the op's gradients."""
        layer = self.encoder.embeddings
        return [
            layer.word_embeddings.weight,
            layer.position_embeddings.weight,
            layer.token_type_embeddings.weight,
            layer.LayerNorm.weight,
            layer.LayerNorm.bias,
        ]

    def set_input(self, rows: tuple[int, int], x: Tensor) -> None:
        """Sets the first layer's input in some rows."""
        first = self.saved[0].rows(*rows)
        first.x.copy_(x)
        if first.x_low.dtype != first.x.dtype:
            first.x_low.copy_(x)

    def forward(self, primal: Block | None, tangent: Block | None = None) -> Tensor:
        """Last hidden states float32 [all rows, hidden]; see ``Layer.forward``."""
        for layer, (saved, next_saved) in zip(self.layers, pairwise(self.saved), strict=True):
            layer.forward(saved, next_saved, primal, tangent)
        return self.saved[-1].x

    def backward(self, grad: Tensor, blocks: list[Block], weights: bool = True) -> Tensor:
        """Gradient at the first layer's input, float32 [rows, hidden].

        Args:
            grad: float32 [rows, hidden], at the last hidden states of the blocks' rows.
            weights: also leaves the weights' gradients in ``gradients``.
        """
        start, stop = span_of(blocks)
        d, extra = self.d.rows(start, stop), self.d.rows(stop, padded_rows(start, stop)[1])
        d.hidden.copy_(grad)
        for zeros in (d.product, extra.narrow, extra.qkv):  # the others follow from these
            zeros.zero_()
        for i in reversed(range(len(self.layers))):
            buffers = self.gradients.layers[i] if weights else None
            self.layers[i].backward(self.saved[i], self.d, blocks, buffers)
        return d.hidden + d.product

    def _tokens(self, stream: DropoutStream) -> tuple[Tensor, ...]:
        batch = stream.batch
        return batch.input_ids, batch.positions, batch.token_types, *self._tables[:3]

    def _embedding_site(self, stream: DropoutStream) -> tuple:
        config = self.config
        return stream.hidden(config.hidden_size, config.hidden_dropout_prob, sites.EMBEDDING_SITE)
