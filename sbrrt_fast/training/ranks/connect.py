"""The ranks of a command that torchrun may have started several times."""

from __future__ import annotations

import os

from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks

TIMEOUT = 45.0  # seconds for which a rank may be silent


def connect(device: str, timeout: float) -> Ranks:
    """This process among those that torchrun started; alone without torchrun.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``. timeout: seconds for which a rank may be silent.

    Raises:
        SbrrtError: there are several.
    """
    if world_size() > 1:
        raise SbrrtError(f"WORLD_SIZE is {world_size()}: several processes cannot be connected yet")
    return ONE_RANK


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)
