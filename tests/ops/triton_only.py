"""What the tests of the Triton kernels have in common."""

from __future__ import annotations

import torch

# Without a GPU, conftest.py has turned Triton's interpreter on, which takes CPU tensors.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# What Triton compiles float32 to on a GPU does not round correctly, as the interpreter does. PTX's
# instruction set bounds the relative errors; in eps = 2^-23, one to two ulps, they are: div.full 2,
# sqrt.approx 1, rsqrt.approx 2^-22.9 or 1.1, ex2.approx 2^-22 or 2. A product may be contracted
# with a sum into a fused multiply-add, which leaves out a rounding, of half an eps. Ops that
# compute in float64 (smart_ascend, smart_noise, symmetric_kl) have none of these.
EPS = 2.0**-23 if DEVICE.type == "cuda" else 0.0
DIVISION, ROOT, RECIPROCAL_ROOT, POWER, CONTRACTION = 2 * EPS, EPS, 1.1 * EPS, 2 * EPS, 0.5 * EPS
# A probability is a power over a sum: once in the result, twice where its derivative multiplies it
# with a difference of such averages.
ATTENTION = 2 * (POWER + DIVISION)
# The mean is a quotient; rstd is the root of another, which halves its error. The backward and the
# tangent take both once more, and two means.
NORM = 2 * (DIVISION + DIVISION / 2 + RECIPROCAL_ROOT)
GELU = POWER + 2 * CONTRACTION  # the density, in a sum of products
# m / (sqrt(v) s + eps) is the step, which is added to a weight that is larger.
ADAMW = ROOT + DIVISION + 2 * CONTRACTION


def equal_but_for_order(ours: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether two compilations of a kernel computed the same.

    In the interpreter bit for bit. On a GPU other dtypes or sizes may give a thread other elements,
    and a sum another tree: three roundings of the largest value.
    """
    if not EPS:
        return torch.equal(ours, others)
    a, b = ours.double(), others.double()
    return bool(((a - b).abs() <= 3 * EPS * b.abs().max()).all()) if b.numel() else True
