"""A round on Hugging Face's BertModel, as its users write it: SBRRT's, or a plain one.

Padded batches that a data loader has made ahead, torch's dropout, SMART by a noisy and an
adversarial forward (arXiv 1911.03437, Algorithm 1 with the gradient's direction at a radius), a
momentum teacher, clipping, fused AdamW and a linear schedule. There is a step after each task's
batch, or, joint, one backward of the summed loss and one step.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from benchmarks.harness.rounds import TaskBatch
from benchmarks.peers.compiled import compiled
from benchmarks.peers.hugging_face import HuggingFaceModel, divergence, loss_of
from benchmarks.peers.padded import BUCKET, Padded
from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.presets import resolve

__all__ = ["Form", "HuggingFaceModel", "HuggingFaceRound", "Trainee", "is_one_batch_quicker"]
MODES = {"compile": None, "graphs": "reduce-overhead"}  # of torch.compile


@dataclass(frozen=True)
class Form:
    """How a user runs the model.

    Attributes:
        precision: ``fp32``, ``tf32`` (float32, a GPU's products in TF32), or ``bf16`` autocast.
        attention: ``eager`` or ``sdpa``.
        compile: ``no``, ``compile`` (sizes may change), or ``graphs`` (CUDA graphs, each length
            padded to a bucket).
        is_joint: one step per round, not one per task. is_plain: no SMART, no teacher.
        is_one_batch: a joint round's tasks are padded into one batch.
    """

    precision: str
    attention: str = "sdpa"
    compile: str = "no"
    is_joint: bool = False
    is_plain: bool = False
    is_one_batch: bool = False

    @classmethod
    def of(cls, words: Sequence[str]) -> Form:
        """From the words of a variant's name after ``hf``: ``bf16 eager plain joint``."""
        attention = next((word for word in words if word in ("eager", "sdpa")), "sdpa")
        mode = next((word for word in words if word in MODES), "no")
        return cls(words[0], attention, mode, "joint" in words, "plain" in words)


class Trainee:
    """What is trained. Forms of a user's round share it, so that one model is in memory.

    Args:
        ours: the model whose weights and dropout it begins with, on its device.
        config: of the run that is compared. num_rounds: of that run.
    """

    def __init__(self, ours: MultiTaskModel, config: RunConfig, num_rounds: int):
        self.config, self.device = config, next(ours.parameters()).device
        self.student = HuggingFaceModel(ours, "eager").to(self.device).train()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        rate = config.optimizer.learning_rate
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=rate, fused=True)
        steps = num_rounds * len(config.tasks)
        warm_up = round(config.optimizer.warmup * steps)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warm_up, steps)

    def update(self, has_teacher: bool) -> None:
        nn.utils.clip_grad_norm_(self.student.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if has_teacher:
            averages, weights = list(self.teacher.parameters()), list(self.student.parameters())
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1.0 - self.config.bregman.beta)


