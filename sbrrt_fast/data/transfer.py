"""Tensors on their way from the host to a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on ``device``, without waiting for it.

    A copy from pageable memory may make the host wait until the device has got to it, so what goes
    to a GPU goes through pinned memory, which torch keeps until the copy has read it.
    """
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
