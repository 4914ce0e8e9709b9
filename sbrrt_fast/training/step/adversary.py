"""SMART's ascent and R_s over written-out passes; ``smart.regularizer`` has the mathematics.

The workspace holds the clean rows first and as many rows behind them: the tangent during the
ascent, then the adversarial pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.packed.encoder import PackedEncoder
from sbrrt_fast.model.packed.layer import Block
from sbrrt_fast.ops.smart_ascend import smart_ascend
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.regularizer import (
    BRANCH_RESOLUTION,
    branch_of,
    gain_branch_of,
    random_direction,
)
from sbrrt_fast.training.step.head_pass import HeadOutputs, HeadPass

# A radius below the precision is made this many times the smallest one that it resolves, where
# the gradient of R_s is wanted: R_s is quadratic there.
SCALED_RESOLUTION = 2.0 * BRANCH_RESOLUTION


class Adversary:
    """The perturbation of one group of batches and what it costs.

    Args:
        student: its workspace has room for twice the batch's tokens.
        heads: of the clean pass. divergences: l_s of each batch of the group.
        config: SMART's resolved settings.
        stream: masks of the adversarial pass, over the same packed batch.
        embeddings: float32 [num_tokens, hidden]. mask: bool [num_tokens], what may be perturbed.
        backend: of the ascent step.
    """

    def __init__(
        self,
        student: PackedEncoder,
        heads: HeadPass,
        config: SmartConfig,
        divergences: list[Divergence],
        stream: DropoutStream,
        embeddings: Tensor,
        mask: Tensor,
        backend: str,
    ):
        self.student, self.heads, self.config = student, heads, config
        self.divergences, self.embeddings, self.mask = divergences, embeddings, mask
        self.backend = backend
        self.clean = Block(heads.stream)
        self.block = Block(stream, heads.stream.batch.num_tokens)
        self.other_heads = heads if stream is heads.stream else heads.on(stream)
        self.eps = torch.finfo(student.weights.dtype).eps
        self.branch = branch_of(config, self.eps)

    def clean_pass(self, noise: Tensor) -> HeadOutputs:
        """The clean outputs; where the ascent starts along a tangent, that comes with them."""
        self.delta = self.config.sigma * noise * self.mask[:, None]
        self.student.set_input(self.clean.rows, self.embeddings)
        rides = self.config.gradient == "tangent"
        if rides:
            scale = self._put_tangent(self.delta)
        hidden = self.student.forward(self.clean, self.clean if rides else None)
        with torch.enable_grad():
            self.at = self.heads(hidden[slice(*self.clean.rows)])
        self._first = (scale, self._logit_change(hidden)) if rides else None
        return self.at

    def ascend(self) -> Tensor:
        """T_x ascent steps; the perturbation float32 [num_tokens, hidden]."""
        config, batch = self.config, self.heads.stream.batch
        for _ in range(config.num_steps):
            gradient = self.tangent_gradient() if config.gradient == "tangent" else self._finite()
            self.delta = smart_ascend(
                self.delta,
                gradient,
                self.mask,
                batch.sequence,
                batch.num_sequences,
                step_size=config.step_size,
                normalize_gradient=config.normalize_gradient,
                projection=config.projection,
                radius=config.radius,
                norm=config.norm,
                level=config.level,
                backend=self.backend,
            )
        return self.delta

    def gain(self, noise: Tensor) -> list[Tensor]:
        """R_s(delta) / R_s(a random direction of the same norms), per batch."""
        batch = self.heads.stream.batch
        random = random_direction(
            noise * self.mask[:, None], self.delta, batch.sequence, batch.num_sequences, self.config
        )
        branch = gain_branch_of(self.config, self.eps)
        found, chance = (self._values(delta, branch) for delta in (self.delta, random))
        return [a / b for a, b in zip(found, chance, strict=True)]

    def adversarial_pass(self) -> tuple[HeadOutputs, list[Tensor], list[Tensor]]:
        """The adversarial rows, ready for a backward.

        Returns:
            their outputs; R_s of each batch with its graph; and what to report as R_s. The two
            differ only where the radius is below the precision: there the first is R_s of a
            scaled perturbation, scaled back, and the second its linearisation.
        """
        factor, values = 1.0, None
        if self.branch == "linear":
            values = self._values(self.delta, "linear")
            factor = max(1.0, SCALED_RESOLUTION * self.eps / self.config.radius)
        hidden = self._forward(self.delta if factor == 1.0 else factor * self.delta)
        with torch.enable_grad():
            found = self.other_heads(hidden)
            pairs = zip(self.divergences, found.logits, self.at.logits, strict=True)
            losses = [l_s(z, w).mean() / factor**2 for l_s, z, w in pairs]
        return found, losses, losses if values is None else values

    def tangent_gradient(self) -> Tensor:
        """The gradient of mean l_s at x + delta, to first order in delta."""
        scale, change = self._first or self._change(self.delta)
        self._first = None
        cotangents = [
            l_s.fisher(w.detach(), t) / len(w)
            for l_s, w, t in zip(self.divergences, self.at.logits, change, strict=True)
        ]
        grad = self.heads.pull_back(self.at, cotangents)
        return scale * self.student.backward(grad, [self.clean], weights=False)

    def _finite(self) -> Tensor:
        """The gradient of mean l_s at x + delta, by a forward and a backward there."""
        hidden = self._forward(self.delta)
        with torch.enable_grad():
            found = self.other_heads(hidden)
            pairs = zip(self.divergences, found.logits, self.at.logits, strict=True)
            total = sum(l_s(z, w.detach()).mean() for l_s, z, w in pairs)
            grad = torch.autograd.grad(total, found.pooled)[0]
        return self.student.backward(self.heads.spread(grad), [self.block], weights=False)

    def _values(self, delta: Tensor, branch: str) -> list[Tensor]:
        """R_s of each batch, without a graph."""
        logits = [w.detach() for w in self.at.logits]
        if branch == "linear":
            scale, change = self._change(delta)
            triples = zip(self.divergences, logits, change, strict=True)
            return [l_s.delta(w, scale * t).mean() for l_s, w, t in triples]
        found = self.other_heads(self._forward(delta))
        pairs = zip(self.divergences, found.logits, logits, strict=True)
        return [l_s(z, w).mean() for l_s, z, w in pairs]

    def _forward(self, delta: Tensor) -> Tensor:
        """Last hidden states of the perturbed rows."""
        self.student.set_input(self.block.rows, self.embeddings + delta)
        return self.student.forward(self.block)[slice(*self.block.rows)]

    def _change(self, delta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(scale, J delta / scale) of the logits, over the clean activations."""
        scale = self._put_tangent(delta)
        return scale, self._logit_change(self.student.forward(None, self.clean))

    def _put_tangent(self, delta: Tensor) -> Tensor:
        """At unit scale a tangent is far from the dtype's smallest numbers; it is linear in it."""
        scale = delta.abs().amax().clamp(min=torch.finfo(delta.dtype).tiny)
        self.student.set_input(self.clean.tangent_rows, delta / scale)
        return scale

    def _logit_change(self, hidden: Tensor) -> list[Tensor]:
        return self.heads.tangent(self.at, hidden[slice(*self.clean.tangent_rows)])
