"""symmetric_kl and its Fisher product."""

from __future__ import annotations

import torch

from sbrrt_fast.ops.symmetric_kl import (
    symmetric_kl_delta,
    symmetric_kl_fisher,
    symmetric_kl_fisher_reference,
    symmetric_kl_reference,
)
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, writing
from tests.ops.op_checks import BF16, F32

F16 = torch.float16
# From far below the resolution of log-softmax to one class taking over from another.
SCALES = (1e-8, 1e-5, 1e-2, 0.5, 3.0, 60.0)
HALVES = {"half logits": (BF16, F32), "half delta": (F32, BF16), "halves": (BF16, BF16)}

# examples, classes, layout
SIZES = {
    "one example": (1, 2, "dense"),
    "no examples": (0, 5, "dense"),
    "batch of 8": (8, 5, "dense"),
    "an example more": (33, 3, "dense"),  # than two programs of Triton have
    "prime sizes": (31, 17, "dense"),
    "many classes": (3, 1009, "dense"),
    "strided rows": (24, 5, "strided"),
    "transposed": (13, 32, "transposed"),
}
# size, scale of the change, dtypes of logits and delta
SAMPLES = {
    f"{name}, {scale}": (*size, scale, F32, F32) for name, size in SIZES.items() for scale in SCALES
} | {
    f"{name}, {scale}": (31, 17, "dense", scale, *dtypes)
    for name, dtypes in HALVES.items()
    for scale in (1e-4, 0.5, 10.0)
}
TRITON = {f"whole programs, {scale}": (32, 4, "dense", scale, F32, F32) for scale in SCALES}
NATIVE = {f"batch of 200, {scale}": (200, 3, "dense", scale, F32, F32) for scale in SCALES} | {
    "batch of 2000, 0.5": (2000, 5, "dense", 0.5, F32, F32)
}
CUDA = {
    f"{name} in fp16, {scale}": (31, 17, "dense", scale, *(F16 if x is BF16 else x for x in dtypes))
    for name, dtypes in HALVES.items()
    for scale in (1e-4, 0.5, 10.0)
}


class SymmetricKlCase(Case):
    def __init__(self, sample: tuple):
        examples, classes, layout, scale, *dtypes = sample
        draw = Drawn(examples * classes, layout)
        self.inputs = [
            draw.rows(examples, classes, dtype=dtypes[0], scale=2),
            draw.rows(examples, classes, dtype=dtypes[1], scale=scale),
        ]
        self.grad = draw(2 * examples, dtype=torch.promote_types(F32, dtypes[0]))[::2]
        self.tangents = {i: draw(examples, classes, dtype=d) for i, d in enumerate(dtypes)}

    def function(self, backend):
        return lambda logits, delta: symmetric_kl_delta(logits, delta, backend=backend)

    def stock(self, logits, delta):
        return symmetric_kl_reference(logits, delta)

    def check_value(self, value, exact):
        """Small divergences keep their digits."""
        error = (value[0].double() - exact[0]).abs()
        assert (error <= 1.2e-7 * exact[0] + torch.finfo(F32).tiny).all()


class FisherCase(Case):
    def __init__(self, sample: tuple):
        self.inputs = SymmetricKlCase(sample).inputs

    def function(self, backend):
        return lambda logits, tangent: symmetric_kl_fisher(logits, tangent, backend=backend)

    def stock(self, logits, tangent):
        return symmetric_kl_fisher_reference(logits, tangent)


def good() -> dict:
    names = ("logits", "delta", "tangent", "dlogits", "ddelta")
    return {name: torch.zeros(8, 5) for name in names} | {
        "grad": torch.ones(8),
        "out": torch.zeros(8),
    }


BAD = (
    Bad("logits", torch.zeros(8, 5).double(), TypeError, "logits must have dtype float32"),
    Bad(
        "logits", torch.zeros(8), ValueError, "logits must (be .* .num_examples, num_cl|have 2 dim)"
    ),
    Bad("logits", torch.zeros(8, 0), ValueError, "logits must (be|have at least one)"),
    Bad("delta", torch.zeros(8, 4), ValueError, "delta must be"),
    Bad("delta", torch.zeros(8, 5).long(), TypeError, "delta must have dtype float32"),
    Bad("grad", torch.zeros(7), ValueError, "grad must be a dense tensor of shape"),
    Bad("grad", torch.zeros(8).double(), TypeError, "grad must have dtype"),
)
FISHER_BAD = (
    *BAD[:3],
    Bad("tangent", torch.zeros(8, 4), ValueError, "tangent must be"),
    Bad("tangent", torch.zeros(8, 5).long(), TypeError, "tangent must have dtype float32"),
)


def _fisher_of_a_leaf(backend):
    return symmetric_kl_fisher(torch.ones(8, 5), torch.ones(8, 5).requires_grad_(), backend=backend)


def _vmapped(backend):
    def row(w):
        return symmetric_kl_delta(w[None], w[None], backend=backend)[0]

    with torch.no_grad():
        return torch.vmap(row)(torch.ones(8, 5))


def _hessian(backend):
    def loss(d):
        return symmetric_kl_delta(torch.ones(8, 5), d, backend=backend).sum()

    return torch.func.hessian(loss)(torch.ones(8, 5))


REASONS = (
    Reason(
        lambda b: symmetric_kl_delta(torch.ones(8, 5).double(), torch.ones(8, 5), backend=b),
        "logits is float64, which runs on the reference",
    ),
    Reason(
        lambda b: symmetric_kl_delta(*torch.ones(2, 8, 5000), backend=b),
        "5000 classes are above 4096",
        ("triton",),
    ),
    Reason(_vmapped, r"torch\.func's vmap and gradients"),
    Reason(_hessian, r"torch\.func's vmap and gradients"),
)

OP = Op(
    "symmetric_kl", SymmetricKlCase, SAMPLES, native=NATIVE, triton=TRITON, cuda=CUDA,
    small="batch of 8, 0.5",
    repeated=("batch of 2000, 0.5", "prime sizes, 0.5"),
    orders=("prime sizes, 0.5", "strided rows, 0.5"),
    calls=writing("symmetric_kl", "forward", "backward"),
    sized=lambda examples: (examples, 5, "dense", 0.5, F32, F32),
    good=good, bad=BAD, reasons=REASONS, without_tangent=("cuda_on_cpu",), warns=True,
)  # fmt: skip
FISHER = Op(
    "symmetric_kl_fisher", FisherCase,
    {f"{name}, {dtypes}".replace("torch.", ""): (*size, 1.0, *dtypes)
     for name, size in SIZES.items()
     for dtypes in ((F32, F32), (BF16, F32), (BF16, BF16))},
    native={"batch of 200": (200, 3, "dense", 1.0, F32, F32)},
    triton={"whole programs": (32, 4, "dense", 1.0, F32, F32)},
    small="batch of 8, (float32, float32)",
    repeated=("prime sizes, (float32, float32)",),
    orders=("prime sizes, (float32, float32)", "strided rows, (float32, float32)"),
    sized=OP.sized, good=lambda: good() | {"out": torch.zeros(8, 5)}, bad=FISHER_BAD,
    reasons=(Reason(_fisher_of_a_leaf, "the product's own derivative"),),
    is_differentiated=False, warns=True,
)  # fmt: skip
