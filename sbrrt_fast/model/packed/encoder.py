"""The encoder's passes over all layers, on a workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sbrrt_fast.model import dropout as sites
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.packed.layer import Block, Layer, Tangent, span_of
from sbrrt_fast.model.packed.weights import (
    NORM_VECTORS,
    EncoderWeights,
    ModelGradients,
    embedding_tables,
)
from sbrrt_fast.model.packed.workspace import Workspace
from sbrrt_fast.ops.adamw_ema import RowGradient

WEIGHTS = "weights"  # the side stream of the weights' products


class InLine:
    """Side streams that are none: work runs where it stands."""

    def fork(self, name: str) -> AbstractContextManager:
        return nullcontext()

    def join(self, name: str) -> None:
        pass


@dataclass(frozen=True)
class KeptRows:
    """The workspace's first rows, pulled back with cotangents that a factor was left out of.

    Attributes:
        row_factors: float32 [num_rows], the factor of each. sequence_factors: float32
            [num_sequences], the same by sequence.
    """

    row_factors: Tensor
    sequence_factors: Tensor

    @property
    def num_sequences(self) -> int:
        return len(self.sequence_factors)


class PackedEncoder:
    """A MiniBert's forward, tangent, pull-back and backward, without autograd.

    Attributes:
        gradients: of the weights, after ``backward``; None of a teacher.
        streams: where the weights' products of a backward may run beside the rest.
        on_layer: called in ``backward`` with a layer's index as soon as its matrices' gradients are
            complete, on the stream that makes them; all else is complete when it returns.

    Args:
        encoder: whose weights; packed batches only.
        ops: the writing ops of one backend, by name (``ops._backend.backends``).
        dtype: of the matrix products, float32 or bfloat16. Hidden states between layers and
            LayerNorm's statistics are float32.
        trains: False for a teacher: nothing is saved for a backward.
        num_head_weights: elements of the heads' weights, whose gradients lie beside the encoder's.
    """

    def __init__(
        self,
        encoder: MiniBert,
        ops,
        dtype: torch.dtype,
        trains: bool = True,
        num_head_weights: int = 0,
    ):
        self.encoder, self.ops, self.config = encoder, ops, encoder.config
        self.weights = EncoderWeights(encoder, dtype)
        device = encoder.embeddings.word_embeddings.weight.device
        self.workspace = Workspace(self.config, dtype, device, keep=trains)
        self.streams = InLine()
        self.on_layer: Callable[[int], object] = lambda index: None
        self.gradients = ModelGradients(encoder, self.weights, num_head_weights) if trains else None
        self.layers = [
            Layer(ops, self.config, i, weights) for i, weights in enumerate(self.weights.layers)
        ]

    def begin(self, num_rows: int, num_sequences: int) -> None:
        """Makes room for a round; what was saved is lost.

        Args:
            num_rows: of all passes that are kept. num_sequences: in those rows.
        """
        self.saved, self.d = self.workspace.reserve(num_rows, num_sequences)

    def embed(self, stream: DropoutStream) -> tuple[Tensor, Tensor, Tensor]:
        """Sets the first layer's input in the first rows to the embedding layer's output.

        Returns:
            that output [num_tokens, hidden], in the workspace, and its mean and rstd.
        """
        batch, eps = stream.batch, self.encoder.embeddings.LayerNorm.eps
        tokens = batch.input_ids, batch.positions, batch.token_types
        tables, rows = embedding_tables(self.encoder), (0, batch.num_tokens)
        out, statistics = self.input(rows), self.saved[0].x.new_empty(2, batch.num_tokens)
        self.ops.embed_forward_into(
            *tokens, *tables, eps, *self._embedding_site(stream), out, *statistics
        )
        self.lower(rows)
        return out, *statistics

    def embed_backward(
        self, grad: Tensor, stream: DropoutStream, mean: Tensor, rstd: Tensor
    ) -> RowGradient:
        """The word table's gradient, for the words that occur; the others' in ``gradients``.

        Args:
            grad: float32 [num_tokens, hidden]; mean, rstd: what ``embed`` returned.
        """
        words, *tables = embedding_tables(self.encoder)
        batch = stream.batch.with_words()
        occurring = words.detach()[batch.words]
        grad_words = torch.empty_like(occurring)
        self.ops.embed_backward_into(
            grad, batch.word_index, batch.positions, batch.token_types, occurring, *tables[:3],
            mean, rstd, *self._embedding_site(stream), batch.token_order.view(3, -1), grad_words,
            *(self.gradients.by_parameter[id(table)] for table in tables),
        )  # fmt: skip
        return RowGradient(batch.words, grad_words)

    def input(self, rows: tuple[int, int]) -> Tensor:
        """The first layer's input in some rows, float32, to be written; then call ``lower``."""
        return self.saved[0].rows(*rows).x

    def lower(self, rows: tuple[int, int]) -> None:
        """Takes over into the compute dtype what was written to ``input``."""
        first = self.saved[0].rows(*rows)
        if first.x_low.dtype != first.x.dtype:
            first.x_low.copy_(first.x)

    def last_cotangent(self, rows: tuple[int, int]) -> Tensor:
        """Where the gradient at the last hidden states of some rows goes, float32, before a
        ``pull_back`` or ``backward`` of these rows."""
        return self.d[0].rows(*rows).hidden

    def forward(self, primal: Block | None, tangent: Tangent | None = None) -> Tensor:
        """Last hidden states float32 [all rows, hidden]; see ``Layer.forward``."""
        for layer, (saved, next_saved) in zip(self.layers, pairwise(self.saved), strict=True):
            layer.forward(saved, next_saved, primal, tangent)
        return self.saved[-1].x

    def pull_back(self, block: Block, keeps: bool = False) -> Tensor:
        """Gradient at the first layer's input, float32 [rows, hidden]; none of the weights.

        Args:
            block: rows whose ``last_cotangent`` is set.
            keeps: also keeps the sums over the LayerNorms' rows that ``backward`` takes of its
                ``kept`` rows. The products' cotangents are kept always.
        """
        sums = self.workspace.norm_sums[:, : block.num_sequences] if keeps else None
        for index in self._down_to(0):
            self._back(index, [block], sums)
        return self._cotangent(block.rows)

    def backward(
        self, blocks: Sequence[Block], kept: KeptRows | None = None, lowest: int = 0
    ) -> Tensor:
        """Gradient at a layer's input, float32 [rows, hidden]; leaves the weights' too.

        Args:
            blocks: rows whose ``last_cotangent`` is set.
            kept: the rows before those of the blocks, that were pulled back already.
            lowest: the layer at which it ends; those below have no gradients.
        """
        rows, sums = span_of(blocks), self.workspace.norm_sums
        self.workspace.clear_padding(rows[1])
        num_kept = 0
        if kept is not None:
            num_kept = kept.num_sequences
            self._scale(rows[0], kept.row_factors, lowest)
        count = num_kept + sum(block.num_sequences for block in blocks)
        for index in self._down_to(lowest):
            self._back(index, blocks, sums[:, num_kept:count])
            with self.streams.fork(WEIGHTS):
                arguments = self.saved[index], self.d[index], rows[1], self.gradients.layers[index]
                self.layers[index].weight_gradients(*arguments)
                self.on_layer(index)
        self._sum_vectors(rows[1], count, kept, len(self.layers) - lowest)
        self.streams.join(WEIGHTS)
        return self._cotangent(rows)

    def _down_to(self, lowest: int) -> Iterable[int]:
        return reversed(range(lowest, len(self.layers)))

    def _back(self, index: int, blocks: Sequence[Block], norm_sums: Tensor | None) -> None:
        """One layer's backward; ``norm_sums`` has the last layer first."""
        sums = None if norm_sums is None else norm_sums[len(self.layers) - 1 - index]
        self.layers[index].backward(self.saved[index], self.d[index], blocks, sums)

    def _cotangent(self, rows: tuple[int, int]) -> Tensor:
        d = self.d[0].rows(*rows)
        return d.hidden + d.product

    def _scale(self, stop: int, factors: Tensor, lowest: int) -> None:
        """Scales the narrower factor of each product, so that the cotangents are the loss's."""
        space, count = self.workspace, len(self.layers) - lowest
        inputs = space.activations["x_low"][lowest:-1], space.activations["y_low"][lowest:]
        cotangents = (space.cotangents[name][:count] for name in ("narrow1", "narrow2"))
        for kept in (*inputs, *cotangents):
            kept[:, :stop].mul_(factors[:, None])

    def _sum_vectors(
        self, stop: int, num_sequences: int, kept: KeptRows | None, num_layers: int
    ) -> None:
        """The gradients of biases and of the LayerNorms, of all upper layers at once."""
        space, add = self.workspace, self.ops.column_sums_into
        sums = space.norm_sums[:num_layers, :num_sequences].flatten(2)
        rows = None if kept is None else kept.row_factors
        sequences = None if kept is None else kept.sequence_factors
        add(sums, sequences, self.gradients.vectors_of(*NORM_VECTORS)[:num_layers])
        for name, bias in (("wide", "inner_bias"), ("qkv", "qkv_bias")):
            cotangents = space.cotangents[name][:num_layers, :stop]
            add(cotangents, rows, self.gradients.vectors_of(bias)[:num_layers])

    def _embedding_site(self, stream: DropoutStream) -> tuple:
        config = self.config
        return stream.hidden(config.hidden_size, config.hidden_dropout_prob, sites.EMBEDDING_SITE)
