"""Multi-task BERT fine-tuning with SMART regularisation and round-robin updates.

The public names are loaded when first used, so that ``import sbrrt_fast`` is quick.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbrrt_fast.config import RunConfig
    from sbrrt_fast.data.task import TaskConfig
    from sbrrt_fast.model.bert import MiniBert
    from sbrrt_fast.smart.regularizer import SmartRegularizer

__all__ = ["MiniBert", "RunConfig", "SmartRegularizer", "TaskConfig"]

_HOME = {
    "MiniBert": "sbrrt_fast.model.bert",
    "RunConfig": "sbrrt_fast.config",
    "SmartRegularizer": "sbrrt_fast.smart.regularizer",
    "TaskConfig": "sbrrt_fast.data.task",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("sbrrt_fast")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sbrrt_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
