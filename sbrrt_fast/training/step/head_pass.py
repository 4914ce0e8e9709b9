"""Pooling and the tasks' heads of a written-out pass, with their derivatives; no autograd."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.model.pooling import pooling_matrix
from sbrrt_fast.ops.task_heads import (
    HeadTable,
    heads_forward,
    heads_jvp,
    heads_vjp,
    heads_weight_gradients,
)


@dataclass(frozen=True)
class HeadOutputs:
    """What the heads made of last hidden states.

    Attributes:
        first: float32 [num_sequences, hidden], what pooling has taken of the hidden states.
        pooled: the same shape, after BERT's pooler where there is one.
        outputs: float32 [num_outputs], flat; see ``ops.task_heads``.
    """

    first: Tensor
    pooled: Tensor
    outputs: Tensor


class HeadPass:
    """The heads of a group's tasks over its packed batch.

    Args:
        table: the heads. stream: the packed batch and its dropout.
        encoder: whose pooling; its config has the dropout. backend: of the heads' ops.
    """

    def __init__(self, table: HeadTable, stream: DropoutStream, encoder: MiniBert, backend: str):
        self.table, self.stream, self.encoder, self.backend = table, stream, encoder, backend

    @cached_property
    def matrix(self) -> Tensor:
        """float32 [num_sequences, num_tokens]: pooling, whose transpose is the way back."""
        return pooling_matrix(self.stream.batch, self.encoder.pooling)

    @cached_property
    def factors(self) -> Tensor | None:
        config = self.encoder.config
        p = config.hidden_dropout_prob
        return self.stream.pooled_factors(config.hidden_size, p, torch.float32)

    def on(self, stream: DropoutStream) -> HeadPass:
        """These heads over the batch with another stream's masks."""
        other = HeadPass(self.table, stream, self.encoder, self.backend)
        other.matrix = self.matrix
        return other

    def forward(
        self, hidden: Tensor, weights: HeadWeights, pooler: nn.Module | None
    ) -> HeadOutputs:
        """From last hidden states float32 [num_tokens, hidden]."""
        first = self.matrix @ hidden
        pooled = first if pooler is None else pooler(first)
        outputs = heads_forward(
            self.table, pooled, self.factors, weights.flat, backend=self.backend
        )
        return HeadOutputs(first, pooled, outputs)

    def jvp(self, at: HeadOutputs, weights: HeadWeights, tangent: Tensor, start: int) -> Tensor:
        """The outputs' tangents from that of the last hidden states from row ``start`` on.

        Args:
            tangent: float32 [num_tokens - start, hidden]; it is zero before.
        """
        change = self.matrix[:, start:] @ tangent
        if self.encoder.pooler is not None:
            change = _tanh_gradient(at) * (change @ self.encoder.pooler.dense.weight.t())
        return heads_jvp(
            self.table, at.pooled, self.factors, weights.flat, change, backend=self.backend
        )

    def vjp(self, at: HeadOutputs, weights: HeadWeights, cotangents: Tensor) -> Tensor:
        """The gradient of ``at.pooled`` from that of the outputs."""
        return heads_vjp(
            self.table, at.pooled, self.factors, weights.flat, cotangents, backend=self.backend
        )

    def spread(self, at: HeadOutputs, grad_pooled: Tensor, out: Tensor, start: int = 0) -> None:
        """Writes the gradient of the last hidden states from row ``start`` on."""
        grad = grad_pooled
        if self.encoder.pooler is not None:
            grad = (grad * _tanh_gradient(at)) @ self.encoder.pooler.dense.weight
        torch.mm(self.matrix[:, start:].t(), grad, out=out)


def weight_gradients(
    passes: list[tuple[HeadPass, HeadOutputs, Tensor]], grad_weights: Tensor
) -> None:
    """Writes the heads' gradients, summed over passes with their outputs' gradients."""
    heads, outputs, cotangents = zip(*passes, strict=True)
    heads_weight_gradients(
        heads[0].table,
        [x.pooled for x in outputs],
        [h.factors for h in heads],
        cotangents,
        grad_weights,
        backend=heads[0].backend,
    )


def pooler_gradients(
    passes: list[tuple[HeadOutputs, Tensor]], grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Writes the pooler's gradients, summed over passes with their pooled vectors' gradients."""
    grads = torch.cat([grad * _tanh_gradient(at) for at, grad in passes])
    torch.mm(grads.t(), torch.cat([at.first for at, _ in passes]), out=grad_weight)
    torch.sum(grads, 0, out=grad_bias)


def _tanh_gradient(at: HeadOutputs) -> Tensor:
    return 1.0 - at.pooled.square()
