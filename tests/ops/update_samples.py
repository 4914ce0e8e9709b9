"""What the tests of the update's ops share: samples, and the gradients' norm by every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sbrrt_fast.ops.gradient_norm import ClippedNorm, clipped_gradient_norm, gradient_norm
from tests.cuda_on_cpu.kernels import adamw as cuda_kernels
from tests.ops.backends import DEVICES, INTERPRETED
from tests.ops.cases.adamw import SHAPES

PIECES = SHAPES | {"several pieces": ((16384,), (16385,), (5, 7919), (3,))}
samples = pytest.mark.parametrize("shapes", PIECES.values(), ids=PIECES)
triton_ops = torch.ops.sbrrt_triton


def is_interpreted(backend: str) -> bool:
    """Whether bfloat16 is refused where a backend is chosen, since the interpreter truncates it."""
    return backend == "triton" and INTERPRETED


def norm(grads: list[Tensor], backend: str) -> Tensor:
    """On the CPU."""
    if backend == "cuda_on_cpu":
        return cuda_kernels.norm(grads)
    return gradient_norm(grads, backend=backend).cpu()


def clipped(grads: list[Tensor], max_norm: float, backend: str) -> ClippedNorm:
    """On the CPU."""
    if backend == "cuda_on_cpu":
        return ClippedNorm(*cuda_kernels.clipped_norm(grads, max_norm).unbind())
    if is_interpreted(backend):
        triton_ops.gradient_norm_into(grads, max_norm, results := torch.full((3,), math.nan))
        return ClippedNorm(*results.unbind())
    there = [g.to(DEVICES.get(backend, "cpu")) for g in grads]
    found = clipped_gradient_norm(there, max_norm, backend=backend)
    return ClippedNorm(*(x.cpu() for x in found))
