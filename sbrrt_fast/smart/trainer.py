"""SMART in transformers' Trainer, by a mixin.

class SmartTrainer(SmartTrainerMixin, Trainer): ...

trainer = SmartTrainer(model, arguments, train_dataset=rows, smart=SmartConfig(weight=1.0))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.regularizer import SmartOutput, SmartRegularizer
from sbrrt_fast.smart.transformers import TransformersRegularizer


class SmartTrainerMixin:
    """Adds ``smart.weight`` R_s to the loss of a training step; evaluation is as it was.

    To be named before ``Trainer`` among a class's bases; other mixins go beside it. What the
    Trainer logs has ``smart``, the mean R_s since the last log, and ``smart_gain``, the adversarial
    gain of the last batch.

    Args:
        smart: the mechanism's settings; its weight must be above 0.
        divergence: see ``SmartRegularizer.for_transformers``.
        args, kwargs: the Trainer's. Special tokens are those of its ``processing_class``.

    Raises:
        ValueError: the weight is 0.
    """

    def __init__(
        self,
        *args: Any,
        smart: SmartConfig | None = None,
        divergence: Divergence | None = None,
        **kwargs: Any,
    ):
        self._smart = smart or SmartConfig(weight=1.0)
        if self._smart.weight == 0:
            raise ValueError("SmartTrainerMixin: smart.weight is 0; give SmartConfig(weight=1.0)")
        self._divergence, self._around = divergence, {}
        self._smart_losses: list[Tensor] = []
        self._smart_gain: Tensor | None = None
        super().__init__(*args, **kwargs)

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
        self._remember(smart)
        loss = loss + self._smart.weight * smart.loss / self._num_parts(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds ``smart`` and ``smart_gain`` to what is logged while training."""
        if "loss" in logs and self._smart_losses:
            logs["smart"] = torch.stack(self._smart_losses).mean().item()
            self._smart_losses = []
            if self._smart_gain is not None:
                logs["smart_gain"] = self._smart_gain.item()
        super().log(logs, *args, **kwargs)

    def _regularizer(self, model: nn.Module) -> TransformersRegularizer:
        """One per model, wrapped as the Trainer has wrapped it."""
        if self._around.get("model") is not model:
            make, settings = SmartRegularizer.for_transformers, (self._smart, self._divergence)
            tokenizer = getattr(self, "processing_class", None)
            self._around = {"model": model, "made": make(model, *settings, tokenizer=tokenizer)}
        return self._around["made"]

    def _remember(self, smart: SmartOutput) -> None:
        self._smart_losses.append(smart.loss.detach())
        every = self.state.logging_steps or 1
        if (self.state.global_step + 1) % every == 0:
            self._smart_gain = smart.gain()

    def _num_parts(self, num_items_in_batch: Tensor | int | None) -> int:
        """What R_s is divided by: the step's batches, unless the Trainer divides by them itself."""
        is_scaled = self.loss_is_scaled_for_ga
        if is_scaled is None:
            counts = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_scaled = counts or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if is_scaled else 1
