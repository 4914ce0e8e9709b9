"""One SBRRT round on the reference path.

For every task's batch: task loss + lambda_s R_s + mu D_Breg, one backward, and the optimiser and
the teacher step after each batch (``per_task``) or once per round (``joint``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.model.dropout import RANDOM_DIRECTION_SITE, DropoutStream
from sbrrt_fast.model.heads import class_logits
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.divergence import divergence_of
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.smart.regularizer import SmartRegularizer
from sbrrt_fast.training.cost.profile import NoClock, StageClock
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.optimizer import set_learning_rate
from sbrrt_fast.training.step.update import build_update

CLEAN_PASS, ADVERSARIAL_PASS, TEACHER_PASS = 0, 1, 2


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 matrix products for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class SbrrtStep:
    """The training step: losses, gradients, optimiser and teacher.

    Args:
        model: the student. teacher: its momentum teacher, or None without Bregman.
        optimizer: over the model's trainable parameters.
        config: the run's configuration.
        num_rounds: of the whole run, for learning rate and momentum schedules.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        teacher: Teacher | None,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        num_rounds: int,
    ):
        self.model, self.teacher, self.optimizer, self.config = model, teacher, optimizer, config
        self.smart = resolve(config.smart)
        self.device = next(model.parameters()).device
        self.clock: StageClock | NoClock = NoClock()
        self.is_joint = config.round.update == "joint"
        self.num_steps = num_rounds * (1 if self.is_joint else len(config.tasks))
        model.encoder.set_backend(config.backend)
        if teacher is not None:
            teacher.module.encoder.set_backend(config.backend)
        clip_norm = config.optimizer.clip_norm
        self.update = build_update(optimizer, teacher, clip_norm, self.num_steps, config.backend)

    def round(
        self, batches: list[TaskBatch], index: int, report: bool = False
    ) -> dict[str, Tensor]:
        """Trains on one round.

        Args:
            batches: one per drawn task, rows numbered through the round; the step takes them to its
                device.
            index: number of rounds done before; with the seed it keys dropout and noise.
            report: also measure the perturbation and the adversarial gain.

        Returns:
            Detached scalars on the device: ``<task>/loss``, ``/smart``, ``/bregman``, ``/total``,
            with ``report`` also ``/perturbation`` and ``/gain``; and ``gradient_norm``. A task
            drawn twice in a round gives the values of its last batch.
        """
        groups = [batches] if self.is_joint else [[batch] for batch in batches]
        terms: dict[str, Tensor] = {}
        for position, group in enumerate(groups):
            terms |= self._train(group, index, index * len(groups) + position + 1, report)
        return terms

    def _train(
        self, batches: list[TaskBatch], index: int, step: int, report: bool
    ) -> dict[str, Tensor]:
        """One optimiser step, number ``step`` from 1, on these batches of a round."""
        rng = to_device(torch.tensor([self.config.seed, index]), self.device)
        batches = [batch.to(self.device) for batch in batches]
        terms = self._differentiate(batches, rng, report)
        return terms | {"gradient_norm": self._update(step)}

    def memory(self) -> dict[str, int]:
        """Bytes that the step itself holds between rounds: autograd's are freed."""
        return {}

    def summary(self) -> list[str]:
        """Lines on the step for the end of the run."""
        return []

    def gradients(self, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
        """Gradients of one batch's loss by parameter name, without an update."""
        self._differentiate([batch.to(self.device)], rng)
        named = self.model.named_parameters()
        grads = {name: p.grad for name, p in named if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return grads

    def _differentiate(
        self, batches: list[TaskBatch], rng: Tensor, report: bool = False
    ) -> dict[str, Tensor]:
        """Adds the batches' gradients to the parameters'; returns their loss terms."""
        terms: dict[str, Tensor] = {}
        for batch in batches:
            with self.clock("losses"):
                losses = self.losses(batch, rng, report)
            with self.clock("backward"):
                losses["total"].backward()
            terms |= {f"{batch.name}/{name}": value.detach() for name, value in losses.items()}
        return terms

    def losses(self, batch: TaskBatch, rng: Tensor, report: bool = False) -> dict[str, Tensor]:
        """The batch's loss terms, with their graph; see ``round``."""
        task, tokens = self.model.tasks[batch.name], batch.tokens
        max_positions, backend = self.model.config.max_position_embeddings, self.config.backend
        stream = DropoutStream(tokens, rng, max_positions, CLEAN_PASS, backend)
        with autocast(self.device, self.config.precision):
            embeddings = self.model.embed(tokens, stream)
            outputs = self.model.outputs(batch.name, embeddings, tokens, stream)
            logits = class_logits(task, outputs)
            terms = {"loss": self.model.loss(batch.name, outputs, batch.labels)}
            total = terms["loss"]
            if self.smart.weight > 0:
                terms |= self._smart(batch, embeddings, logits, stream, report)
                total = total + self.smart.weight * terms["smart"]
            if self.teacher is not None:
                terms["bregman"] = self._bregman(batch, logits, stream)
                total = total + self.config.bregman.weight * terms["bregman"]
        return terms | {"total": task.weight * total}

    def _smart(
        self,
        batch: TaskBatch,
        embeddings: Tensor,
        logits: Tensor,
        stream: DropoutStream,
        report: bool,
    ) -> dict[str, Tensor]:
        """R_s, and with ``report`` the size of the perturbation and its gain."""
        tokens, width = batch.tokens, embeddings.shape[-1]
        other = stream if self.smart.shared_dropout else stream.fork(ADVERSARIAL_PASS)
        regularizer = SmartRegularizer(
            lambda x: self.model.logits(batch.name, x, tokens, other),
            self.smart,
            divergence_of(self.model.tasks[batch.name], self.config.backend),
            self.config.backend,
            lambda x: self.model.logits(batch.name, x, tokens, stream),
        )
        mask = tokens.is_real
        if not self.smart.perturb_special:
            mask = mask & ~tokens.is_special
        layout = {"mask": mask, "sequence": tokens.sequence}
        smart = regularizer(embeddings, logits, noise=stream.normal(width), **layout)
        terms = {"smart": smart.loss}
        if report:
            noise = stream.normal(width, RANDOM_DIRECTION_SITE)
            terms["perturbation"] = root_mean_square(smart.delta, mask)
            terms["gain"] = regularizer.gain(
                embeddings.detach(), logits.detach(), delta=smart.delta, noise=noise, **layout
            )
        return terms

    def _bregman(self, batch: TaskBatch, logits: Tensor, stream: DropoutStream) -> Tensor:
        """D_Breg: the mean divergence from the teacher's outputs (arXiv 1911.03437, eq. 3)."""
        other = stream if self.smart.shared_dropout else stream.fork(TEACHER_PASS)
        task = self.model.tasks[batch.name]
        target = class_logits(task, self.teacher(batch.name, batch.tokens, other))
        return divergence_of(task, self.config.backend)(logits, target).mean()

    def _update(self, step: int) -> Tensor:
        """Clips, steps the optimiser and the teacher; ``step`` counts from 1."""
        set_learning_rate(self.optimizer, step, self.num_steps, self.config.optimizer)
        with self.clock("optimiser"):
            norm = self.update(step)
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def root_mean_square(delta: Tensor, mask: Tensor) -> Tensor:
    """A perturbation's [num_tokens, hidden] root mean square over the tokens in ``mask``."""
    total = (delta.double().square() * mask[:, None]).sum()
    return (total / (mask.sum() * delta.shape[-1]).clamp(min=1)).sqrt()
