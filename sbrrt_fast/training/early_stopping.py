"""Early stopping: a run ends when its dev score has not got better for some evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sbrrt_fast.config import EarlyStoppingConfig


@dataclass(frozen=True)
class Waiting:
    """What early stopping knows of the evaluations so far; part of a run's saved state.

    Attributes:
        reference: the overall dev score that a better one must exceed by ``min_delta``; None
            before the first one that is defined.
        round: rounds done when it was reached.
        num_evaluations: evaluations since then. One without a defined score counts too.
    """

    reference: float | None = None
    round: int = 0
    num_evaluations: int = 0

    @classmethod
    def restored(cls, meta: Mapping[str, Any]) -> Waiting:
        """From ``to_meta``."""
        return cls(**meta)

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def after(self, score: float | None, round: int, min_delta: float) -> Waiting:
        """After one more evaluation."""
        is_better = score is not None and (
            self.reference is None or score > self.reference + min_delta
        )
        if is_better:
            return Waiting(score, round)
        return Waiting(self.reference, self.round, self.num_evaluations + 1)

    def is_over(self, config: EarlyStoppingConfig) -> bool:
        """Whether the run ends here."""
        return config.patience is not None and self.num_evaluations >= config.patience

    def line(self, config: EarlyStoppingConfig, done: int) -> str:
        """For the user, where the run ends after ``done`` rounds."""
        count = "evaluation" if self.num_evaluations == 1 else "evaluations"
        if self.reference is None:
            return f"stopped early after round {done}: no overall dev score of {count} is defined"
        by = f" by more than {config.min_delta:g}" if config.min_delta else ""
        return (
            f"stopped early after round {done}: {self.num_evaluations} {count} since round "
            f"{self.round}, none better than {self.reference:.4f}{by}"
        )
