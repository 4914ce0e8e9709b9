"""dropout_add_layernorm."""

from __future__ import annotations

import torch

from sbrrt_fast.ops.dropout import dropout_mask_reference
from sbrrt_fast.ops.layernorm import dropout_add_layernorm, dropout_add_layernorm_reference
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, vector_dtype, writing
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE, float_tangent
from tests.ops.triton_only import NORM

EPS = 1e-12
F16 = torch.float16

# rows, width, dtype of x, dtype of the residual, p, layout
SAMPLES = {
    "one token": (1, 384, F32, F32, 0.1, "dense"),
    "primes": (37, 131, F32, F32, 0.1, "dense"),
    "primes in a half": (17, 37, BF16, F32, 0.1, "dense"),
    "primes, all in a half": (17, 37, BF16, BF16, 0.1, "dense"),
    "no dropout": (9, 384, BF16, F32, 0.0, "dense"),
    "no rows": (0, 64, F32, F32, 0.1, "dense"),
    "gaps between rows": (11, 96, F32, F32, 0.1, "strided"),
    "gaps in a half": (40, 90, BF16, F32, 0.0, "strided"),
    "transposed": (19, 33, F32, F32, 0.1, "transposed"),
    "one feature": (5, 1, F32, F32, 0.1, "dense"),
}
NATIVE = {
    "512 tokens": (512, 384, BF16, F32, 0.1, "dense"),
    "bert-base": (33, 768, F32, F32, 0.1, "dense"),
    "batch of 200": (200, 64, F32, F32, 0.5, "dense"),
    "half a residual": (29, 64, BF16, BF16, 0.1, "dense"),
}
TRITON = {
    "bert-base": (7, 768, F32, F32, 0.1, "dense"),
    "bert-base in a half": (5, 768, BF16, F32, 0.1, "dense"),
    "minilm in a half": (13, 384, BF16, F32, 0.1, "dense"),
    "two tiles of rows": (32, 32, F32, F32, 0.5, "dense"),
    "a row more": (33, 32, BF16, BF16, 0.5, "dense"),
    "a row less": (31, 32, F32, F32, 0.5, "dense"),
    "width of a block": (9, 512, F32, F32, 0.1, "dense"),
    "a feature more": (3, 513, F32, F32, 0.1, "dense"),
}
# Where no dtype decides, the shape of blocks does: rows of a warp, of four warps, of eight.
KERNELS = {
    f"{name}, {x} and {residual}": (5, width, x, residual, 0.1, "dense")
    for x, residual in [(F32, F32), (BF16, F32), (F16, F32), (BF16, BF16), (F16, F16)]
    for name, width in {"narrow": 384, "wide": 1024, "any": 37}.items()
}
CUDA = KERNELS | {
    "more rows than blocks hold": (2053, 4, F32, F32, 0.1, "dense"),
    "widest vectors": (2, 2048, F16, F32, 0.1, "dense"),
    "widest": (2, 2048, F32, F32, 0.1, "dense"),
    "not a multiple of 16 bytes": (9, 388, BF16, F32, 0.1, "dense"),
}


class LayerNormCase(Case):
    def __init__(self, sample: tuple):
        rows, width, dtype, residual_dtype, self.p, layout = sample
        draw, vector = Drawn(rows * width, layout), vector_dtype(residual_dtype)
        self.inputs = [
            draw.rows(rows, width, dtype=dtype),
            draw(width, dtype=vector),
            draw.rows(rows, width, dtype=residual_dtype, scale=2, shift=0.5),
            draw(width, dtype=vector, scale=0.2, shift=1),
            draw(width, dtype=vector),
        ]
        self.grad = draw.rows(rows, width, dtype=residual_dtype)
        self.tangents = {
            0: draw(rows, width, dtype=dtype),
            2: draw(rows, width, dtype=residual_dtype),
        }
        self.offsets = torch.arange(rows) * (3 * width) + width % 4

    @property
    def constants(self):
        return RNG, self.offsets

    def factors(self, dtype=F32):
        """Dropout's, [rows, width]."""
        width = self.inputs[0].shape[1]
        return dropout_mask_reference(self.offsets, width, self.p, RNG, SITE, dtype)

    def function(self, backend):
        p = self.p
        return lambda x, bias, residual, weight, shift, rng, offsets: dropout_add_layernorm(
            x, bias, residual, weight, shift, EPS, p, rng, SITE, offsets, backend=backend
        )

    def stock(self, *inputs):
        kept = (self.factors() != 0).to(inputs[0].dtype)
        out = dropout_add_layernorm_reference(*inputs, EPS, kept * (1 / (1 - self.p)))
        return out.to(inputs[2].dtype)


