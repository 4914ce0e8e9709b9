"""SMART's initial noise: standard normal draws as a function of (seed, step, site, element index).

Box and Muller's transform of pairs of Philox words (w0, w1) of a row, with u = (w0 + 1) / 2^32 and
a = 2 pi w1 / 2^32:

    sqrt(-2 log u) cos a,    sqrt(-2 log u) sin a

``ops.dropout`` defines the words. Source: Box and Muller, "A note on the generation of random
normal deviates", Ann. Math. Statist. 29 (1958).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import Backend
from sbrrt_fast.ops._backend.dispatch import fused_op
from sbrrt_fast.ops._backend.library import define, empty_floats
from sbrrt_fast.ops.dropout import philox_normal

define(
    "smart_noise_into(Tensor offsets, Tensor rng, int site, Tensor(a!) out)",
    "draws.smart_noise_into",
)


def smart_noise_reference(offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    """See ``smart_noise``; computed in float64 and rounded."""
    return philox_normal(offsets, width, rng, site, backend="reference")


def _run(backend: Backend, offsets: Tensor, width: int, rng: Tensor, site: int) -> Tensor:
    out = empty_floats(offsets, offsets.shape[0], width)
    backend.ops.smart_noise_into(offsets, rng, site, out)
    return out


def _why_not(backend: Backend, offsets: Tensor, *args) -> str | None:
    return backend.device_reason("offsets", offsets)


_noise = fused_op("smart_noise", _run, _why_not, smart_noise_reference)


@torch.no_grad()
def smart_noise(
    offsets: Tensor, width: int, rng: Tensor, site: int, *, backend: str = "auto"
) -> Tensor:
    """Standard normal draws, float32 [N, width].

    Args:
        offsets: int64 [N], the logical index of each row's first element, >= 0.
        width: elements per row, a positive multiple of 4.
        rng: int64 [2], (seed, step); step in [0, 2^32).
        site: which draw of the step this is, in [0, 2^32).
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; they agree within
            a unit in the last place.

    Raises:
        ValueError: an argument is out of range.
        BackendError: the named backend cannot run these inputs.
    """
    if width < 4 or width % 4:
        raise ValueError(f"smart_noise: width must be a positive multiple of 4, got {width}")
    return _noise(offsets, width, rng, site, backend=backend)


OPS = (_noise,)
