"""What the ops on rows of features share: their dropout arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout_arguments(
    op: str, p: float, rng: Tensor | None, offsets: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """rng and offsets, or zeros in their place for p = 0, where nothing reads them.

    Raises:
        ValueError: p is outside [0, 1), or p > 0 and one of them is None.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{op}: p must be in [0, 1), got {p}")
    if p > 0 and (rng is None or offsets is None):
        raise ValueError(f"{op}: p = {p} needs rng (seed, step) and offsets; at least one is None")
    if rng is None:
        rng = torch.zeros(2, dtype=torch.int64, device=rows.device)
    if offsets is None:
        offsets = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    return rng, offsets
