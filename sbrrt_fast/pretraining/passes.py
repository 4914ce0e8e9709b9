"""How a batch goes through the encoder and back: written out, or under autograd."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.packed.encoder import PackedEncoder
from sbrrt_fast.model.packed.layer import Block
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.ops.written_out import written_out_backend
from sbrrt_fast.training.step.autograd_pass import autocast
from sbrrt_fast.training.step.written_out_model import DTYPES

EncoderGradients = dict[int, Tensor | RowGradient]


class EncoderPasses(Protocol):
    """One batch at a time: ``forward``, then ``backward``."""

    copies: dict[int, Tensor]  # bfloat16 copies of parameters by id, for the update to write

    def forward(self, tokens: TokenBatch, rng: Tensor) -> Tensor:
        """Last hidden states [num_tokens, hidden]; rng is int64 [2], (seed, round)."""

    def backward(self, grad: Tensor) -> EncoderGradients:
        """The encoder's gradients by id of the parameter, from that of the last hidden states."""

    def mark_fresh(self) -> None:
        """The update has just written ``copies``."""


class WrittenOutPasses:
    """``EncoderPasses`` without autograd.

    Args:
        encoder: whose weights. backend, precision: of the run.
    """

    def __init__(self, encoder: MiniBert, backend: str, precision: str):
        self.encoder, self.backend = encoder, backend
        native, reason = written_out_backend(backend, encoder.device)
        assert native is not None, reason
        self.packed = PackedEncoder(encoder, native.ops, DTYPES[precision])
        self.copies = self.packed.weights.copies

    @torch.no_grad()
    def forward(self, tokens: TokenBatch, rng: Tensor) -> Tensor:
        config, packed = self.encoder.config, self.packed
        packed.weights.refresh()
        positions = config.max_position_embeddings
        self.stream = DropoutStream(tokens, rng, positions, backend=self.backend)
        self.block = Block(self.stream.rows(config.hidden_size))
        packed.begin(tokens.num_tokens, tokens.num_sequences)
        _, *self.statistics = packed.embed(self.stream)
        return packed.forward(self.block)[: tokens.num_tokens]

    @torch.no_grad()
    def backward(self, grad: Tensor) -> EncoderGradients:
        packed = self.packed
        packed.last_cotangent(self.block.rows).copy_(grad)
        grad = packed.backward([self.block])
        words = packed.embed_backward(grad, self.stream, *self.statistics)
        pooler = self.encoder.pooler
        others = set() if pooler is None else {id(p) for p in pooler.parameters()}
        found = {i: g for i, g in packed.gradients.by_parameter.items() if i not in others}
        return found | {id(self.encoder.embeddings.word_embeddings.weight): words}

    def mark_fresh(self) -> None:
        self.packed.weights.mark_fresh()


class AutogradPasses:
    """``EncoderPasses`` under autograd, which the others are held against."""

    def __init__(self, encoder: MiniBert, backend: str, precision: str):
        self.encoder, self.backend, self.precision = encoder, backend, precision
        self.copies: dict[int, Tensor] = {}

    @torch.enable_grad()
    def forward(self, tokens: TokenBatch, rng: Tensor) -> Tensor:
        positions = self.encoder.config.max_position_embeddings
        stream = DropoutStream(tokens, rng, positions, backend=self.backend)
        with autocast(self.encoder.device, self.precision):
            embeddings = self.encoder.embed(tokens, stream)
            self.hidden = self.encoder.encode(embeddings, tokens, stream)
        return self.hidden.detach()

    def backward(self, grad: Tensor) -> EncoderGradients:
        parameters = [*self.encoder.embeddings.parameters(), *self.encoder.encoder.parameters()]
        grads = torch.autograd.grad(self.hidden, parameters, grad.to(self.hidden.dtype))
        del self.hidden
        return {id(p): g for p, g in zip(parameters, grads, strict=True)}

    def mark_fresh(self) -> None:
        pass
