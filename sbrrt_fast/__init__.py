"""Multi-task BERT fine-tuning with SMART regularisation and round-robin updates.

The public names are loaded when first used, so that ``import sbrrt_fast`` is quick.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbrrt_fast.api import Prediction, Predictions, TaskModel, TrainResult, load, train
    from sbrrt_fast.config import (
        AverageConfig,
        BregmanConfig,
        EarlyStoppingConfig,
        LogConfig,
        LoraConfig,
        ModelConfig,
        OptimizerConfig,
        RoundConfig,
        RunConfig,
        SmartConfig,
    )
    from sbrrt_fast.config_io import load_config
    from sbrrt_fast.data.task import TaskConfig
    from sbrrt_fast.errors import Interrupted, SbrrtError
    from sbrrt_fast.hf.apply import apply_sbrrt_kernels, remove_sbrrt_kernels
    from sbrrt_fast.hf.interface import register_sbrrt_attention
    from sbrrt_fast.model.bert import MiniBert
    from sbrrt_fast.smart.momentum_teacher import MomentumTeacher
    from sbrrt_fast.smart.regularizer import SmartRegularizer
    from sbrrt_fast.training.callbacks import Callback, RunInfo

    __version__: str

__all__ = [
    "AverageConfig",
    "BregmanConfig",
    "Callback",
    "EarlyStoppingConfig",
    "Interrupted",
    "LogConfig",
    "LoraConfig",
    "MiniBert",
    "ModelConfig",
    "MomentumTeacher",
    "OptimizerConfig",
    "Prediction",
    "Predictions",
    "RoundConfig",
    "RunConfig",
    "RunInfo",
    "SbrrtError",
    "SmartConfig",
    "SmartRegularizer",
    "TaskConfig",
    "TaskModel",
    "TrainResult",
    "apply_sbrrt_kernels",
    "load",
    "load_config",
    "register_sbrrt_attention",
    "remove_sbrrt_kernels",
    "train",
]

_HOMES = {
    "sbrrt_fast.api": (
        "Prediction",
        "Predictions",
        "TaskModel",
        "TrainResult",
        "load",
        "train",
    ),
    "sbrrt_fast.config": (
        "AverageConfig",
        "BregmanConfig",
        "EarlyStoppingConfig",
        "LogConfig",
        "LoraConfig",
        "ModelConfig",
        "OptimizerConfig",
        "RoundConfig",
        "RunConfig",
        "SmartConfig",
    ),
    "sbrrt_fast.config_io": ("load_config",),
    "sbrrt_fast.data.task": ("TaskConfig",),
    "sbrrt_fast.errors": (
        "Interrupted",
        "SbrrtError",
    ),
    "sbrrt_fast.hf.apply": (
        "apply_sbrrt_kernels",
        "remove_sbrrt_kernels",
    ),
    "sbrrt_fast.hf.interface": ("register_sbrrt_attention",),
    "sbrrt_fast.model.bert": ("MiniBert",),
    "sbrrt_fast.smart.momentum_teacher": ("MomentumTeacher",),
    "sbrrt_fast.smart.regularizer": ("SmartRegularizer",),
    "sbrrt_fast.training.callbacks": (
        "Callback",
        "RunInfo",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker is to see a name that is not there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return version("sbrrt_fast")
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        raise AttributeError(f"module 'sbrrt_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
