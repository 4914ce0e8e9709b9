"""SMART in transformers' Trainer, by a mixin.

class SmartTrainer(SmartTrainerMixin, Trainer): ...

trainer = SmartTrainer(model, arguments, train_dataset=rows, smart=SmartConfig(weight=1.0))

With ``bregman=BregmanConfig(weight=0.8)`` the momentum teacher is there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sbrrt_fast.config import BregmanConfig, SmartConfig
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.presets import weighted
from sbrrt_fast.smart.regularizer import SmartOutput, SmartRegularizer
from sbrrt_fast.smart.transformers import TransformersRegularizer

if TYPE_CHECKING:
    from sbrrt_fast.smart.trainer_teacher import TrainerTeacher


class SmartTrainerMixin:
    """Adds ``smart.weight`` R_s to the loss of a training step; evaluation is as it was.

    With ``bregman`` it adds ``bregman.weight`` D_Breg, too: the mean divergence from a teacher that
    begins as the model does with ``train()``, moves once per optimiser step, drops out as the model
    does, and is saved with the optimiser's state in checkpoints, so that ``resume_from_checkpoint``
    goes on as if nothing had happened.

    To be named before ``Trainer`` among a class's bases; other mixins go beside it. What the
    Trainer logs has ``smart`` and ``bregman``, the mean R_s and D_Breg of this process since the
    last log, and every ``logging_steps`` steps ``smart_gain``, the adversarial gain of the last
    batch.

    Args:
        smart: the mechanism's settings; its weight must be above 0.
        bregman: the teacher's settings; None: there is no teacher.
        divergence: see ``SmartRegularizer.for_transformers``.
        args, kwargs: the Trainer's. Special tokens are those of its ``processing_class``.

    Raises:
        ValueError: a weight is 0, or there is a teacher and FSDP or DeepSpeed shards the model.
    """

    def __init__(
        self,
        *args: Any,
        smart: SmartConfig | None = None,
        bregman: BregmanConfig | None = None,
        divergence: Divergence | None = None,
        **kwargs: Any,
    ):
        self._smart = weighted(smart, "SmartTrainerMixin")
        if bregman is not None and bregman.weight == 0:
            raise ValueError(
                "SmartTrainerMixin: bregman.weight is 0; give BregmanConfig(weight=0.8), or None"
            )
        self._divergence, self._around = divergence, {}
        self._means, self._smart_gain = _Means(), None
        super().__init__(*args, **kwargs)
        self._bregman = None if bregman is None else self._followed(bregman)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The Trainer's loss, and R_s around its pass where the model is in ``train()``."""
        arguments = {"return_outputs": True, "num_items_in_batch": num_items_in_batch}
        if not model.training:
            arguments["return_outputs"] = return_outputs
            return super().compute_loss(model, inputs, **arguments)
        batch = {name: value for name, value in inputs.items() if name != "labels"}
        regularizer = self._regularizer(model)
        with regularizer.clean_pass() as seen:
            loss, outputs = super().compute_loss(model, inputs, **arguments)
        smart = regularizer.around(seen, outputs, batch)
        penalty = self._penalty(smart, regularizer, batch)
        loss = loss + penalty / self._num_parts(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds ``smart``, ``bregman`` and ``smart_gain`` to what is logged while training."""
        if "loss" in logs:
            logs.update(self._means.taken())
            if self._smart_gain is not None:
                logs["smart_gain"] = self._smart_gain.item()
            self._smart_gain = None
        super().log(logs, *args, **kwargs)

    def _followed(self, bregman: BregmanConfig) -> TrainerTeacher:
        """A teacher that follows this Trainer's steps."""
        from sbrrt_fast.smart.trainer_teacher import TrainerTeacher

        teacher = TrainerTeacher(self, bregman)
        self.add_callback(teacher)
        return teacher

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The teacher goes with the optimiser's state, which ``save_only_model`` leaves out."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self._bregman is not None and self.args.should_save:
            self._bregman.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._bregman is not None and checkpoint is not None:
            self._bregman.checkpoint = Path(checkpoint)

    def _regularizer(self, model: nn.Module) -> TransformersRegularizer:
        """One per model, wrapped as the Trainer has wrapped it."""
        if self._around.get("model") is not model:
            make, settings = SmartRegularizer.for_transformers, (self._smart, self._divergence)
            tokenizer = getattr(self, "processing_class", None)
            self._around = {"model": model, "made": make(model, *settings, tokenizer=tokenizer)}
        return self._around["made"]

    def _penalty(
        self, smart: SmartOutput, regularizer: TransformersRegularizer, batch: Mapping[str, Any]
    ) -> Tensor:
        """R_s and D_Breg of a batch by their weights; they are kept for the log."""
        self._means.add("smart", smart.loss)
        every = self.state.logging_steps or 1
        if (self.state.global_step + 1) % every == 0:
            self._smart_gain = smart.gain()
        penalty = self._smart.weight * smart.loss
        if self._bregman is None:
            return penalty
        bregman = self._bregman.loss(smart, regularizer.divergence, batch)
        self._means.add("bregman", bregman)
        return penalty + self._bregman.config.weight * bregman

    def _num_parts(self, num_items_in_batch: Tensor | int | None) -> int:
        """The step's batches, where the Trainer does not divide by them itself, else 1."""
        is_scaled = getattr(self, "loss_is_scaled_for_ga", None)  # not in transformers 5.0
        if is_scaled is None:
            counts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_scaled = counts or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if is_scaled else 1


class _Means:
    """Means of scalars, by name, which are added up where they are until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, value: Tensor) -> None:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value.detach(), count + 1

    def taken(self) -> dict[str, float]:
        means = {name: (total / count).item() for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means
