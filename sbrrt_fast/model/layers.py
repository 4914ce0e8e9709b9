"""MiniBert's layers, as BERT's paper describes them, on the fused ops.

Every submodule is called, or is plain (``model.plain``), and then an op may take its weights.
Source: arXiv 1810.04805 and arXiv 1706.03762.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model import dropout as sites
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.plain import is_plain, product_and_bias
from sbrrt_fast.ops.attention import attention, attention_reference
from sbrrt_fast.ops.embed import embed
from sbrrt_fast.ops.gelu import bias_gelu
from sbrrt_fast.ops.layernorm import dropout_add_layernorm


class BertEmbeddings(nn.Module):
    """Word, position and type embeddings, LayerNorm, dropout."""

    backend = "auto"

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, batch: TokenBatch, stream: DropoutStream | None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """[num_tokens, hidden]; ``inputs_embeds``, of that shape, are in the words' place."""
        tables = self.word_embeddings, self.position_embeddings, self.token_type_embeddings
        if inputs_embeds is None and all(map(is_plain, (*tables, self.LayerNorm))):
            return self._fused(batch, stream)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(batch.input_ids)
        total = inputs_embeds + self.position_embeddings(batch.positions)
        hidden = self.LayerNorm(total + self.token_type_embeddings(batch.token_types))
        p = self.config.hidden_dropout_prob
        return stream.drop(hidden, p, sites.EMBEDDING_SITE) if stream else hidden

    def _fused(self, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
        norm, config = self.LayerNorm, self.config
        p = config.hidden_dropout_prob
        return embed(
            batch.input_ids,
            batch.positions,
            batch.token_types,
            self.word_embeddings.weight,
            self.position_embeddings.weight,
            self.token_type_embeddings.weight,
            norm.weight,
            norm.bias,
            norm.eps,
            *(stream.hidden(config.hidden_size, p, sites.EMBEDDING_SITE) if stream else ()),
            backend=self.backend,
        )


class BertSelfAttention(nn.Module):
    """Multi-head attention within each sequence."""

    backend = "auto"

    def __init__(self, config: BertConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        attend = self._packed if batch.packed else self._padded
        return attend(query, key, value, batch, stream)

    def _packed(self, query, key, value, batch: TokenBatch, stream: DropoutStream | None):
        config = self.config
        p, site = config.attention_probs_dropout_prob, sites.attention_site(self.layer)
        return attention(
            query,
            key,
            value,
            batch.cu_seqlens,
            batch.max_length,
            config.num_attention_heads,
            *(stream.attention(p, site) if stream else ()),
            backend=self.backend,
        )

    def _padded(self, query, key, value, batch: TokenBatch, stream: DropoutStream | None):
        heads, p = self.config.num_attention_heads, self.config.attention_probs_dropout_prob
        site, dtype = sites.attention_site(self.layer), value.dtype
        factors = stream.attention_factors(heads, p, site, dtype) if stream else None
        split = [
            batch.pad(x.view(-1, heads, self.config.head_dim)).transpose(1, 2)
            for x in (query, key, value)
        ]
        context = attention_reference(*split, batch.key_mask, factors)
        return batch.unpad(context.transpose(1, 2)).flatten(1)


class ResidualOutput(nn.Module):
    """LN(residual + dropout(x W^T + bias))."""

    backend = "auto"

    def __init__(self, config: BertConfig, in_features: int, site: int):
        super().__init__()
        self.config, self.site = config, site
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor, stream: DropoutStream | None) -> Tensor:
        config, norm = self.config, self.LayerNorm
        product, bias = product_and_bias(self.dense, x)
        p = config.hidden_dropout_prob
        if not is_plain(norm):
            update = product + bias.to(product.dtype)
            return norm(residual + (stream.drop(update, p, self.site) if stream else update))
        return dropout_add_layernorm(
            product,
            bias,
            residual,
            norm.weight,
            norm.bias,
            norm.eps,
            *(stream.hidden(config.hidden_size, p, self.site) if stream else ()),
            backend=self.backend,
        )


class BertAttention(nn.Module):
    """Self-attention and its residual connection."""

    def __init__(self, config: BertConfig, layer: int):
        super().__init__()
        self.self = BertSelfAttention(config, layer)
        site = sites.attention_output_site(layer)
        self.output = ResidualOutput(config, config.hidden_size, site)

    def forward(self, hidden: Tensor, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
        return self.output(self.self(hidden, batch, stream), hidden, stream)


class BertIntermediate(nn.Module):
    """gelu(x W^T + bias)."""

    backend = "auto"

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return bias_gelu(*product_and_bias(self.dense, hidden), backend=self.backend)


class BertLayer(nn.Module):
    """Attention, then the feed-forward network, each with its residual connection."""

    def __init__(self, config: BertConfig, layer: int):
        super().__init__()
        self.attention = BertAttention(config, layer)
        self.intermediate = BertIntermediate(config)
        self.output = ResidualOutput(config, config.intermediate_size, sites.output_site(layer))

    def forward(self, hidden: Tensor, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
        attended = self.attention(hidden, batch, stream)
        return self.output(self.intermediate(attended), attended, stream)


class BertEncoder(nn.Module):
    """The stack of layers.

    Attributes:
        checkpointing: keyword arguments of ``torch.utils.checkpoint.checkpoint``, with which the
            backward computes a layer's activations again; None keeps them.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, i) for i in range(config.num_hidden_layers))
        self.checkpointing: dict[str, Any] | None = None

    def forward(self, hidden: Tensor, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
        for layer in self.layer:
            hidden = self._call(layer)(hidden, batch, stream)
        return hidden

    def _call(self, layer: BertLayer):
        """The layer, or a call that keeps no activations where autograd would.

        In forward mode it is the layer: a tangent is not there any more in the backward.
        """
        is_recorded = torch.is_grad_enabled() and forward_ad._current_level < 0
        if self.checkpointing is None or not is_recorded:
            return layer
        return partial(checkpoint, layer, **self.checkpointing)


class BertPooler(nn.Module):
    """tanh(W h_[CLS] + bias)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))
