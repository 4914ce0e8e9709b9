"""The reference of the update: torch's own clipping and AdamW, then the teacher's moving average.

An update whose gradient norm is not finite is skipped: weights, moments, numbers of updates and the
teacher stay as they were. The device decides and counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.step.optimizer import clip_gradients


class TorchUpdate:
    """Clips, steps the optimiser, then moves the teacher.

    Args:
        optimizer: over the trainable parameters. teacher: or None.
        clip_norm: largest global gradient norm; 0 does not clip.
        num_steps: of the whole run, for the teacher's schedule.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        teacher: Teacher | None,
        clip_norm: float,
        num_steps: int,
    ):
        self.optimizer, self.teacher = optimizer, teacher
        self.clip_norm, self.num_steps = clip_norm, num_steps
        self.members = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        self.device = self.members[0][0].device
        self._num_skipped = torch.zeros((), device=self.device)

    def __call__(self, step: int) -> Tensor:
        """Update number ``step``, from 1; returns the gradients' norm before clipping.

        Gradients are the parameters' ``grad``; a parameter without one stays as it is.
        """
        norm = clip_gradients([p for p, _ in self.members], self.clip_norm)
        skipped = ~torch.isfinite(norm)
        self._num_skipped.add_(skipped)
        self._step(skipped)
        if self.teacher is not None:
            self.teacher.update(step, self.num_steps, skipped)
        return norm

    def take_num_skipped(self) -> int:
        """How many updates were skipped since the last call; waits for the device."""
        count = int(self._num_skipped.item())
        self._num_skipped.zero_()
        return count

    def _step(self, skipped: Tensor) -> None:
        if not all(group.get("fused") for group in self.optimizer.param_groups):
            if not skipped.item():  # torch's other updates cannot skip on the device
                self.optimizer.step()
            return
        self.optimizer.found_inf = skipped.float()  # as torch.amp.GradScaler does
        try:
            self.optimizer.step()
        finally:
            self.optimizer.found_inf = None
