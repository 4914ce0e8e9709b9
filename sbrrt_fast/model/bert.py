"""MiniBert: BERT's encoder as its paper describes it, on batches of side-by-side sequences.

Parameter names are those of Hugging Face's BertModel. Hidden states are [num_tokens, hidden] in
the layout of the batch (``data.batch``). Source: arXiv 1810.04805 and arXiv 1706.03762.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model import dropout as sites
from sbrrt_fast.model.backbone import read_config, resolve_backbone
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.hub import read_weights, save_encoder
from sbrrt_fast.model.modules import read_modules
from sbrrt_fast.model.pooling import POOLINGS, mean_pool
from sbrrt_fast.model.tensors import shapes_only
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

    def forward(self, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
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
        p = config.hidden_dropout_prob
        return dropout_add_layernorm(
            F.linear(x, self.dense.weight),
            self.dense.bias,
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
        product = F.linear(hidden, self.dense.weight)
        return bias_gelu(product, self.dense.bias, backend=self.backend)


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
    """The stack of layers."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, i) for i in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, batch: TokenBatch, stream: DropoutStream | None) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, batch, stream)
        return hidden


class BertPooler(nn.Module):
    """tanh(W h_[CLS] + bias)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class MiniBert(nn.Module):
    """A BERT encoder with pooling.

    Args:
        config: its shape.
        pooling: ``cls`` (tanh pooler on the first token), ``cls_token`` (the first token's hidden
            state as it is) or ``mean`` (over real tokens).
    """

    def __init__(self, config: BertConfig, pooling: str = "cls"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"MiniBert: pooling must be one of {POOLINGS}, got {pooling!r}")
        self.config, self.pooling = config, pooling
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if pooling == "cls" else None
        self.apply(self._initialize)

    def set_config(self, config: BertConfig) -> None:
        """Changes dropout probabilities; the shape must stay."""
        for module in self.modules():
            if hasattr(module, "config"):
                module.config = config

    def set_backend(self, backend: str) -> None:
        """Chooses the implementation of all ops: ``auto`` or one that ``sbrrt-fast info`` shows."""
        for module in self.modules():
            if hasattr(module, "backend"):
                module.backend = backend

    def embed(self, batch: TokenBatch, stream: DropoutStream | None = None) -> Tensor:
        """The embedding layer's output [num_tokens, hidden]: what SMART perturbs."""
        return self.embeddings(batch, stream)

    def encode(
        self, embeddings: Tensor, batch: TokenBatch, stream: DropoutStream | None = None
    ) -> Tensor:
        """Last hidden states [num_tokens, hidden] from the embedding layer's output."""
        return self.encoder(embeddings, batch, stream)

    def pool(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """One vector per sequence, [num_sequences, hidden], of the hidden states' dtype."""
        if self.pooling == "mean":
            return mean_pool(hidden, batch)
        first = batch.pad(hidden)[:, 0]
        return first if self.pooler is None else self.pooler(first)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states of a padded batch, without dropout.

        Args:
            input_ids: int64 [num_sequences, max_length].
            attention_mask: the same shape, 1 at real tokens, which come first; all real if None.
            token_type_ids: the same shape; zeros if None.

        Returns:
            [num_sequences, max_length, hidden].
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        batch = TokenBatch.from_padded(input_ids, attention_mask, token_type_ids)
        return batch.pad(self.encode(self.embed(batch), batch))

    @classmethod
    def from_pretrained(cls, name: str | Path, pooling: str = "checkpoint") -> MiniBert:
        """Loads ``minilm``, a Hugging Face BertModel folder or a hub id; see ``from_folder``.

        Raises:
            WeightsError: also where there is no such backbone, see ``resolve_backbone``.
        """
        return cls.from_folder(resolve_backbone(str(name)), pooling)

    @classmethod
    def from_folder(cls, directory: str | Path, pooling: str = "checkpoint") -> MiniBert:
        """An encoder with the weights of a Hugging Face BertModel folder, in fp32 on the CPU.

        Args:
            pooling: ``cls`` (needs the checkpoint's pooler), ``cls_token``, ``mean``, or what
                ``checkpoint`` says.

        Returns:
            the encoder, with ``source``, the folder of its weights and tokenizer, and ``origin``,
            what ``read_modules`` took of the checkpoint and what it left out.

        Raises:
            WeightsError: see ``read_config``, ``read_modules`` and ``hub.read_weights``.
        """
        modules = read_modules(directory, pooling)
        config = read_config(modules.encoder)
        with shapes_only():
            model = cls(config, modules.pooling)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        model.load_state_dict(read_weights(modules, shapes), strict=True, assign=True)
        model.source, model.origin = modules.encoder, modules
        return model

    def save_pretrained(self, directory: str | Path, tokenizer=None) -> None:
        """Writes a folder that Hugging Face's BertModel reads; see ``model.hub``."""
        save_encoder(self, Path(directory), tokenizer)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
