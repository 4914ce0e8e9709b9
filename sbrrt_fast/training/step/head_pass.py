"""Pooling and the tasks' heads of a written-out pass.

They are a few rows in float32, so autograd differentiates them; what goes between them and the
encoder are plain gradients of the last hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.heads import class_logits
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.pooling import pooling_matrix


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of the heads of a group of tasks; one entry per batch of the group.

    Attributes:
        pooled: float32 [num_sequences, hidden] leaf of the outputs' graph.
        outputs: the heads' outputs. logits: the outputs as class logits, for divergences.
    """

    pooled: Tensor
    outputs: list[Tensor]
    logits: list[Tensor]


class HeadPass:
    """The heads of some tasks over one packed batch that holds all their sequences.

    Args:
        model: whose heads.
        names: the tasks, in the batch's order. counts: number of sequences of each; padding
            sequences may follow them.
        stream: the packed batch and its dropout.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        names: Sequence[str],
        counts: Sequence[int],
        stream: DropoutStream,
    ):
        self.model, self.names, self.counts, self.stream = model, names, counts, stream
        self.num_sequences = sum(counts)

    @cached_property
    def matrix(self) -> Tensor:
        whole = pooling_matrix(self.stream.batch, self.model.encoder.pooling)
        return whole[: self.num_sequences]

    @cached_property
    def factors(self) -> Tensor | None:
        config = self.model.config
        p = config.hidden_dropout_prob
        whole = self.stream.pooled_factors(config.hidden_size, p, torch.float32)
        return None if whole is None else whole[: self.num_sequences]

    def on(self, stream: DropoutStream) -> HeadPass:
        """These heads over the batch with another stream's masks."""
        return HeadPass(self.model, self.names, self.counts, stream)

    def __call__(self, hidden: Tensor, model: MultiTaskModel | None = None) -> HeadOutputs:
        """From last hidden states float32 [num_tokens, hidden]; ``model`` may be the teacher."""
        pooled = self.matrix @ hidden
        if torch.is_grad_enabled():
            pooled.requires_grad_()
        return HeadOutputs(pooled, *self._heads(pooled, model or self.model))

    @torch.no_grad()
    def jvp(self, outputs: HeadOutputs, tangent: Tensor) -> list[Tensor]:
        """The logits' tangents from that of the last hidden states (Jacobian-vector product)."""
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(outputs.pooled.detach(), self.matrix @ tangent)
            _, logits = self._heads(dual, self.model)
            return [forward_ad.unpack_dual(x).tangent for x in logits]

    def vjp(self, outputs: HeadOutputs, cotangents: list[Tensor]) -> Tensor:
        """The last hidden states' gradient from the logits' (vector-Jacobian product)."""
        grad = torch.autograd.grad(outputs.logits, outputs.pooled, cotangents, retain_graph=True)[0]
        return self.spread(grad)

    def spread(self, grad: Tensor) -> Tensor:
        """The last hidden states' gradient from the pooled vectors'."""
        return self.matrix.t() @ grad

    def _heads(self, pooled: Tensor, model: MultiTaskModel) -> tuple[list[Tensor], list[Tensor]]:
        if model.encoder.pooler is not None:
            pooled = model.encoder.pooler(pooled)
        factors = None if self.factors is None else self.factors.split(self.counts)
        outputs = [
            model.head_outputs(name, part, factors and factors[i])
            for i, (name, part) in enumerate(
                zip(self.names, pooled.split(self.counts), strict=True)
            )
        ]
        pairs = zip(self.names, outputs, strict=True)
        return outputs, [class_logits(model.tasks[name], x) for name, x in pairs]
