"""Shapes that the benchmarks of the row ops share, and what they do with each variant."""

from __future__ import annotations

import torch

P, RNG, SITE, EPS = 0.1, torch.tensor([17, 5]), 2, 1e-12

# tokens x (hidden, feed-forward): one task's batch and a joint round, MiniLM and bert-base
SHAPES = {
    "minilm-300": (300, 384, 1536),
    "minilm-712": (712, 384, 1536),
    "bert-base-300": (300, 768, 3072),
    "bert-base-712": (712, 768, 3072),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|, in float64."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
