"""What every kernel begins with, so that it may start while the one before it still runs."""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl


@triton.jit
def await_previous():
    """The first statement of every kernel: what the one before it in the stream wrote is visible.

    Then the next one may be started, which waits in turn (programmatic dependent launch, from
    compute capability 9.0 on). Kernels for older chips start when the one before has ended.
    """
    if tl.target_info.cuda_capability_geq(9, 0):
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@cache
def starts_early(device: int) -> bool:
    """Whether kernels on this GPU may start before the one in front of them has ended.

    ``SBRRT_PROGRAMMATIC_LAUNCH=0`` lets none. The environment is read once per device.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    setting = os.environ.get("SBRRT_PROGRAMMATIC_LAUNCH") or "1"
    if setting not in ("0", "1"):
        raise ValueError("SBRRT_PROGRAMMATIC_LAUNCH must be 0 or 1")
    is_nvidia = torch.version.hip is None
    return setting == "1" and is_nvidia and torch.cuda.get_device_capability(device) >= (9, 0)
