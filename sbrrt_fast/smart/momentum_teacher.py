"""The Bregman teacher for any model and any training loop.

teacher = MomentumTeacher(model)
bregman = teacher.loss(smart.logits, divergence, smart.random_state, **batch)
(task_loss + weight * bregman).backward()
optimizer.step()
teacher.update(step)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.config_rules import bregman_rules
from sbrrt_fast.ranges import check
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.divergence import SYMMETRIC_KL, Divergence
from sbrrt_fast.smart.model_function import ModelFunction, uncached_autocast
from sbrrt_fast.smart.replay import RandomState
from sbrrt_fast.smart.transformers import unwrapped

MASKS_ARE_GONE = (
    "MomentumTeacher: the model draws random numbers (dropout); give the state before its pass, "
    "random_state=smart.random_state, or call model.eval()"
)


class MomentumTeacher:
    """A moving average of a model's weights, and the divergence of the model from it.

    Only trainable weights are copied and averaged; frozen ones are the model's own tensors.

    Args:
        model: in DistributedDataParallel or not; every process averages for itself, alike.
        config: momentum ``beta`` and its ``schedule``; ``weight`` is for the caller to apply.
        total_steps: of the whole training, which ``schedule="paper"`` needs.

    Raises:
        ConfigError: a setting is out of range.
        ValueError: the schedule needs ``total_steps``, or the model's weights are sharded.
    """

    def __init__(
        self,
        model: nn.Module,
        config: BregmanConfig | None = None,
        total_steps: int | None = None,
    ):
        config = config or BregmanConfig()
        if config.schedule == "paper" and total_steps is None:
            raise ValueError("MomentumTeacher: schedule 'paper' needs total_steps")
        check(bregman_rules(config))
        _check_whole(model)
        self.teacher, self.total_steps = Teacher(unwrapped(model), config), total_steps

    @property
    def module(self) -> nn.Module:
        """The teacher's model, in train or eval mode as the student is."""
        return self.teacher.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher's model returns, without a graph."""
        return self.teacher(*args, **kwargs)

    def loss(
        self,
        logits: Tensor,
        divergence: Divergence = SYMMETRIC_KL,
        random_state: RandomState | None = None,
        **inputs: Any,
    ) -> Tensor:
        """D_Breg: the mean divergence of the student's logits from the teacher's; a scalar.

        Args:
            logits: of the student, with their graph; ``SmartOutput.logits``.
            random_state: ``SmartOutput.random_state``: the teacher drops out as the student did.
            inputs: what the student was called on; ``labels`` are left out.

        Raises:
            ValueError: the teacher gives another shape, or drops out and has no random state.
        """
        inputs.pop("labels", None)
        call = lambda _, **batch: self.teacher(**batch)  # noqa: E731
        model = ModelFunction(call, divergence, inputs, masks_are_gone=MASKS_ARE_GONE)
        student = model.outputs(logits)
        if random_state is not None:
            model.replay(random_state)
        with torch.no_grad(), uncached_autocast(logits):
            target = model(logits)
        return divergence(student, target).mean()

    def update(self, step: int) -> None:
        """Moves the averages towards the model, after optimiser step ``step`` (from 1)."""
        self.teacher.update(step, self.total_steps or step)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by the model's names; frozen ones are not in it."""
        return self.teacher.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the averages of ``state_dict``.

        Raises:
            WeightsError: a name is missing or unknown, or a shape differs.
        """
        self.teacher.load_state_dict(tensors)


def _check_whole(model: nn.Module) -> None:
    if any(hasattr(p, "full_tensor") for p in model.parameters()):  # of a DTensor
        raise ValueError(
            "MomentumTeacher: the model's weights are sharded; make the teacher of whole weights, "
            "in DistributedDataParallel for example"
        )
