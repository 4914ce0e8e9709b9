"""Embeddings of transformers' BERT-likes by the fused op, from padded ids to padded vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbrrt_fast.hf.layers import Fused
from sbrrt_fast.hf.packing import draw_rng
from sbrrt_fast.hf.plain import dropout_rate, is_plain_table, is_traced
from sbrrt_fast.hf.residual import is_fusable
from sbrrt_fast.ops.embed import embed


class _WithoutRow(torch.autograd.Function):
    """A table as it is, whose gradient is 0 in one row: ``nn.Embedding``'s ``padding_idx``."""

    @staticmethod
    def forward(ctx, table, row):
        ctx.row = row
        return table.view_as(table)

    @staticmethod
    def backward(ctx, grad):
        # In place: `embed` alone reads the view, so this gradient is its own and nobody else's.
        grad[ctx.row] = 0
        return grad, None


def weight_of(table: nn.Embedding) -> Tensor:
    """A table's weight, differentiated as ``nn.Embedding`` does."""
    weight, row = table.weight, table.padding_idx
    if row is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return weight
    return _WithoutRow.apply(weight, row)


class EmbeddingsKernels(Fused):
    """LN(word[id] + position[p] + type[t]), then dropout. DistilBERT has no types."""

    _sbrrt_ops = ("embed",)

    def _is_fusable(self) -> bool:
        names = "word_embeddings", "position_embeddings", "token_type_embeddings"
        tables = [getattr(self, name) for name in names if hasattr(self, name)]
        is_plain = all(map(is_plain_table, tables)) and is_fusable(self.dropout, self.LayerNorm)
        return is_plain and not is_traced()

    def _fused(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """[num_sequences, length, width] of indices that can be expanded to [.., length]."""
        tokens = [ids.reshape(-1), positions.expand_as(ids).reshape(-1)]
        word, position = weight_of(self.word_embeddings), weight_of(self.position_embeddings)
        if types is None:
            tokens.append(torch.zeros_like(tokens[0]))
            type_ = word.new_zeros(1, word.shape[1])
        else:
            tokens.append(types.expand_as(ids).reshape(-1))
            type_ = weight_of(self.token_type_embeddings)
        norm = self.LayerNorm
        out = embed(
            *tokens, word, position, type_, norm.weight, norm.bias, norm.eps,
            *self._dropout(tokens[0], word.shape[1]), backend=self._sbrrt_backend,
        )  # fmt: skip
        return out.view(*ids.shape, -1)

    def _dropout(self, tokens: Tensor, width: int) -> tuple:
        p = dropout_rate(self.dropout)
        if not p:
            return ()
        offsets = torch.arange(len(tokens), device=tokens.device) * width
        return p, draw_rng(tokens.device), self._sbrrt_site, offsets


class BertEmbeddingsKernels(EmbeddingsKernels):
    """BERT's and ELECTRA's: positions count from 0."""

    def forward(
        self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None, **kwargs
    ):
        is_embedded = input_ids is None or inputs_embeds is not None
        if is_embedded or any(kwargs.values()) or not self._is_fusable():
            return super().forward(input_ids, token_type_ids, position_ids, inputs_embeds, **kwargs)
        if position_ids is None:
            position_ids = self._positions(input_ids)
        if token_type_ids is None:
            token_type_ids = self.token_type_ids[0][position_ids]
        return self._fused(input_ids, position_ids, token_type_ids)

    def _positions(self, input_ids: Tensor) -> Tensor:
        return self.position_ids[:, : input_ids.shape[1]]


class RobertaEmbeddingsKernels(BertEmbeddingsKernels):
    """RoBERTa's: positions count real tokens, from the padding's number on."""

    def _positions(self, input_ids: Tensor) -> Tensor:
        return self.create_position_ids_from_input_ids(input_ids, self.padding_idx)


class DistilBertEmbeddingsKernels(EmbeddingsKernels):
    """DistilBERT's, without types."""

    def forward(self, input_ids, inputs_embeds=None, position_ids=None):
        # As in transformers, ids go before vectors where both are there.
        if input_ids is None or not self._is_fusable():
            return super().forward(input_ids, inputs_embeds, position_ids)
        if position_ids is None:
            position_ids = self.position_ids[:, : input_ids.shape[1]]
        return self._fused(input_ids, position_ids, None)
