"""smart_noise and smart_ascend."""

from __future__ import annotations

import itertools
import math

import torch

from sbrrt_fast.ops.dropout import philox_normal
from sbrrt_fast.ops.smart_ascend import smart_ascend, smart_ascend_reference
from sbrrt_fast.ops.smart_noise import smart_noise
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason
from tests.ops.cases.dropout import OffsetsCase
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE

F16 = torch.float16
CPP = ("sbrrt",)

# offsets, width, seed, step, site
NOISE_SAMPLES = {
    "one row": ((0,), 384, 3, 1, SITE),
    "no rows": ((), 8, 3, 1, SITE),
    "bert-base": (tuple(range(0, 7 * 768, 768)), 768, 3, 1, SITE),
    "narrow": (tuple(4 * (17 * i % 41) for i in range(41)), 4, 3, 1, SITE),
    "any offset": ((1, 2, 3, 1027, 2**34 - 5), 388, 3, 1, SITE),
    "one odd offset": ((0, 64, 129, 192), 64, 3, 1, SITE),
    "at the end": ((2**63 - 1 - 12,), 12, 3, 1, SITE),
    "zeros": (tuple(range(0, 16 * 512, 512)), 512, 0, 0, 2**32 - 1),
    "minus one": (tuple(range(0, 16 * 512, 512)), 512, -1, 2**32 - 1, 2**32 - 1),
    "the largest seed": (tuple(range(0, 16 * 512, 512)), 512, 2**63 - 1, 7, 2**32 - 1),
}


class NoiseCase(OffsetsCase):
    """One unit in the last place, and what float64's rounding of the angle leaves near zeros."""

    def function(self, backend):
        width, site = self.width, self.site
        return lambda offsets, rng: smart_noise(offsets, width, rng, site, backend=backend)

    def stock(self):
        return philox_normal(self.offsets, self.width, self.rng, self.site, backend="reference")

    def check(self, ours, stock, exact, approximation):
        assert ours[0].dtype == F32 and ours[0].shape == exact[0].shape
        error, size = (ours[0].double() - exact[0].double()).abs(), exact[0].double().abs()
        assert (error <= 1.2e-7 * size + 1e-14).all()


def good_noise() -> dict:
    offsets = torch.tensor([0, 8])
    return {"offsets": offsets, "rng": RNG, "site": SITE, "out": torch.zeros(2, 8)}


NOISE_BAD = (
    Bad("offsets", torch.tensor([0.0, 1.0]), TypeError, "offsets must have dtype"),
    Bad("offsets", torch.tensor([[0, 8]]), ValueError, "offsets must be a dense tensor of shape"),
    Bad("offsets", torch.tensor([4, -4]), ValueError, "offsets must be in .*, got -4", CPP),
    Bad("offsets", torch.tensor([0, 2**63 - 8]), ValueError, r"offsets must be in \[0, 2", CPP),
    Bad("rng", torch.tensor([1, 2, 3]), ValueError, "rng must be"),
    Bad("rng", torch.tensor([1, -1]), ValueError, "step, the second value of rng", CPP),
    Bad("site", 2**32, ValueError, "site must be in"),
    Bad("out", torch.zeros(2, 6), ValueError, "width .*must be a positive multiple of 4, got 6"),
    Bad("out", torch.zeros(2, 0), ValueError, "width"),
)  # fmt: skip

NOISE = Op(
    "smart_noise", NoiseCase, NOISE_SAMPLES,
    native={"one long row": ((12,), 100_004, 3, 1, SITE),
            "many rows": (tuple(range(0, 400 * 384, 384)), 384, 3, 1, SITE)},
    triton={"whole tiles": ((0, 256, 512, 768), 256, 3, 1, SITE),
            "four columns more": ((0, 260, 520), 260, 3, 1, SITE)},
    small="any offset", repeated=("many rows", "any offset"), orders=("any offset",),
    sized=lambda rows: (tuple(range(0, 64 * rows, 64)), 64, 3, 1, SITE),
    good=good_noise, bad=NOISE_BAD, is_differentiated=False,
    reasons=(Reason(lambda b: smart_noise(torch.empty(3, device="meta"), 8, RNG, SITE, backend=b),
                    "offsets is on meta, not"),),
)  # fmt: skip

NAMES = ("step_size", "normalize_gradient", "projection", "norm", "level")
OPTIONS = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(
        (1e-3, 0.7, math.inf),
        (True, False),
        ("ball", "normalize"),
        ("inf", "2"),
        ("token", "sequence"),
    )
]
# tokens of each sequence, hidden size, layout of delta and gradient
SIZES = {
    "one token": ((1,), 384, "dense"),
    "one feature": ((1, 2) * 5, 1, "dense"),
    "prime sizes": ((2, 3, 5, 7), 37, "dense"),
    "an empty sequence": ((3, 0, 2), 16, "dense"),
    "bert-base": ((4, 3), 768, "dense"),
    "strided rows": ((5, 6), 33, "strided"),
    "transposed": ((4, 9), 8, "transposed"),
    "no rows": ((), 5, "dense"),
}
FEW, RADII = tuple(range(0, len(OPTIONS), 5)), (1e-5, 0.5, 30.0)
DTYPES = tuple(itertools.product((F32, BF16), repeat=2))


def ascent(size: tuple, dtypes=(F32, F32), options=FEW, radii=(0.1,), scale=1.0) -> tuple:
    return *size, *dtypes, options, radii, scale


