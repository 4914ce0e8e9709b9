"""PCGrad: an update of several tasks' gradients without the parts that conflict.

Against the other tasks in a random order, the gradient g_i of a task is projected onto the normal
plane of every g_j with which what is left of g_i has a negative inner product; the update is the
sum over tasks. Source: Yu et al., "Gradient surgery for multi-task learning" (arXiv 2001.06782),
Algorithm 1; ``docs/multitask.md``.

A projected gradient is a linear combination of the tasks' own. So their inner products say all, and
the update is one more combination of them: its factors are computed on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sbrrt_fast.model.dropout import SURGERY_SITE, noise_width
from sbrrt_fast.ops.smart_noise import smart_noise

BLOCK = 4096  # elements that are summed in the gradients' dtype; sums over blocks are float64


@torch.no_grad()
def inner_products(rows: Tensor) -> Tensor:
    """float64 [num_rows, num_rows] of float32 or float64 rows [num_rows, width].

    The same bits for any number of threads.
    """
    count, width = rows.shape
    whole = width // BLOCK * BLOCK
    blocks = rows[:, :whole].unflatten(1, (-1, BLOCK)).transpose(0, 1)
    rest = rows[:, None, whole:].transpose(0, 1)
    products = (torch.bmm(x, x.transpose(1, 2)).double().sum(0) for x in (blocks, rest))
    return sum(products, rows.new_zeros(count, count, dtype=torch.float64))


@torch.no_grad()
def projection_places(rng: Tensor, num_tasks: int, backend: str) -> Tensor:
    """When a task is projected against each other one: a function of seed and round.

    Args:
        rng: int64 [2], (seed, round), on the device.

    Returns:
        int64 [num_tasks, num_tasks]: row i has the places from 0 on of the others in the random
        order of task i, whose own place is the last.
    """
    width = noise_width(num_tasks)
    offsets = torch.arange(num_tasks, device=rng.device) * width
    draws = smart_noise(offsets, width, rng, SURGERY_SITE, backend=backend)[:, :num_tasks]
    draws.diagonal().fill_(math.inf)
    return draws.argsort(dim=1).argsort(dim=1)


@torch.no_grad()
def update_factors(products: Tensor, places: Tensor) -> Tensor:
    """float64 [num_tasks]: of each task's gradient in the sum of all projected ones.

    Args:
        products: the gradients' inner products. places: see ``projection_places``.
    """
    squares = products.diagonal()
    squares = squares.where(squares != 0, 1.0)  # a gradient of zero conflicts with none
    mixtures = torch.eye(len(products), dtype=products.dtype, device=products.device)
    for place in range(len(products) - 1):
        projections = (mixtures @ products).clamp(max=0.0) / squares
        mixtures = mixtures - projections.where(places == place, 0.0)
    return mixtures.sum(0)


@torch.no_grad()
def add_up(rows: Tensor, factors: Tensor) -> None:
    """Puts the sum of rows [num_rows, width], each times its factor, into the first one."""
    first, *others = rows.unbind()
    head, *tail = factors.to(rows.dtype).unbind()
    first.mul_(head)
    for row, factor in zip(others, tail, strict=True):
        first.addcmul_(row, factor)


@torch.no_grad()
def conflict_terms(products: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """How the tasks' gradients lie to each other, as terms of a round.

    Args:
        products: their inner products. names: of the tasks.

    Returns:
        float32 scalars: ``<task>/cosine_<other>``, once for every pair, NaN where one of the two is
        zero, and ``<task>/conflicts``, the share of the other tasks with a negative inner product.
    """
    norms = products.diagonal().sqrt()
    cosines = (products / (norms[:, None] * norms)).float()
    shares = (products < 0).float().sum(1) / max(len(names) - 1, 1)
    terms = {f"{name}/conflicts": shares[i] for i, name in enumerate(names)}
    for i, name in enumerate(names):
        for j in range(i + 1, len(names)):
            terms[f"{name}/cosine_{names[j]}"] = cosines[i, j]
    return terms
