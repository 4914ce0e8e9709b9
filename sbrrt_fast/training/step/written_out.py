"""One group of batches through a round, with the encoder's passes and the heads written out.

``docs/step.md`` has the picture: which rows of the workspace are whose, and what is kept of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from sbrrt_fast.model.dropout import NOISE_SITE, DropoutStream, StreamRows
from sbrrt_fast.model.packed.encoder import KeptRows
from sbrrt_fast.model.packed.layer import Block, Tangent, span_of
from sbrrt_fast.ops.objective import (
    Objective,
    objective,
    smoothness_cotangents,
    smoothness_values,
)
from sbrrt_fast.smart.ascent import Ascent, Tokens
from sbrrt_fast.training.step.group import Group
from sbrrt_fast.training.step.head_pass import (
    HeadOutputs,
    HeadPass,
    pooler_gradients,
    weight_gradients,
)
from sbrrt_fast.training.step.jacobian import GroupJacobian, Rows, Through
from sbrrt_fast.training.step.round_pass import ADVERSARIAL_PASS, CLEAN_PASS, TEACHER_PASS
from sbrrt_fast.training.step.written_out_model import WrittenOutModel

TEACHER = "teacher"  # the side stream of its pass


class WrittenOutPass:
    """``round_pass.RoundPass`` and ``smart.ascent.CleanPass`` of a group.

    The workspace's rows: clean ones of examples with one output, clean ones of the others, then the
    others' tangent, in whose place the adversarial ones of all come.

    Args:
        model: the written-out one. group: on the device. rng: int64 [2], (seed, round).
    """

    def __init__(self, model: WrittenOutModel, group: Group, rng: Tensor):
        self.model, self.group, self.tokens = model, group, group.tokens
        self.student, self.backend = model.student, model.backend
        positions, self.tables = model.config.max_position_embeddings, model.tables(group)
        drops = model.drops(group.names)
        self.stream = DropoutStream(group.tokens, rng, positions, CLEAN_PASS, self.backend, drops)
        self.heads = HeadPass(self.tables.heads, self.stream, model.encoder, self.backend)
        self.clean_block = Block(self.stream.rows(model.config.hidden_size))
        self.adversarial = self.targets = self.smart_values = self.jacobian = None
        self.smart_scale = 1.0

    # The clean pass

    @torch.no_grad()
    def clean(self, ascent: Ascent | None) -> None:
        """The clean outputs; with a tangent ascent also its first tangent."""
        tokens, ascends = self.tokens, ascent is not None and ascent.is_tangent
        count = 1 if ascent is None else 2  # passes that are kept
        self.student.begin(count * tokens.num_tokens, count * tokens.num_sequences)
        self.embeddings, *self.statistics = self.student.embed(self.stream)
        tangent = self.tangent if ascends else None
        if ascent is not None:
            self.direction = ascent.direction(self.noise(NOISE_SITE), self.perturbed.mask)
        if tangent is not None:
            self.student.input(tangent.rows).copy_(self.direction[tangent.block.start :])
            self.student.lower(tangent.rows)
        self._hidden = self.student.forward(self.clean_block, tangent)
        hidden = self._hidden[: tokens.num_tokens]
        self.at = self.heads.forward(hidden, self.model.weights, self.model.encoder.pooler)
        self.outputs = self.at.outputs

    @cached_property
    def others(self) -> Block | None:
        """The clean rows of examples with more than one output."""
        first, token = self.group.num_row_sequences, self.group.num_row_tokens
        if token == self.tokens.num_tokens:
            return None
        if token == 0:
            return self.clean_block
        return Block(self.clean_block.tokens.tail(first, token), token)

    @property
    def through(self) -> Through:
        arguments = self.student, self.heads, self.model.weights, self.at, self.tangent
        return Through(*arguments)

    @property
    def tangent(self) -> Tangent | None:
        return self.others and Tangent(self.others, self.tokens.num_tokens)

    @cached_property
    def perturbed(self) -> Tokens:
        """Which tokens may be perturbed."""
        tokens, mask = self.tokens, self.tokens.is_real
        if not self.model.smart.perturb_special:
            mask = mask & ~tokens.is_special
        return Tokens(mask, tokens.sequence, tokens.num_sequences)

    def noise(self, site: int) -> Tensor:
        """Standard normal, float32 [num_tokens, hidden]."""
        return self.stream.normal(self.embeddings.shape[-1], site)

    # Around the clean pass

    @property
    def around(self) -> WrittenOutPass:
        return self

    @property
    def smoothness(self) -> WrittenOutPass:
        return self

    def cotangents(self, tangents: Tensor) -> Tensor:
        tables = self.tables
        found = smoothness_cotangents(
            tables.smoothness, self.outputs, tangents, backend=self.backend
        )
        return found if tables.output_shares is None else found * tables.output_shares

    def values(self, changes: Tensor) -> Tensor:
        table = self.tables.smoothness
        return smoothness_values(table, self.outputs, changes, backend=self.backend)

    def first_gradient(self, sigma: float) -> Tensor:
        """The ascent's gradient at sigma times ``direction``, whose tangent ``clean`` computed.

        One pull-back serves all: rows of J of the first examples, the gradient of the others.
        """
        one_output, through = self.tables.one_output, self.others and self.through
        tangents = cotangents = None
        if through is not None:
            tangents = through.outputs_of(self._hidden)
            cotangents = self.cotangents(tangents)
        if one_output is None:
            self.jacobian = GroupJacobian(None, through)
            return sigma * self._pull_back(cotangents, keeps=False)
        count, unit = self.group.num_row_tokens, one_output.unit
        first = unit if through is None else torch.cat([unit, cotangents[len(unit) :]])
        grad = self._pull_back(first, keeps=True)
        rows = Rows(grad[:count], one_output, self.tokens.sequence[:count])
        self.jacobian = GroupJacobian(rows, through)
        changes = rows.jvp(self.direction[:count])
        tangents = changes if through is None else torch.cat([changes, tangents[len(unit) :]])
        ours = rows.vjp(self.cotangents(tangents)[: len(unit)])
        return sigma * (ours if through is None else torch.cat([ours, grad[count:]]))

    def _pull_back(self, cotangents: Tensor, keeps: bool) -> Tensor:
        """The embeddings' gradient over all clean rows from the outputs'."""
        grad_pooled = self.heads.vjp(self.at, self.model.weights, cotangents)
        place = self.student.last_cotangent(self.clean_block.rows)
        self.heads.spread(self.at, grad_pooled, place)
        return self.student.pull_back(self.clean_block, keeps)

    @torch.no_grad()
    def climb(self, ascent: Ascent) -> Tensor:
        """The perturbation float32 [num_tokens, hidden]."""
        sigma, first = ascent.config.sigma, None
        if ascent.is_tangent:
            first = self.first_gradient(sigma)
        else:
            self.jacobian = GroupJacobian(None, self.through)
        return ascent.climb(self, sigma * self.direction, self.perturbed, first)

    def change(self, delta: Tensor) -> Tensor:
        return self._outputs_at(delta).outputs - self.outputs

    def finite_gradient(self, delta: Tensor) -> Tensor:
        at = self._outputs_at(delta)
        labels = self.group.labels
        pulled = objective(
            self.tables.smoothness, self.outputs, labels, at.outputs, backend=self.backend
        )
        heads = self.adversarial_heads
        grad_pooled = heads.vjp(at, self.model.weights, pulled.grad_adversarial)
        heads.spread(at, grad_pooled, self.student.last_cotangent(self.adversarial_block.rows))
        return self.student.pull_back(self.adversarial_block)

    @cached_property
    def adversarial_block(self) -> Block:
        return Block(self._rows(ADVERSARIAL_PASS), self.tokens.num_tokens)

    @cached_property
    def adversarial_heads(self) -> HeadPass:
        return self._heads(ADVERSARIAL_PASS)

    def _other(self, pass_id: int) -> DropoutStream:
        return self.stream if self.model.smart.shared_dropout else self.stream.fork(pass_id)

    def _rows(self, pass_id: int) -> StreamRows:
        """The clean pass's with another's masks, where they are not shared."""
        rows = self.clean_block.tokens
        return rows if self.model.smart.shared_dropout else replace(rows, pass_id=pass_id)

    def _heads(self, pass_id: int) -> HeadPass:
        stream = self._other(pass_id)
        return self.heads if stream is self.stream else self.heads.on(stream)

    def _outputs_at(self, delta: Tensor) -> HeadOutputs:
        block = self.adversarial_block
        torch.add(self.embeddings, delta, out=self.student.input(block.rows))
        self.student.lower(block.rows)
        hidden = self.student.forward(block)[slice(*block.rows)]
        return self.adversarial_heads.forward(hidden, self.model.weights, self.model.encoder.pooler)

    # The rest of the round

    @torch.no_grad()
    def perturb(self, ascent: Ascent, delta: Tensor) -> None:
        """The adversarial outputs, and R_s where the adversarial pass cannot resolve it."""
        if ascent.branch == "linear":
            self.smart_values = ascent.values(self, delta)
        self.smart_scale = ascent.scale
        self.adversarial = self._outputs_at(
            delta if self.smart_scale == 1.0 else self.smart_scale * delta
        )

    @torch.no_grad()
    def teach(self) -> None:
        """The teacher's outputs; on a stream of its own, after what both passes look at."""
        with self.model.streams.fork(TEACHER):
            self.targets = self._teacher_outputs()

    def _teacher_outputs(self) -> Tensor:
        teacher, num_tokens = self.model.momentum, self.tokens.num_tokens
        teacher.begin(num_tokens, 0)
        teacher.embed(self._other(TEACHER_PASS))
        hidden = teacher.forward(Block(self._rows(TEACHER_PASS)))[:num_tokens]
        heads = self._heads(TEACHER_PASS)
        return heads.forward(hidden, self.model.teacher_weights, teacher.encoder.pooler).outputs

    @torch.no_grad()
    def backward(self) -> list[dict[str, Tensor]]:
        """Gradients of everything that trains, into the model's; each task's terms."""
        self.model.streams.join(TEACHER)
        result = self._objective()
        passes = [(self.heads, self.at, result.grad_outputs)]
        if self.adversarial is not None:
            passes.append((self.adversarial_heads, self.adversarial, result.grad_adversarial))
        weight_gradients(passes, self.model.grads.heads)
        if self.model.trains_encoder:
            self._backward(passes)
        return self._all_terms(result.terms)

    def _all_terms(self, terms: Tensor) -> list[dict[str, Tensor]]:
        """Each task's; terms [num_tasks, 4]."""
        group, uncertainty = self.group, self.tables.uncertainty
        pairs = zip(terms, group.repeats, group.shares, strict=True)
        found = [self._terms(*of_task) for of_task in pairs]
        if uncertainty is None:
            return found
        learnt = uncertainty.terms(self.model.weights.flat)
        return [a | b for a, b in zip(found, learnt, strict=True)]

    def _terms(self, terms: Tensor, repeats: int, share: float) -> dict[str, Tensor]:
        """One task's, of the means over all examples of its batches; terms [4]."""
        loss, smart, bregman, total = terms.unbind()
        means = {"loss": loss}
        if self.adversarial is not None:
            means["smart"] = smart
        if self.targets is not None:
            means["bregman"] = bregman
        if share != 1.0:  # which is in the total's weight already
            means = {name: share * value for name, value in means.items()}
        return means | {"total": total if repeats == 1 else total / repeats}

    def _objective(self) -> Objective:
        adversarial, uncertainty = self.adversarial, self.tables.uncertainty
        result = objective(
            self.tables.objective,
            self.outputs,
            self.group.labels,
            None if adversarial is None else adversarial.outputs,
            self.targets,
            self.smart_scale**-2,
            self.smart_values,
            backend=self.backend,
        )
        if uncertainty is None:
            return result
        return uncertainty.weigh(result, self.model.weights.flat, self.model.grads.heads)

    def _backward(self, passes: list[tuple[HeadPass, HeadOutputs, Tensor]]) -> None:
        """The way back from the outputs' gradients.

        Args:
            passes: heads, outputs and these' gradient: clean, and adversarial if there is one.
        """
        grad_pooled = [h.vjp(at, self.model.weights, grad) for h, at, grad in passes]
        pooled = [(at, grad) for (_, at, _), grad in zip(passes, grad_pooled, strict=True)]
        self._pooler_backward(pooled)
        lowest = self.model.resting.lowest_layer
        if lowest == len(self.student.layers):
            return
        rows = self.jacobian and self.jacobian.rows
        start = 0 if rows is None else self.group.num_row_tokens
        kept = rows and rows.finish(passes[0][2][: rows.one_output.num_outputs])
        blocks, count = self._chain(start), self.tokens.num_tokens
        place = self.student.last_cotangent(span_of(blocks))
        firsts, places = (start, 0), place.tensor_split([count - start])
        for (at, grad), first, out in zip(pooled, firsts, places, strict=False):
            self.heads.spread(at, grad, out, first)
        grad = self.student.backward(blocks, kept, lowest)
        if self.model.resting.num_heights == 0:
            self._embed_backward(grad[: count - start], grad[count - start :], kept, rows)

    def _pooler_backward(self, pooled: list[tuple[HeadOutputs, Tensor]]) -> None:
        pooler, found = self.model.encoder.pooler, self.model.grads.by_parameter
        if pooler is not None:
            places = (found[id(p)] for p in (pooler.dense.weight, pooler.dense.bias))
            pooler_gradients(pooled, *places)

    def _embed_backward(
        self, grad: Tensor, grad_adversarial: Tensor, kept: KeptRows | None, rows: Rows | None
    ) -> None:
        """The embedding layer's gradients.

        Args:
            grad: of the clean embeddings whose rows went through the backward, the last ones.
            grad_adversarial: of all, or nothing without an adversarial pass.
            kept, rows: of the clean embeddings before them.
        """
        total = grad
        if self.adversarial is not None:
            total, count = grad_adversarial, len(grad_adversarial) - len(grad)
            total[count:] += grad
            if kept is not None:
                total[:count].addcmul_(rows.rows, kept.row_factors[:, None])
        self.model.grad_words = self.student.embed_backward(total, self.stream, *self.statistics)

    def _chain(self, start: int) -> list[Block]:
        """The rows that the final backward goes through; as one where they share their masks."""
        others = [] if self.others is None else [self.others]
        clean = [self.clean_block] if start == 0 else others
        if self.adversarial is None:
            return clean
        other = self.adversarial_block
        if not clean:
            return [other]
        if not self.model.smart.shared_dropout:
            return [*clean, other]
        return [Block(clean[0].tokens.then(other.tokens), start)]
