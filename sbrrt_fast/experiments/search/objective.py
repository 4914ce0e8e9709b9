"""What a search looks for: the highest or lowest of one dev score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import did_you_mean
from sbrrt_fast.data.task import OVERALL
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.training.scores.metrics import LOWER_IS_BETTER


@dataclass(frozen=True)
class Objective:
    """A dev score by its name, ``overall`` or ``sst/accuracy``."""

    name: str = OVERALL

    @property
    def is_lower_better(self) -> bool:
        return self.name.rpartition("/")[2] in LOWER_IS_BETTER

    def of(self, scores: Mapping[str, Any]) -> float | None:
        """Its value among a run's scores; None where it is undefined.

        Args:
            scores: ``{"sst": {"accuracy": 0.5}, ..., "overall": 0.5}``.
        """
        value: Any = scores
        for part in self.name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        is_number = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if is_number else None

    def check(self, config: RunConfig) -> None:
        """ConfigError where runs with these settings have no such score."""
        names = [f"{task}/{m}" for task, t in config.tasks.items() for m in t.metric_names]
        if self.name not in (known := [OVERALL, *names]):
            hint = did_you_mean(self.name, known) or f"; there are {', '.join(known)}"
            raise ConfigError(f"--metric: runs have no score '{shown(self.name)}'{hint}")