class HuggingFaceRound:
    """The training step of a user of transformers.

    Args:
        trainee: what it trains. form: how.
    """

    def __init__(self, trainee: Trainee, form: Form):
        self.trainee, self.config, self.form = trainee, trainee.config, form
        self.smart, self.device = resolve(self.config.smart), trainee.device
        self._steps: dict[int, list[list[Padded]]] = {}
        self.student = trainee.student.with_attention(form.attention)
        self.teacher = trainee.teacher.with_attention(form.attention)
        self.encode, self.encode_teacher = (
            m.encoder if form.compile == "no" else compiled(m.encoder, mode=MODES[form.compile])
            for m in (self.student, self.teacher)
        )

    def round(self, batches: list[TaskBatch]) -> dict[str, Tensor]:
        """Trains on the round's batches, in the host's memory; each task's loss, and R_s."""
        if id(batches) not in self._steps:
            self._steps[id(batches)] = self._padded(batches)
        terms: dict[str, Tensor] = {}
        with self._precision():
            for step in self._steps[id(batches)]:
                terms |= self._train([padded.to(self.device) for padded in step])
        return terms

    def _padded(self, batches: list[TaskBatch]) -> list[list[Padded]]:
        """The padded batches of every step of a round."""
        multiple = BUCKET if self.form.compile == "graphs" else 1
        if self.form.is_joint and self.form.is_one_batch:
            return [[Padded.of(batches, multiple)]]
        apart = [Padded.of([batch], multiple) for batch in batches]
        return [apart] if self.form.is_joint else [[padded] for padded in apart]

    @contextmanager
    def _precision(self) -> Iterator[None]:
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, self.form.precision == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32 = before

    def _train(self, step: list[Padded]) -> dict[str, Tensor]:
        """One backward and one update; the terms of its tasks."""
        if self.form.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        terms: dict[str, Tensor] = {}
        is_low = self.form.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_low):
            totals = [self._loss(padded, terms) for padded in step]
        torch.stack(totals).sum().backward()
        self.trainee.update(has_teacher=not self.form.is_plain)
        return terms

    def _loss(self, padded: Padded, terms: dict[str, Tensor]) -> Tensor:
        """Of a padded batch, summed over its tasks; ``terms`` has each task's."""
        embeddings = self.student.embed(padded.input_ids)
        outputs = self._outputs(padded, embeddings)
        tasks = [self.config.tasks[name] for name, _ in padded.parts]
        losses = list(map(loss_of, tasks, outputs, padded.labels))
        self._note(terms, padded, "loss", losses)
        if self.form.is_plain:
            return sum(losses)
        moved = self._outputs(padded, embeddings + self._perturbation(padded, embeddings, outputs))
        smart = list(map(divergence, tasks, moved, outputs))
        self._note(terms, padded, "smart", smart)
        bregman = map(divergence, tasks, outputs, self._targets(padded))
        return sum(losses) + self.smart.weight * sum(smart) + self._mu * sum(bregman)

    @property
    def _mu(self) -> float:
        return self.config.bregman.weight

    def _note(self, terms: dict, padded: Padded, kind: str, values: list[Tensor]) -> None:
        for (name, _), value in zip(padded.parts, values, strict=True):
            terms[f"{name}/{kind}"] = value.detach()

    def _outputs(self, padded: Padded, embeddings: Tensor) -> list[Tensor]:
        pooled = self.encode(embeddings, padded.mask)
        return self.student.head_outputs(padded.parts, pooled)

    @torch.no_grad()
    def _targets(self, padded: Padded) -> list[Tensor]:
        embeddings = self.teacher.embed(padded.input_ids)
        pooled = self.encode_teacher(embeddings, padded.mask)
        return self.teacher.head_outputs(padded.parts, pooled)

    def _perturbation(self, padded: Padded, embeddings: Tensor, outputs: list[Tensor]) -> Tensor:
        """The direction of each token's gradient, from one backward for all tasks of the batch."""
        noise = 1e-3 * torch.randn_like(embeddings) * padded.may_move
        point = (embeddings.detach() + noise).requires_grad_()
        tasks = [self.config.tasks[name] for name, _ in padded.parts]
        targets = [x.detach() for x in outputs]
        total = sum(map(divergence, tasks, self._outputs(padded, point), targets))
        (grad,) = torch.autograd.grad(total, point)
        grad = grad * padded.may_move
        return self.smart.radius * grad / grad.abs().amax(-1, keepdim=True).clamp(min=1e-30)


def is_one_batch_quicker(
    trainee: Trainee, precision: str, batches: list[TaskBatch], num_rounds: int = 2
) -> tuple[bool, float]:
    """Whether joint rounds are quicker with all tasks in one padded batch than with one batch each.

    Returns:
        That, and the time of the slower way over that of the quicker one.
    """
    form = Form(precision, is_joint=True, is_plain=True)
    ways = [
        HuggingFaceRound(trainee, replace(form, is_one_batch=is_one)) for is_one in (False, True)
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + num_rounds):  # the first is the warm-up
        for way, taken in zip(ways, seconds, strict=True):
            taken.append(_seconds(way, batches))
    apart, one = (min(taken[1:]) for taken in seconds)
    return one < apart, max(one, apart) / min(one, apart)


def _seconds(way: HuggingFaceRound, batches: list[TaskBatch]) -> float:
    start = time.perf_counter()
    way.round(batches)
    if way.device.type == "cuda":
        torch.cuda.synchronize(way.device)
    return time.perf_counter() - start
