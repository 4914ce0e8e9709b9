"""Which weights of a run are evaluated and saved: the trained ones, or an average of them.

The average is in a module of its own, so that an evaluation leaves the trained weights alone. There
are no statistics to be taken anew for it, as batch normalisation has: LayerNorm has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.config import AverageConfig
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.averaged_module import AveragedModule
from sbrrt_fast.smart.bregman import Teacher

_NUM = "num_weights"  # in a state, beside the averages


def first_averaged(config: AverageConfig, num_rounds: int) -> int:
    """The number of rounds, at least 1, after which an average takes the place of the weights."""
    return max(1, round(config.start * num_rounds))


def note_of(facts: Mapping[str, Any] | None) -> str:
    """``RunAverage.facts`` in words, in brackets; empty for the trained weights, and for None."""
    facts = facts or {"weights": "none"}
    if facts["weights"] == "teacher":
        return " (the teacher's weights)"
    count = facts.get("num_weights")
    rounds = "round" if count == 1 else "rounds"
    return f" (mean of the weights after {count} {rounds})" if count else ""


class RunAverage:
    """The average of a run's weights.

    ``swa`` is the equal mean of the weights after round ``first`` and every ``every`` rounds from
    there (stochastic weight averaging, arXiv 1803.05407); ``teacher`` the momentum teacher.

    Args:
        model: that is trained, on its device. teacher: or None, not with ``teacher``.
        config: the average's. num_rounds: of the whole run.

    Attributes:
        first: see ``first_averaged``. num_weights: how many ``swa`` has averaged.
    """

    def __init__(
        self, model: MultiTaskModel, teacher: Teacher | None, config: AverageConfig, num_rounds: int
    ):
        self._trained, self.config = model, config
        self.first, self.num_weights = first_averaged(config, num_rounds), 0
        is_swa = config.weights == "swa"
        self._mean = AveragedModule(model, "average of the weights") if is_swa else None
        self._averaged = teacher if config.weights == "teacher" else self._mean

    @property
    def is_mean(self) -> bool:
        """Whether there is a mean, in memory of its own."""
        return self._mean is not None

    def after_round(self, done: int) -> None:
        """Takes the weights into the mean, where those after ``done`` rounds are one of its own."""
        if self._mean is None or done < self.first or (done - self.first) % self.config.every:
            return
        self.num_weights += 1
        self._mean.move(1.0 / self.num_weights)

    def model(self, done: int) -> MultiTaskModel:
        """What is evaluated and saved after ``done`` rounds."""
        return (
            self._trained if self._averaged is None or done < self.first else self._averaged.module
        )

    def facts(self, done: int) -> dict[str, Any]:
        """Which weights those are, for ``metrics.json``."""
        if self._averaged is None or done < self.first:
            return {"weights": "none"}
        num = {} if self._mean is None else {"num_weights": self.num_weights}
        return {"weights": self.config.weights, **num}

    def tensors(self) -> dict[str, Tensor]:
        """What a state must have of it; empty where there is no mean yet."""
        if self._mean is None or self.num_weights == 0:
            return {}
        return self._mean.state_dict() | {_NUM: torch.tensor(self.num_weights)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what ``tensors`` gave.

        Raises:
            WeightsError: a tensor is missing or has another shape.
        """
        if self._mean is None or not tensors:
            return
        if _NUM not in tensors:
            raise WeightsError(f"saved state: '{_NUM}' is missing; train anew with --overwrite")
        self.num_weights = int(tensors[_NUM])
        self._mean.load_state_dict({name: x for name, x in tensors.items() if name != _NUM})

    def extended(self, done: int) -> None:
        """The run is longer now: a mean that has its first weights no sooner begins anew."""
        if done <= self.first:
            self.num_weights = 0
            self.after_round(done)
