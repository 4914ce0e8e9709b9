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
from sbrrt_fast.smart.presets import ascent_options
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
        self.adversarial_heads = heads if stream is heads.stream else heads.on(stream)
        self.eps = torch.finfo(student.weights.dtype).eps
        self.branch = branch_of(config, self.eps)

    def clean_pass(self, noise: Tensor) -> HeadOutputs:
        """The clean outputs; a tangent ascent's first JVP is computed in the same pass."""
        self.delta = self.config.sigma * noise * self.mask[:, None]
        self.student.set_input(self.clean.rows, self.embeddings)
        with_tangent = self.config.gradient == "tangent"
        if with_tangent:
            scale = self._put_tangent(self.delta)
        hidden = self.student.forward(self.clean, self.clean if with_tangent else None)
        with torch.enable_grad():
            self.clean_outputs = self.heads(hidden[slice(*self.clean.rows)])
        self._first_jvp = (scale, self._logit_tangents(hidden)) if with_tangent else None
        return self.clean_outputs

    def ascend(self) -> Tensor:
        """T_x ascent steps; the perturbation float32 [num_tokens, hidden]."""
        config, batch = self.config, self.heads.stream.batch
        for _ in range(config.num_steps):
            is_tangent = config.gradient == "tangent"
            gradient = self.tangent_gradient() if is_tangent else self.finite_gradient()
            rows = self.delta, gradient, self.mask, batch.sequence, batch.num_sequences
            self.delta = smart_ascend(*rows, **ascent_options(config), backend=self.backend)
        return self.delta

    def gain(self, noise: Tensor) -> list[Tensor]:
        """R_s(delta) / R_s(a random direction of the same norms), per batch."""
        batch = self.heads.stream.batch
        random = random_direction(
            noise * self.mask[:, None], self.delta, batch.sequence, batch.num_sequences, self.config
        )
        branch = gain_branch_of(self.config, self.eps)
        ours, theirs = (self._r_s(delta, branch) for delta in (self.delta, random))
        return [a / b for a, b in zip(ours, theirs, strict=True)]

    def adversarial_pass(self) -> tuple[HeadOutputs, list[Tensor], list[Tensor]]:
        """The adversarial rows, ready for a backward.

        Returns:
            their outputs; R_s of each batch with its graph; and what to report as R_s. The two
            differ only where the radius is below the precision: there the first is R_s of a
            scaled perturbation, scaled back, and the second its linearisation.
        """
        factor, values = 1.0, None
        if self.branch == "linear":
            values = self._r_s(self.delta, "linear")
            factor = max(1.0, SCALED_RESOLUTION * self.eps / self.config.radius)
        hidden = self._forward(self.delta if factor == 1.0 else factor * self.delta)
        with torch.enable_grad():
            outputs = self.adversarial_heads(hidden)
            triples = zip(self.divergences, outputs.logits, self.clean_outputs.logits, strict=True)
            losses = [l_s(z, w).mean() / factor**2 for l_s, z, w in triples]
        return outputs, losses, losses if values is None else values

    def tangent_gradient(self) -> Tensor:
        """The gradient of mean l_s at x + delta, to first order in delta."""
        scale, tangents = self._first_jvp or self._jvp(self.delta)
        self._first_jvp = None
        triples = zip(self.divergences, self.clean_outputs.logits, tangents, strict=True)
        cotangents = [l_s.fisher(w.detach(), t) / len(w) for l_s, w, t in triples]
        grad = self.heads.vjp(self.clean_outputs, cotangents)
        return scale * self.student.backward(grad, [self.clean], weights=False)

    def finite_gradient(self) -> Tensor:
        """The gradient of mean l_s at x + delta, by a forward and a backward there."""
        hidden = self._forward(self.delta)
        with torch.enable_grad():
            outputs = self.adversarial_heads(hidden)
            triples = zip(self.divergences, outputs.logits, self.clean_outputs.logits, strict=True)
            total = sum(l_s(z, w.detach()).mean() for l_s, z, w in triples)
            grad = torch.autograd.grad(total, outputs.pooled)[0]
        return self.student.backward(self.heads.spread(grad), [self.block], weights=False)

    def _r_s(self, delta: Tensor, branch: str) -> list[Tensor]:
        """R_s of each batch, without a graph."""
        logits = [w.detach() for w in self.clean_outputs.logits]
        if branch == "linear":
            scale, tangents = self._jvp(delta)
            triples = zip(self.divergences, logits, tangents, strict=True)
            return [l_s.delta(w, scale * t).mean() for l_s, w, t in triples]
        outputs = self.adversarial_heads(self._forward(delta))
        triples = zip(self.divergences, outputs.logits, logits, strict=True)
        return [l_s(z, w).mean() for l_s, z, w in triples]

    def _forward(self, delta: Tensor) -> Tensor:
        """Last hidden states of the perturbed rows."""
        self.student.set_input(self.block.rows, self.embeddings + delta)
        return self.student.forward(self.block)[slice(*self.block.rows)]

    def _jvp(self, delta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(scale, J delta / scale) of the logits, over the clean activations."""
        scale = self._put_tangent(delta)
        return scale, self._logit_tangents(self.student.forward(None, self.clean))

    def _put_tangent(self, delta: Tensor) -> Tensor:
        """At unit scale a tangent is far from the dtype's smallest numbers; it is linear in it."""
        scale = delta.abs().amax().clamp(min=torch.finfo(delta.dtype).tiny)
        self.student.set_input(self.clean.tangent_rows, delta / scale)
        return scale

    def _logit_tangents(self, hidden: Tensor) -> list[Tensor]:
        return self.heads.jvp(self.clean_outputs, hidden[slice(*self.clean.tangent_rows)])
