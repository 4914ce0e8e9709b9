"""The configuration of a run: its settings, which check themselves where they are made."""

from __future__ import annotations

from dataclasses import dataclass

from sbrrt_fast.config_fields import typed_fields
from sbrrt_fast.config_rules import validate
from sbrrt_fast.settings import (
    AverageConfig,
    BregmanConfig,
    Device,
    EarlyStoppingConfig,
    LogConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    PairFeatures,
    Precision,
    RoundConfig,
    RunSettings,
    SmartConfig,
)

__all__ = [
    "AverageConfig",
    "BregmanConfig",
    "Device",
    "EarlyStoppingConfig",
    "LogConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PairFeatures",
    "Precision",
    "RoundConfig",
    "RunConfig",
    "SmartConfig",
]


@dataclass(frozen=True)
class RunConfig(RunSettings):
    __doc__ = RunSettings.__doc__

    def __post_init__(self) -> None:
        for name, value in typed_fields(self).items():
            object.__setattr__(self, name, value)
        validate(self)
