"""One task's batch through a round under autograd: the written-out passes are held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import NOISE_SITE, DropoutStream
from sbrrt_fast.model.heads import class_logits, uncertain_loss
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.ascent import Ascent, Jacobian, Tokens
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.divergence import divergence_of
from sbrrt_fast.smart.jacobian_choice import Choice, ChosenJacobian
from sbrrt_fast.smart.model_function import ModelFunction
from sbrrt_fast.smart.presets import resolve
from sbrrt_fast.smart.regularizer import AutogradJacobian, AutogradPass
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.step.autograd_task_gradients import AutogradTaskGradients
from sbrrt_fast.training.step.gradient_sums import sum_over_ranks
from sbrrt_fast.training.step.group import Group, TaskBatch
from sbrrt_fast.training.step.resting import Resting
from sbrrt_fast.training.step.round_pass import ADVERSARIAL_PASS, CLEAN_PASS, TEACHER_PASS, Terms
from sbrrt_fast.training.step.update import Gradients, TorchUpdate


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 matrix products for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class AutogradModel:
    """Student and teacher of a run; gradients are the parameters' ``grad``.

    Args:
        model: the student. teacher: or None. config: the run's.
        ranks: over which gradients are summed.

    Attributes:
        choices: how the Jacobian is applied, by task, of an encoder of transformers.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        teacher: Teacher | None,
        config: RunConfig,
        ranks: Ranks = ONE_RANK,
    ):
        self.model, self.teacher, self.config = model, teacher, config
        self.ranks = ranks
        self.smart = resolve(config.smart)
        self.choices: dict[str, Choice] = {}
        self.device = next(model.parameters()).device
        self.by_task: AutogradTaskGradients | None = None
        if config.optimizer.surgery == "pcgrad":
            self.by_task = AutogradTaskGradients(model, config.backend, ranks)
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._resting: list[nn.Parameter] = []

    def groups(self, batches: list[TaskBatch], words: Tensor | None = None) -> list[Group]:
        """What goes through the encoder together: each batch by itself, padded or packed."""
        return [Group.of([batch]) for batch in batches]

    def begin(self, group: Group, rng: Tensor) -> AutogradRound:
        """The group's pass; the group may be in the host's memory."""
        return AutogradRound(self, group.to(self.device), rng)

    def rest(self, resting: Resting) -> None:
        self._resting = [p for p in self._trainable if id(p) in resting.parameters]

    def start(self, parts: list[list[Group]]) -> None:
        """Autograd adds up parts itself; it goes no further than what trains."""
        self._track(False)

    def end_group(self, group: Group) -> None:
        if self.by_task is not None:
            self.by_task.take(*group.names)

    def finish(self, rng: Tensor) -> Terms:
        """Sums the parameters' ``grad`` over ranks, each task's by itself with surgery."""
        self._track(True)
        if self.by_task is not None:
            return self.by_task.finish(rng)
        grads = (p.grad for p in self.model.parameters() if p.grad is not None)
        sum_over_ranks(grads, self.ranks)
        return {}

    def gradients(self, groups: list[Group]) -> Gradients:
        """The parameters' by id, summed over backwards since ``forget``."""
        return {id(p): p.grad for p in self.model.parameters() if p.grad is not None}

    def update(self, update: TorchUpdate, step: int, groups: list[Group]) -> Tensor:
        """Steps the optimiser and the teacher; the gradients' norm."""
        norm = update(step)
        self.forget()
        return norm

    def forget(self) -> None:
        """Drops the gradients."""
        for p in self.model.parameters():
            p.grad = None

    def refresh(self) -> None:
        """Nothing here follows the weights."""

    def memory(self) -> dict[str, int]:
        """Bytes held between rounds: autograd's are freed."""
        return {}

    def _track(self, tracks: bool) -> None:
        """Within a step alone, since elsewhere what requires a gradient is what the run trains."""
        for p in self._resting:
            p.requires_grad_(tracks)


