"""Whether a variant computes what it should: only then it is timed."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


class WrongResult(AssertionError):
    """A variant computes something else than it should: it is not timed."""


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b| in float64; infinite where the shapes differ or a number is not finite."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.detach().double(), b.detach().double()
    difference = ((a - b).norm() / b.norm().clamp(min=1e-300)).item()
    return difference if math.isfinite(difference) else math.inf


def check_close(
    what: str, results: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], tolerance: float
) -> None:
    """Raises WrongResult unless every tensor is within ``tolerance`` of what is expected."""
    for index, (a, b) in enumerate(zip(results, expected, strict=True)):
        difference = relative_difference(a, b)
        if not difference <= tolerance:
            raise WrongResult(f"{what}, result {index}: off by {difference:.2g} of its size")