# size, dtypes of delta and gradient, numbers of options, radii, scale of the gradient
ASCEND_SAMPLES = {
    f"option {i}": ascent(((2, 3, 5), 37, "dense"), options=(i,), radii=RADII)
    for i in range(len(OPTIONS))
} | {
    f"{name}, {dtypes}".replace("torch.", ""): ascent(size, dtypes)
    for name, size in SIZES.items()
    for dtypes in DTYPES
} | {
    "no gradient": ascent(SIZES["an empty sequence"], options=tuple(range(48)), scale=0.0)
}  # fmt: skip
ASCEND_NATIVE = {
    f"{name}, {dtypes}".replace("torch.", ""): ascent(size, dtypes)
    for name, size in {
        "more prime sizes": ((2, 3, 5, 7, 11), 37, "dense"),
        "one feature of many": ((1, 2) * 51, 1, "dense"),
        "512 tokens": ((512,), 32, "dense"),
        "200 sequences": ((3, 1) * 100, 17, "dense"),
        "several threads": ((50, 3, 80) * 3, 384, "dense"),
    }.items()
    for dtypes in DTYPES
}
ASCEND_CUDA = {
    f"prime sizes, {dtypes}".replace("torch.", ""): ascent(SIZES["prime sizes"], dtypes)
    for dtypes in itertools.product((F32, BF16, F16), repeat=2)
} | {
    f"orders, {width}": ascent(((50, 3, 11), width, "dense"), options=tuple(range(0, 48, 5)))
    for width in (40, 37)
}


class AscendCase(Case):
    """Several options at once; float32's reference is what both backends are compared with."""

    def __init__(self, sample: tuple):
        lengths, width, layout, *dtypes, options, radii, scale = sample
        self.num_sequences, num_tokens = len(lengths), sum(lengths)
        draw = Drawn(num_tokens * width + len(lengths), layout)
        self.inputs = [
            draw.rows(num_tokens, width, dtype=dtype, scale=size)
            for dtype, size in zip(dtypes, (0.3, scale), strict=True)
        ]
        self.sequence = torch.repeat_interleave(
            torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)
        )
        self.mask = draw.indices(6, num_tokens) > 0  # a sixth is not perturbed
        self.mask[:1] = True
        self.settings = [OPTIONS[i] | {"radius": radius} for i in options for radius in radii]

    @property
    def constants(self):
        return self.mask, self.sequence

    def function(self, backend):
        count, settings = self.num_sequences, self.settings
        return lambda *tensors: [
            smart_ascend(*tensors, count, backend=backend, **options) for options in settings
        ]

    def stock(self, delta, gradient):
        wide = torch.promote_types(delta.dtype, F32)
        inputs = delta.to(wide), gradient.to(wide), *self.constants, self.num_sequences
        return [
            smart_ascend_reference(*inputs, **options).to(delta.dtype) for options in self.settings
        ]

    def check_value(self, value, exact):
        assert all(x[~self.mask].eq(0).all() for x in value)


def good_ascend() -> dict:
    return {
        "delta": torch.ones(17, 37), "gradient": torch.ones(17, 37),
        "mask": torch.ones(17, dtype=torch.bool), "sequence": torch.arange(17) // 4,
        "num_sequences": 5, "step_size": 0.1, "normalize_gradient": True, "projection": "ball",
        "radius": 0.1, "norm": "2", "level": "token", "out": torch.zeros(17, 37),
    }  # fmt: skip


ASCEND_BAD = (
    Bad("delta", torch.zeros(17, 37).double(), TypeError, "delta must have dtype float32"),
    Bad("delta", torch.zeros(17), ValueError, "delta must (be .* .num_tokens, hidden|have 2 dim)"),
    Bad("gradient", torch.zeros(17, 36), ValueError, "gradient must be"),
    Bad("gradient", torch.zeros(17, 37).int(), TypeError, "gradient must have dtype float32"),
    Bad("mask", torch.zeros(17), TypeError, "mask must have dtype"),
    Bad("mask", torch.zeros(16, dtype=torch.bool), ValueError, "mask must be a dense"),
    Bad("sequence", torch.zeros(17), TypeError, "sequence must have dtype"),
    Bad("sequence", torch.zeros(18).long(), ValueError, "sequence must be a dense"),
    Bad("sequence", torch.arange(17) - 1, ValueError, r"sequence must be in .*= 5\), got -1", CPP),
    Bad("num_sequences", 4, ValueError, r"sequence must be in .*= 4\), got 4 for token 16", CPP),
    Bad("step_size", 0.0, ValueError, "step_size must be > 0, got 0"),
    Bad("step_size", math.nan, ValueError, "step_size must be > 0, got nan"),
    Bad("projection", "cube", ValueError, "projection must be 'ball' or 'normalize', got 'cube'"),
    Bad("radius", 0.0, ValueError, "radius must be > 0 and finite, got 0"),
    Bad("radius", math.inf, ValueError, "radius must be > 0 and finite, got inf"),
    Bad("norm", "1", ValueError, "norm must be 'inf' or '2', got '1'"),
    Bad("level", "batch", ValueError, "level must be 'token' or 'sequence', got 'batch'"),
)  # fmt: skip


def _wide_delta(backend):
    given = good_ascend() | {"delta": torch.ones(17, 37, dtype=F64), "backend": backend}
    del given["out"]
    return smart_ascend(**given)


ASCEND = Op(
    "smart_ascend", AscendCase, ASCEND_SAMPLES, native=ASCEND_NATIVE, cuda=ASCEND_CUDA,
    small="prime sizes, (bfloat16, float32)",
    repeated=("several threads, (float32, float32)", "prime sizes, (float32, float32)"),
    orders=tuple(name for name in ASCEND_CUDA if "orders" in name),
    sized=lambda tokens: ascent(((tokens,), 64, "dense"), options=(7,)),
    good=good_ascend, bad=ASCEND_BAD, is_differentiated=False,
    reasons=(Reason(_wide_delta, "delta is float64, which runs on the reference"),),
)  # fmt: skip
