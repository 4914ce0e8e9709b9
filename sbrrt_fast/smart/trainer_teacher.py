"""The momentum teacher of transformers' Trainer: it follows the steps and lies in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.files import replacing
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.momentum_teacher import MomentumTeacher
from sbrrt_fast.smart.regularizer import SmartOutput

FILE = "momentum_teacher.safetensors"
"""The averaged weights in a checkpoint's folder, by the model's names."""


class TrainerTeacher(TrainerCallback):
    """A ``MomentumTeacher`` that begins with each ``train()`` and moves once per optimiser step.

    It moves in ``on_step_end``, before the Trainer evaluates or saves, and stays where mixed
    precision has skipped the step. Every process has the same one.

    Args:
        trainer: whose model is followed. config: momentum and its schedule.

    Raises:
        ValueError: the Trainer shards or replicates its model within a process.
    """

    def __init__(self, trainer: Any, config: BregmanConfig):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "SmartTrainerMixin: the momentum teacher averages whole weights; train without "
                "FSDP and DeepSpeed, or without bregman"
            )
        self.trainer, self.config = trainer, config
        self.checkpoint: Path | None = None
        self._teacher: MomentumTeacher | None = None

    @property
    def teacher(self) -> MomentumTeacher:
        """The teacher of the ``train()`` that runs, or ran last.

        Raises:
            ValueError: none has begun.
        """
        if self._teacher is None:
            raise ValueError(
                "SmartTrainerMixin: the momentum teacher begins with trainer.train(); without it "
                "use MomentumTeacher(model)"
            )
        return self._teacher

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copies the model, which has the checkpoint's weights where training is resumed."""
        model = self.trainer.model_wrapped
        self._teacher = MomentumTeacher(model, self.config, state.max_steps)
        if self.checkpoint is not None:
            self._teacher.load_state_dict(_saved(self.checkpoint / FILE))
            self.checkpoint = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the averages towards the weights after step ``state.global_step``."""
        if not self.trainer.accelerator.optimizer_step_was_skipped:
            self.teacher.update(state.global_step)

    def loss(self, smart: SmartOutput, divergence: Divergence, batch: Mapping[str, Any]) -> Tensor:
        """D_Breg of a batch, under the dropout masks of its clean pass."""
        return self.teacher.loss(smart.logits, divergence, smart.random_state, **batch)

    def save(self, folder: Path) -> None:
        """Writes the averages into a checkpoint's folder.

        Raises:
            OutputError: the system refuses.
        """
        tensors = {name: x.contiguous() for name, x in self.teacher.state_dict().items()}
        with replacing(folder / FILE) as path:
            save_file(tensors, path)


def _saved(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"{path}: is missing, so training with bregman cannot be resumed there; begin anew "
            "from the checkpoint's model"
        )
    return load_file(path)