def good() -> dict:
    """The results are what a forward and a backward write."""
    rows = ("x", "residual", "grad", "product", "x_tangent", "residual_tangent", "out")
    rows = (*rows, "out_tangent")
    vectors = ("bias", "weight", "shift")
    return (
        {name: torch.zeros(2, 8) for name in (*rows, "dx", "dresidual")}
        | {name: torch.zeros(8) for name in vectors}
        | {"mean": torch.zeros(2), "rstd": torch.ones(2), "low": None, "low_tangent": None}
        | {"segments": _int32(0, 1, 1, 2), "sums": torch.zeros(3, 3, 8)}
        | {"eps": EPS, "p": 0.1, "rng": RNG, "site": SITE, "offsets": torch.tensor([0, 8])}
    )


def _int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


CPP = ("sbrrt",)
VECTOR = r"must (be a dense tensor of shape \[8\]|have 1 dim)"
BAD = (
    Bad("x", torch.zeros(2, 8, dtype=F64), TypeError, "x must have dtype float32"),
    Bad("x", torch.zeros(8), ValueError, "x must (be a dense tensor of shape|have 2 dimensions)"),
    Bad("x", torch.zeros(2, 0), ValueError, "x must (be a dense tensor|have at least one feature)"),
    Bad("bias", torch.zeros(7), ValueError, f"bias {VECTOR}"),
    Bad("bias", torch.zeros(1, 8), ValueError, f"bias {VECTOR}"),
    Bad("residual", torch.zeros(3, 8), ValueError, r"residual must be .* \[2, 8\]"),
    Bad("residual", torch.zeros(2, 8).long(), TypeError, "residual must have dtype"),
    Bad("residual", torch.zeros(2, 8, device="meta"), ValueError, "must be on"),
    Bad("weight", torch.zeros(8).long(), TypeError, "weight must have dtype"),
    Bad("weight", torch.zeros(8, dtype=F16), TypeError, "weight must have dtype", CPP),
    Bad("shift", torch.zeros(9), ValueError, f"shift {VECTOR}"),
    Bad("shift", torch.zeros(8, device="meta"), ValueError, "must be on"),
    Bad("eps", -1.0, ValueError, "eps must be finite and not negative"),
    Bad("eps", float("nan"), ValueError, "eps must be finite and not negative"),
    Bad("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    Bad("rng", torch.tensor([1.0, 2.0]), TypeError, "rng must have dtype"),
    Bad("rng", torch.zeros(3).long(), ValueError, "rng must be a dense tensor of shape"),
    Bad("rng", torch.tensor([1, -2]), ValueError, "step, the second value of rng", CPP),
    Bad("site", -1, ValueError, r"site must be in \[0, 2\^32\)"),
    Bad("offsets", torch.tensor([0]), ValueError, r"offsets must be .* shape \[2\]"),
    Bad("offsets", torch.zeros(2), TypeError, "offsets must have dtype"),
    Bad("offsets", torch.tensor([0, -1]), ValueError, "offsets must not be negative, got -1", CPP),
    Bad(
        "offsets", torch.tensor([0, 2**63 - 2]), ValueError, r"offsets \+ width must be below", CPP
    ),
    Bad("grad", torch.zeros(3, 8), ValueError, "grad must be a dense"),
    Bad("mean", torch.zeros(3), ValueError, "mean must be a dense"),
    Bad("rstd", torch.zeros(3), ValueError, "rstd must be a dense"),
    Bad("segments", None, ValueError, "sums are those of segments; pass both or none"),
    Bad("sums", None, ValueError, "sums are those of segments; pass both or none"),
    Bad("segments", torch.arange(4), TypeError, "segments must have dtype"),
    Bad("segments", torch.zeros(0, dtype=torch.int32), ValueError, "segments must be a dense"),
    Bad("segments", torch.zeros(1, 4, dtype=torch.int32), ValueError, "segments must"),
    Bad("segments", _int32(0, 2, 1, 2), ValueError, "must ascend from 0 .* rows, 2", CPP),
    Bad("segments", _int32(0, 1, 1, 1), ValueError, "must ascend from 0 .* rows, 2", CPP),
    Bad("segments", _int32(1, 1, 1, 2), ValueError, "must ascend from 0 .* rows, 2", CPP),
    Bad("sums", torch.zeros(3, 3, 8, dtype=F64), TypeError, "sums must have dtype"),
    Bad("sums", torch.zeros(2, 3, 8), ValueError, "sums must be a dense tensor of shape"),
    Bad("sums", torch.zeros(3, 3, 16)[..., ::2], ValueError, "sums is written .* apart from"),
    Bad("sums", torch.zeros(3, 3, 9)[..., :8], ValueError, "sums is written .* apart from"),
    Bad("sums", torch.zeros(1, 3, 8).expand(3, 3, 8), ValueError, "sums is written .* apart from"),
    Bad("x_tangent", torch.zeros(2, 7), ValueError, "x_tangent must be a dense"),
    Bad("residual_tangent", torch.zeros(2, 7), ValueError, "residual_tangent must be a dense"),
    Bad(
        "x_tangent",
        torch.zeros(3, 8),
        ValueError,
        "of the last rows of x, which has 2",
        parts=("forward",),
    ),
    Bad("x_tangent", torch.zeros(1, 8), ValueError, "_tangent must be a dense"),
    *(
        Bad(name, None, ValueError, "go together, and low_tangent with them", parts=("forward",))
        for name in ("x_tangent", "residual_tangent", "out_tangent")
    ),
    Bad("out_tangent", torch.zeros(2, 8, dtype=BF16), TypeError, "out_tangent must have dtype"),
    Bad("low_tangent", torch.zeros(1, 8, dtype=BF16), ValueError, "low_tangent must be a dense"),
    Bad("low_tangent", torch.zeros(2, 8), TypeError, "low_tangent must have dtype", CPP),
)


def _call(backend, place=None, width=8, dtype=F32, tangent=False):
    """The public function, of one input with a tangent where a place is given."""
    x, vector = torch.ones(3, width), torch.ones(width)
    inputs = [x.to(dtype), vector, x, vector, vector]

    def run(*some):
        given = inputs if place is None else [*inputs[:place], *some, *inputs[place + 1 :]]
        return dropout_add_layernorm(*given, EPS, backend=backend)

    return run() if place is None else float_tangent(run, [inputs[place]], [inputs[place]])


def _differentiated_tangent(backend):
    x, vector = torch.ones(3, 8), torch.ones(8)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        dropout_add_layernorm(dual, vector, x, vector, vector, EPS, backend=backend)


REASONS = (
    Reason(lambda b: _call(b, dtype=F64), "x is float64, which runs on the reference"),
    Reason(lambda b: _call(b, place=3), "weight has a tangent"),
    Reason(_differentiated_tangent, "tangent of x is itself being differentiated"),
    Reason(lambda b: _call(b, width=8193), "8193 features, above 8192", ("triton",)),
)

OP = Op(
    "dropout_add_layernorm", LayerNormCase, SAMPLES, native=NATIVE, triton=TRITON, cuda=CUDA,
    small="primes in a half", repeated=("512 tokens", "primes"), orders=tuple(KERNELS),
    calls=writing("dropout_add_layernorm", "forward", "backward", "jvp"), weights=(1, 3, 4),
    sized=lambda rows: (rows, 64, F32, F32, 0.1, "dense"),
    approximation=NORM, good=good, bad=BAD, reasons=REASONS,
)  # fmt: skip
