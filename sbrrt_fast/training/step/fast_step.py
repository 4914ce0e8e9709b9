"""One SBRRT round with the encoder's passes written out.

For a task's batch, or all of the round's at once (``joint``):

    clean forward with the tangent beside it -> ascent gradient by a pull-back over the clean
    activations -> adversarial forward -> teacher -> one backward over clean and adversarial rows
    -> one pass of the optimiser over all tensors

``sbrrt_step`` is the reference: it defines the loss and the reported numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.dropout import RANDOM_DIRECTION_SITE, DropoutStream
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.packed.encoder import PackedEncoder
from sbrrt_fast.model.packed.layer import Block
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.ops.written_out import written_out_backend
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.divergence import Divergence, divergence_of
from sbrrt_fast.smart.regularizer import check_resolution
from sbrrt_fast.training.step.adversary import Adversary
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.head_pass import HeadOutputs, HeadPass
from sbrrt_fast.training.step.optimizer import set_learning_rate
from sbrrt_fast.training.step.sbrrt_step import (
    ADVERSARIAL_PASS,
    CLEAN_PASS,
    TEACHER_PASS,
    SbrrtStep,
    root_mean_square,
)
from sbrrt_fast.training.step.streams import Streams
from sbrrt_fast.training.step.update import FusedUpdate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FastStep(SbrrtStep):
    """``SbrrtStep`` with written-out passes: the same numbers, several times faster."""

    def __init__(
        self,
        model: MultiTaskModel,
        teacher: Teacher | None,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        num_rounds: int,
    ):
        super().__init__(model, teacher, optimizer, config, num_rounds)
        if self.smart.weight > 0:
            check_resolution(self.smart, torch.finfo(DTYPES[config.precision]).eps)
        backend, reason = written_out_backend(config.backend, self.device)
        assert backend is not None, reason
        ops, dtype = backend.ops, DTYPES[config.precision]
        self.student = PackedEncoder(model.encoder, ops, dtype)
        self.momentum = None
        if teacher is not None:
            self.momentum = PackedEncoder(teacher.module.encoder, ops, dtype, trains=False)
        self.trains_encoder = any(p.requires_grad for p in model.encoder.parameters())
        self.streams = Streams(self.device)
        self._grads: dict[int, Tensor | RowGradient] = {}
        assert isinstance(self.update, FusedUpdate), "the written-out step has a fused update"

    def memory(self) -> dict[str, int]:
        """Bytes that the step itself holds, beyond weights and optimiser state."""
        spaces = [e.workspace.num_bytes for e in (self.student, self.momentum) if e]
        copies = [
            copy.nbytes
            for encoder in (self.student, self.momentum)
            if encoder
            for copy in encoder.weights.copies.values()
        ]
        buffers = [g.nbytes for g in self.student.gradients.by_parameter.values()]
        return {"activations": sum(spaces), "copies": sum(copies), "gradients": sum(buffers)}

    def gradients(self, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
        self._differentiate([batch.to(self.device)], rng)
        named = {n: (p, self._grads.get(id(p))) for n, p in self.model.named_parameters()}
        return {
            name: g.dense(p) if isinstance(g, RowGradient) else g.float().clone()
            for name, (p, g) in named.items()
            if g is not None
        }

    def _train(
        self, batches: list[TaskBatch], index: int, step: int, report: bool
    ) -> dict[str, Tensor]:
        return self._train_group(Group.of(batches).with_words(), index, step, report)

    def _train_group(self, group: Group, index: int, step: int, report: bool) -> dict[str, Tensor]:
        """One optimiser step on a group in the host's memory or the device's."""
        rng = to_device(torch.tensor([self.config.seed, index]), self.device)
        self._refresh()
        terms = self._pass(group.to(self.device), rng, report)
        return terms | {"gradient_norm": self._update(step)}

    def _differentiate(
        self, batches: list[TaskBatch], rng: Tensor, report: bool = False
    ) -> dict[str, Tensor]:
        """Leaves the batches' gradients in ``_grads``; returns their loss terms."""
        self._refresh()
        return self._pass(Group.of(batches).with_words(), rng, report)

    @torch.no_grad()
    def report(self, group: Group, rng: Tensor) -> dict[str, Tensor]:
        """``<task>/perturbation`` and ``/gain`` of a group on the device, without an update."""
        terms: list[dict[str, Tensor]] = [{} for _ in group.names]
        if self.smart.weight > 0:
            stream = self._stream(group.tokens, rng)
            heads = HeadPass(self.model, group.names, group.counts, stream)
            self.student.begin(2 * group.tokens.num_tokens)
            adversary = self._adversary(heads, self.student.embed(stream)[0])
            adversary.clean_pass(stream.normal(adversary.embeddings.shape[-1]))
            adversary.ascend()
            self._report(adversary, terms)
        return _by_task(group, terms)

    @torch.no_grad()
    def _pass(self, group: Group, rng: Tensor, report: bool) -> dict[str, Tensor]:
        """All of the device's work on a group but the update."""
        stream = self._stream(group.tokens, rng)
        heads = HeadPass(self.model, group.names, group.counts, stream)
        student, perturbs = self.student, self.smart.weight > 0
        num_tokens = group.tokens.num_tokens
        student.begin(num_tokens * (2 if perturbs else 1))
        terms: list[dict[str, Tensor]] = [{} for _ in group.names]
        adversarial, smart, targets, clock = None, None, None, self.clock
        with clock("clean"):
            embeddings, *statistics = student.embed(stream)
            if perturbs:
                adversary = self._adversary(heads, embeddings)
                clean = adversary.clean_pass(stream.normal(embeddings.shape[-1]))
            else:
                student.set_input((0, num_tokens), embeddings)
                hidden = student.forward(Block(stream))[:num_tokens]
                with torch.enable_grad():
                    clean = heads(hidden)
        if self.momentum:  # after the clean pass, which has made what both passes look at
            with clock("teacher"), self.streams.fork("teacher"):
                targets = self._teach(heads)
        if perturbs:
            with clock("ascent"):
                adversary.ascend()
            if report:
                with clock("report"):
                    self._report(adversary, terms)
            with clock("adversarial"):
                adversarial, smart, reported = adversary.adversarial_pass()
            _add(terms, "smart", reported)
        with clock("backward"):
            self.streams.join("teacher")
            with torch.enable_grad():
                total = self._losses(group, clean, smart, targets, terms)
            self._backward(total, clean, adversarial, heads, statistics)
        return _by_task(group, terms)

    def _stream(self, tokens: TokenBatch, rng: Tensor) -> DropoutStream:
        max_positions, backend = self.model.config.max_position_embeddings, self.config.backend
        return DropoutStream(tokens, rng, max_positions, CLEAN_PASS, backend)

    def _adversary(self, heads: HeadPass, embeddings: Tensor) -> Adversary:
        stream, mask = heads.stream, heads.stream.batch.is_real
        if not self.smart.perturb_special:
            mask = mask & ~stream.batch.is_special
        other = stream if self.smart.shared_dropout else stream.fork(ADVERSARIAL_PASS)
        divergences = [self._divergence(name) for name in heads.names]
        return Adversary(
            self.student, heads, self.smart, divergences, other, embeddings, mask,
            self.config.backend,
        )  # fmt: skip

    def _divergence(self, name: str) -> Divergence:
        return divergence_of(self.model.tasks[name], self.config.backend)

    def _report(self, adversary: Adversary, terms: list[dict[str, Tensor]]) -> None:
        """The size of the perturbation, and its gain over a random one."""
        batch, delta = adversary.heads.stream.batch, adversary.delta
        noise = adversary.heads.stream.normal(delta.shape[-1], RANDOM_DIRECTION_SITE)
        _add(terms, "gain", adversary.gain(noise))
        first = 0
        for task_terms, count in zip(terms, adversary.heads.counts, strict=True):
            in_task = (batch.sequence >= first) & (batch.sequence < first + count)
            task_terms["perturbation"] = root_mean_square(delta, adversary.mask & in_task)
            first += count

    def _teach(self, heads: HeadPass) -> list[Tensor]:
        """The teacher's class logits, per batch."""
        stream = heads.stream
        if not self.smart.shared_dropout:
            heads = heads.on(stream.fork(TEACHER_PASS))
        stream = heads.stream
        num_tokens = stream.batch.num_tokens
        self.momentum.begin(num_tokens)
        embeddings, *_ = self.momentum.embed(stream)
        self.momentum.set_input((0, num_tokens), embeddings)
        hidden = self.momentum.forward(Block(stream))[:num_tokens]
        return heads(hidden, self.teacher.module).logits

    def _losses(
        self,
        group: Group,
        clean: HeadOutputs,
        smart: list[Tensor] | None,
        targets: list[Tensor] | None,
        terms: list[dict[str, Tensor]],
    ) -> Tensor:
        """The summed loss with its graph; each task's terms go into ``terms``."""
        summed = 0.0
        for i, name in enumerate(group.names):
            task, task_terms = self.model.tasks[name], terms[i]
            task_terms["loss"] = total = self.model.loss(name, clean.outputs[i], group.labels[i])
            reported = total.detach()
            if smart is not None:
                total = total + self.smart.weight * smart[i]
                reported = reported + self.smart.weight * task_terms["smart"].detach()
            if targets is not None:
                divergence = self._divergence(name)
                task_terms["bregman"] = bregman = divergence(clean.logits[i], targets[i]).mean()
                total = total + self.config.bregman.weight * bregman
                reported = reported + self.config.bregman.weight * bregman.detach()
            task_terms["total"] = task.weight * reported
            summed = summed + task.weight * total
        return summed

    def _backward(
        self,
        total: Tensor,
        clean: HeadOutputs,
        adversarial: HeadOutputs | None,
        heads: HeadPass,
        statistics: list[Tensor],
    ) -> None:
        """Gradients of everything that trains, into ``_grads``."""
        pooled = [clean.pooled] if adversarial is None else [clean.pooled, adversarial.pooled]
        weights = self._head_weights(heads.names)
        grads = torch.autograd.grad(total, [*pooled, *weights], allow_unused=True)
        self._grads = {
            id(p): g for p, g in zip(weights, grads[len(pooled) :], strict=True) if g is not None
        }
        if not self.trains_encoder:
            return
        grad = torch.cat([heads.spread(g) for g in grads[: len(pooled)]])
        blocks = self._blocks(heads.stream, len(pooled))
        grad_embeddings = self.student.backward(grad, blocks)
        if len(pooled) == 2:
            grad_embeddings = torch.add(*grad_embeddings.chunk(2))
        self._grads |= self.student.gradients.by_parameter
        self._grads |= self.student.embed_backward(grad_embeddings, heads.stream, *statistics)

    def _blocks(self, stream: DropoutStream, num_passes: int) -> list[Block]:
        """The rows of the backward: as one where the passes share their masks."""
        if num_passes == 1:
            return [Block(stream)]
        num_tokens = stream.batch.num_tokens
        if not self.smart.shared_dropout:
            return [Block(stream), Block(stream.fork(ADVERSARIAL_PASS), num_tokens)]
        both = TokenBatch.concatenate([stream.batch, stream.batch])
        return [Block(stream.over(both))]

    def _head_weights(self, names: Sequence[str]) -> list[Tensor]:
        modules = [self.model.heads[name] for name in names]
        if self.model.encoder.pooler is not None:
            modules.append(self.model.encoder.pooler)
        weights = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}
        return list(weights.values())

    def _refresh(self) -> None:
        """Renews the copies of weights that were changed outside the step."""
        self.student.weights.refresh()
        if self.momentum:
            self.momentum.weights.refresh()

    def _update(self, step: int) -> Tensor:
        set_learning_rate(self.optimizer, step, self.num_steps, self.config.optimizer)
        with self.clock("optimiser"):
            norm = self.update.apply(step, self._grads, *self._copies())
        self._mark_fresh()
        return norm

    def _copies(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """The bfloat16 copies of weights and of the teacher's, by id of the parameter."""
        averages = {}
        if self.momentum:
            ema_params = self.teacher.averages_by_parameter()
            copies = self.momentum.weights.copies
            averages = {i: copies[id(e)] for i, e in ema_params.items() if id(e) in copies}
        return self.student.weights.copies, averages

    def _mark_fresh(self) -> None:
        self.student.weights.mark_fresh()
        if self.momentum:
            self.momentum.weights.mark_fresh()


def _by_task(group: Group, terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{task}/{name}": value.detach()
        for task, task_terms in zip(group.names, terms, strict=True)
        for name, value in task_terms.items()
    }


def _add(terms: list[dict[str, Tensor]], name: str, values: list[Tensor]) -> None:
    for task_terms, value in zip(terms, values, strict=True):
        task_terms[name] = value


def fast_why_not(config: RunConfig, device: torch.device) -> str | None:
    """Why a run cannot take the written-out step, or None."""
    if config.backend == "reference":
        return "backend 'reference' was asked for"
    if config.layout != "packed":
        return f"layout '{config.layout}' has padding"
    return written_out_backend(config.backend, device)[1] or None