class AutogradRound:
    """``round_pass.RoundPass`` of one batch.

    Args:
        owner: the model. group: of one batch, on the device. rng: int64 [2], (seed, round).
    """

    def __init__(self, owner: AutogradModel, group: Group, rng: Tensor):
        self.owner, self.group, self.tokens = owner, group, group.tokens
        self.model, self.name = owner.model, group.names[0]
        self.task, config = owner.model.tasks[group.names[0]], owner.config
        positions = owner.model.config.max_position_embeddings
        masks = CLEAN_PASS, config.backend, self.task.dropout
        self.stream = DropoutStream(group.tokens, rng, positions, *masks)
        self.divergence = divergence_of(self.task, config.backend)
        self.share = group.shares[0]
        mask = self.tokens.is_real
        if not owner.smart.perturb_special:
            mask = mask & ~self.tokens.is_special
        self.perturbed = Tokens(mask, self.tokens.sequence, self.tokens.num_sequences)
        self.smart = self.bregman = None

    def autocast(self) -> torch.autocast:
        return autocast(self.owner.device, self.owner.config.precision)

    def noise(self, site: int) -> Tensor:
        return self.stream.normal(self.embeddings.shape[-1], site).to(self.embeddings.dtype)

    def clean(self, ascent: Ascent | None) -> None:
        tokens, name, other = self.tokens, self.name, self._other(ADVERSARIAL_PASS)
        with self.autocast():
            self.embeddings = self.model.embed(tokens, self.stream)
            self.outputs = self.model.outputs(name, self.embeddings, tokens, self.stream)
            self.logits = class_logits(self.task, self.outputs)
        self.around = AutogradPass(
            lambda x: self.model.logits(name, x, tokens, other),
            self.divergence,
            self.embeddings,
            self.logits,
            self._jacobian(lambda x: self.model.logits(name, x, tokens, self.stream)),
            self.share,
        )

    def _jacobian(self, clean_fn: Callable[[Tensor], Tensor]) -> Jacobian:
        """Applied in forward mode, which MiniBert has; of other encoders, as they can."""
        if isinstance(self.model.encoder, MiniBert):
            return AutogradJacobian(clean_fn, self.embeddings, self.logits)
        choice = self.owner.choices.setdefault(self.name, Choice(has_one_output=False))
        function = ModelFunction(clean_fn, self.divergence, {})
        return ChosenJacobian(choice, function, self.embeddings, self.logits)

    def climb(self, ascent: Ascent) -> Tensor:
        delta = ascent.start(self.noise(NOISE_SITE), self.perturbed.mask)
        with self.autocast():
            return ascent.climb(self.around, delta, self.perturbed)

    def perturb(self, ascent: Ascent, delta: Tensor) -> None:
        with self.autocast():
            self.smart = ascent.values(self.around, delta)

    def teach(self) -> None:
        """D_Breg: the mean divergence from the teacher's outputs (arXiv 1911.03437, eq. 3)."""
        other = self._other(TEACHER_PASS)
        with self.autocast():
            outputs = self.owner.teacher(self.name, self.tokens, other)
            target = class_logits(self.task, outputs)
            self.bregman = self.divergence(self.logits, target).mean()

    def losses(self) -> dict[str, Tensor]:
        """The loss terms, with their graph: of the means over all examples of the task's batch."""
        config, terms = self.owner.config, {}
        with self.autocast():
            terms["loss"] = total = self.model.loss(self.name, self.outputs, self.group.labels)
        if self.smart is not None:
            terms["smart"] = self.smart
            total = total + self.owner.smart.weight * self.smart
        if self.bregman is not None:
            terms["bregman"] = self.bregman
            total = total + config.bregman.weight * self.bregman
        terms["total"] = self.task.weight * total
        if (s := self.model.log_variances().get(self.name)) is not None:
            terms["total"] = uncertain_loss(self.task, terms["total"], s)
            terms["log_variance"] = s.detach().clone()  # the update changes it in place
        if self.share == 1.0:
            return terms
        return {name: self.share * value for name, value in terms.items()}

    def backward(self) -> list[dict[str, Tensor]]:
        losses = self.losses()
        if losses["total"].requires_grad:  # a task without weights may have nothing to train yet
            losses["total"].backward()
        return [losses]

    def _other(self, pass_id: int) -> DropoutStream:
        return self.stream if self.owner.smart.shared_dropout else self.stream.fork(pass_id)
