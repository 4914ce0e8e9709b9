"""adamw_ema_ and adamw_ema_rows_, against torch's AdamW and a lerp."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sbrrt_fast.ops.adamw_ema import RowGradient, adamw_ema_, adamw_ema_rows_
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason
from tests.ops.op_checks import BF16, F32, F64
from tests.ops.triton_only import ADAMW as ADAMW_BOUND

F16 = torch.float16

# The fused kernels work in pieces of 2,048, 8,192 and 16,384 elements.
SHAPES = {
    "one element": ((),),
    "odd sizes": ((3, 7), (1,), (13,), (0, 4), (31, 33), (17,)),
    "an element more": ((2049,), (8193,), (16385,), (5, 1639)),
}
NATIVE_SHAPES = {
    "several pieces": ((16384,), (16385,), (5, 7919), (3,)),
    "one large": ((211, 499),),
}
TRITON_SHAPES = {
    "whole tiles and pieces": ((2048,), (8192,), (16384,)),
    "an element less": ((2047,), (8191,), (16383,)),
}
CUDA_SHAPES = {"aligned": ((16384,), (12, 64), (129, 4))}
# step, (beta1, beta2)
STEPS = {
    "step 1": (1, (0.9, 0.999)),
    "step 1000": (1000, (0.9, 0.999)),
    "step 10^7": (10**7, (0.9, 0.999)),
    "no momentum": (5, (0.0, 0.999)),
    "no second moment": (5, (0.9, 0.0)),
    "a long second moment": (5, (0.5, 0.99999)),
}
USUAL = (5, (0.9, 0.999))
# Sizes of tables; a Triton program holds 512 / width rows of narrow ones and one of wide ones.
SIZES = {
    "one row": (1, 5),
    "primes": (97, 37),
    "a row more": (65, 16),
    "whole tiles": (64, 16),
    "wide": (40, 384),
    "no rows": (0, 7),
}


def numbers(step: int, **changes) -> dict:
    """Of one update."""
    return {
        "learning_rate": torch.tensor(1e-2 / step**0.5, dtype=F64),
        "clip_factor": torch.tensor(0.7),
        "step": torch.tensor(step),
        "betas": (0.9, 0.99),
        "ema_beta": 0.95,
    } | changes


def stock_step(params, grads, exp_avg, exp_avg_sq, ema, weight_decay, *, step, betas, ema_beta,
               learning_rate, clip_factor):  # fmt: skip
    """An update by torch's path for single tensors and a lerp."""
    steps = step.expand(len(params)).tolist()
    for i, p in enumerate(params):
        if not grads[i].numel():
            continue
        adamw(
            [p], [grads[i] * clip_factor.to(p.dtype)], [exp_avg[i]], [exp_avg_sq[i]], [],
            [torch.tensor(steps[i] - 1.0, dtype=p.dtype)], amsgrad=False, beta1=betas[0],
            beta2=betas[1], lr=learning_rate.item(), weight_decay=weight_decay[i], eps=1e-8,
            maximize=False, foreach=False,
        )  # fmt: skip
    torch._foreach_lerp_(ema, params, 1 - ema_beta)


class UpdateCase(Case):
    """Inputs are what an update reads and writes; three roundings of it are allowed.

    A moment may cross zero, so that its error is none of its own size.
    """

    def check(self, ours, stock, exact, approximation):
        before = self.inputs[: len(exact)]
        for mine, theirs, truth, old in zip(ours, stock, exact, before, strict=True):
            assert mine.shape == truth.shape
            if truth.numel():
                size = max(truth.abs().max().item(), old.abs().max().item())
                allowed = 2 * (theirs - truth).abs().max() + (2e-7 + approximation) * size
                assert (mine - truth).abs().max() <= allowed


class AdamwCase(UpdateCase):
    """Gradients of one dtype and a step of all, or a sequence of each; None is no gradient."""

    def __init__(self, sample: tuple):
        shapes, dtype, grad_dtypes, step, betas = sample
        draw, self.count = Drawn(len(shapes)), len(shapes)
        if isinstance(grad_dtypes, torch.dtype):
            grad_dtypes = (grad_dtypes,) * self.count
        params = [draw(*shape, dtype=dtype) for shape in shapes]
        self.inputs = [
            *params,
            *(draw(*shape, dtype=dtype, scale=0.01) for shape in shapes),
            *(draw(*shape, dtype=dtype, scale=0.03).square() for shape in shapes),
            *(p + draw(*p.shape, dtype=dtype, scale=0.01) for p in params),
            *(draw(*shape, dtype=of, scale=0.1) if of else torch.empty(0)
              for shape, of in zip(shapes, grad_dtypes, strict=True)),
        ]  # fmt: skip
        steps = torch.as_tensor(step)
        self.numbers = numbers(int(steps.max()), betas=betas) | {"step": steps}
        self.weight_decay = [0.01 if len(shape) > 1 else 0.0 for shape in shapes]

    @property
    def constants(self):
        return tuple(self.numbers[key] for key in ("learning_rate", "clip_factor", "step"))

    def lists(self, tensors) -> list[list[Tensor]]:
        """params, exp_avg, exp_avg_sq, ema and grads."""
        return [list(tensors[i * self.count : (i + 1) * self.count]) for i in range(5)]

    def function(self, backend):
        def update(*tensors):
            *flat, rate, factor, step = tensors
            params, m, v, ema, grads = self.lists(flat)
            params, m, v, ema = ([x.clone() for x in xs] for xs in (params, m, v, ema))
            settings = self.numbers | {"learning_rate": rate, "clip_factor": factor, "step": step}
            decay = self.weight_decay
            adamw_ema_(
                params, grads, m, v, weight_decay=decay, ema=ema, backend=backend, **settings
            )
            return [*params, *m, *v, *ema]

        return update

    def stock(self, *tensors):
        params, m, v, ema, grads = self.lists(tensors)
        params, m, v, ema = ([x.clone() for x in xs] for xs in (params, m, v, ema))
        grads = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
        stock_step(params, grads, m, v, ema, self.weight_decay, **self.numbers)
        return [*params, *m, *v, *ema]


def row_gradient(size: tuple, step: int, dtype: torch.dtype = F32) -> RowGradient:
    """Of no row at all up to every row, by the number of the step."""
    generator = torch.Generator().manual_seed(step)
    count = (step * 7) % (size[0] + 1)
    rows = torch.randperm(size[0], generator=generator)[:count].sort().values
    return RowGradient(rows, torch.randn(count, size[1], generator=generator).to(dtype))


class RowsCase(UpdateCase):
    """Several steps, each with other rows, against steps of the dense table."""

    STEPS = range(1, 7)

    def __init__(self, sample: tuple):
        *self.size, dtype = sample
        draw = Drawn(self.size[0])
        param = draw(*self.size, dtype=dtype)
        zeros = torch.zeros_like(param)
        self.inputs = [param, zeros, zeros, param + draw(*self.size, dtype=dtype, scale=0.01)]

    def function(self, backend):
        def update(param, m, v, ema):
            param, m, v, ema = (x.clone() for x in (param, m, v, ema))
            touched = torch.zeros(len(param), dtype=torch.bool, device=param.device)
            for step in self.STEPS:
                found = row_gradient(self.size, step, param.dtype)
                found = RowGradient(*(x.to(param.device) for x in (found.rows, found.values)))
                there = {k: x.to(param.device) if isinstance(x, Tensor) else x
                         for k, x in numbers(step).items()}  # fmt: skip
                adamw_ema_rows_(
                    param, found, touched, m, v, weight_decay=0.1, ema=ema, backend=backend, **there
                )
                assert torch.equal(touched, (v != 0).any(1))
            return [param, m, v, ema]

        return update

    def stock(self, param, m, v, ema):
        param, m, v, ema = (x.clone() for x in (param, m, v, ema))
        for step in self.STEPS:
            grad = row_gradient(self.size, step, param.dtype).dense(param)
            stock_step([param], [grad], [m], [v], [ema], [0.1], **numbers(step))
        return [param, m, v, ema]


def good_update() -> dict:
    def pair():
        return [torch.zeros(4, 5), torch.zeros(5)]

    names = ("params", "grads", "exp_avg", "exp_avg_sq", "ema")
    copies = {
        name: [x.bfloat16() for x in pair()] for name in ("low_precision", "ema_low_precision")
    }
    return {name: pair() for name in names} | copies | scalars() | {"weight_decay": [0.1, 0.0]}


def good_rows() -> dict:
    names = ("param", "exp_avg", "exp_avg_sq", "ema")
    return {name: torch.zeros(5, 3) for name in names} | scalars() | {
        "grad": torch.ones(2, 3), "rows": torch.tensor([1, 4]), "weight_decay": 0.1,
        "touched": torch.zeros(5, dtype=torch.bool),
    }  # fmt: skip


def scalars() -> dict:
    return {
        "learning_rate": torch.tensor(1e-3), "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
        "clip_factor": torch.tensor(1.0), "step": torch.tensor(1), "ema_beta": 0.9,
    }  # fmt: skip


CPP, TRITON_ONLY = ("sbrrt",), ("sbrrt_triton",)
PAIR = [torch.zeros(4, 5), torch.zeros(5)]
SCALAR_BAD = (
    Bad("learning_rate", torch.tensor([1e-3] * 3), ValueError, "learning_rate must be"),
    Bad("learning_rate", torch.ones(1, 1), ValueError, "learning_rate must be"),
    Bad("learning_rate", torch.tensor(1), TypeError, "learning_rate must have dtype float32 or"),
    Bad("learning_rate", torch.tensor(-1.0), ValueError, "learning_rate must be >= 0, got -1", CPP),
    Bad("learning_rate", torch.tensor(math.nan), ValueError, "rate must be >= 0, got nan", CPP),
    Bad("learning_rate", torch.tensor(1.0, device="meta"), ValueError, "must be on "),
    Bad("beta1", 1.0, ValueError, r"betas must be in \[0, 1\), got \(?1"),
    Bad("beta2", -0.1, ValueError, r"betas must be in \[0, 1\)"),
    Bad("eps", -1e-8, ValueError, "eps must be >= 0"),
    Bad("clip_factor", torch.tensor([1.0]), ValueError, "clip_factor must be"),
    Bad("clip_factor", torch.tensor(1.0).double(), TypeError, "clip_factor must have dtype"),
    Bad("clip_factor", torch.tensor(1.0, device="meta"), ValueError, "must be on "),
    Bad("step", torch.tensor(0), ValueError, "step counts from 1, got 0", CPP),
    Bad("step", torch.tensor([1] * 3), ValueError, "step must be a dense tensor of shape"),
    Bad("step", torch.ones(1, 1), ValueError, "step must be "),
    Bad("step", torch.tensor(1, dtype=torch.int32), TypeError, "step must have dtype int64 or"),
    Bad("step", torch.tensor(1, device="meta"), ValueError, "must be on "),
    Bad("ema_beta", 1.5, ValueError, r"ema_beta must be in \[0, 1\], got 1.5"),
    Bad("ema_beta", math.nan, ValueError, r"ema_beta must be in \[0, 1\], got nan"),
)
ADAMW_BAD = (
    *SCALAR_BAD,
    Bad("params", [PAIR[0].double(), PAIR[1]], TypeError, r"params\[0\] must have"),
    Bad("params", [torch.zeros(5, 4).t(), PAIR[1]], ValueError, r"params\[0\] is written in"),
    Bad("params", PAIR[:1], ValueError, "(grads|exp_avg) must have 1 like params, got 2"),
    Bad("grads", [PAIR[0], torch.zeros(6)], ValueError, r"grads\[1\] must be .* \[5\]"),
    Bad("grads", [PAIR[0], PAIR[1].double()], TypeError,
        r"grads must have dtype float32.* in grads\[1\]"),
    Bad("step", torch.tensor([1, 0]), ValueError, "step counts from 1, got 0", CPP),
    Bad("grads", [g.half() for g in PAIR], TypeError, "grads must have dtype float32", CPP),
    Bad("grads", [g.double() for g in PAIR], TypeError, "grads must have dtype float32"),
    Bad("grads", [], ValueError, "grads must have 2 like params, got 0"),
    Bad("exp_avg", PAIR[:1], ValueError, "exp_avg must have 2 like params, got 1"),
    Bad("exp_avg", PAIR[::-1], ValueError, r"exp_avg\[0\] must be .* \[4, 5\]"),
    Bad("exp_avg_sq", [PAIR[0], PAIR[0]], ValueError, r"exp_avg_sq\[1\] must be"),
    Bad("exp_avg_sq", [PAIR[0].to("meta"), PAIR[1]], ValueError, "must be on", TRITON_ONLY),
    Bad("ema", PAIR[:1], ValueError, "ema must have no entries or 2 like params, got 1"),
    Bad("ema", [g.double() for g in PAIR], TypeError, r"ema\[0\] must have dtype"),
    Bad("ema", [], ValueError, r"ema_low_precision\[0\] needs ema\[0\]"),
    Bad("low_precision", PAIR, TypeError, r"low_precision\[0\] must have dtype"),
    Bad("weight_decay", [0.1], ValueError, "weight_decay must have 2 .*like params, got 1"),
    Bad("weight_decay", [0.1, -0.1], ValueError, "weight_decay must be >= 0"),
)  # fmt: skip
TABLE = torch.zeros(5, 3)
ROWS_BAD = (
    *SCALAR_BAD,
    # C++ calls a table the first entry of a list.
    Bad("param", TABLE.double(), TypeError, r"param(s\[0\])? must have dtype"),
    Bad("param", torch.zeros(15), ValueError, "param must have two dimensions", TRITON_ONLY),
    Bad("param", torch.zeros(3, 5).t(), ValueError, r"param(s\[0\])? is written in place"),
    Bad("grad", torch.ones(3, 3), ValueError, "grad must be"),
    Bad("grad", torch.ones(2, 3).half(), TypeError, "grad must have dtype"),
    Bad("rows", torch.tensor([1, 4]).int(), TypeError, "rows must have dtype"),
    Bad("rows", torch.tensor([[1], [4]]), ValueError, "rows must be"),
    *(Bad("rows", torch.tensor(rows), ValueError, "rows must ascend", CPP)
      for rows in ([3, 2], [2, 2], [-1, 2], [2, 97])),
    Bad("touched", torch.zeros(4, dtype=torch.bool), ValueError, "touched must be"),
    Bad("touched", torch.zeros(5), TypeError, "touched must have dtype"),
    Bad("exp_avg", torch.zeros(5, 4), ValueError, r"exp_avg(\[0\])? must be"),
    Bad("exp_avg_sq", TABLE.to("meta"), ValueError, "must be on", TRITON_ONLY),
    Bad("ema", torch.zeros(3, 5).t(), ValueError, r"ema(\[0\])? is written in place"),
    Bad("weight_decay", -1.0, ValueError, "weight_decay must be >= 0"),
)  # fmt: skip


def _double(backend):
    p = [torch.ones(3, dtype=F64)]
    settings = numbers(1) | {"weight_decay": [0.0]}
    adamw_ema_(p, [torch.ones(3)], [p[0] * 0], [p[0] * 1], backend=backend, **settings)


def _double_rows(backend):
    p, found = torch.ones(4, 8, dtype=F64), row_gradient((4, 8), 1)
    touched = torch.zeros(4, dtype=torch.bool)
    settings = numbers(1) | {"weight_decay": 0.0}
    adamw_ema_rows_(p, found, touched, p * 0, p * 1, backend=backend, **settings)


def updates(shapes: dict, **steps) -> dict:
    return {
        f"{name}, {dtype}{', ' * bool(step)}{step}".replace("torch.", ""):
        (sizes, F32, dtype, *given)
        for name, sizes in shapes.items()
        for dtype in (F32, BF16)
        for step, given in (steps or {"": USUAL}).items()
    }  # fmt: skip


MIXED = {
    "each its own": (
        ((3, 7), (16390,), (13,), (40, 5), (64,), (9, 9)), F32, (F32, BF16, None, BF16, F32, None),
        torch.tensor([1, 3, 1, 1000, 7, 0]), (0.9, 0.999),
    ),
    "each its own, float32 and none": (
        ((2049,), (13,), (5, 1639)), F32, (F32, None, F32), torch.tensor([2.0, 1.0, 5.0]),
        (0.9, 0.999),
    ),
}  # fmt: skip
ADAMW = Op(
    "adamw_ema_", AdamwCase,
    updates(SHAPES) | {f"odd sizes, {name}": (SHAPES["odd sizes"], F32, F32, *given)
                       for name, given in STEPS.items()} | MIXED,
    native=updates(NATIVE_SHAPES), triton=updates(TRITON_SHAPES),
    cuda={f"aligned, {dtype}": (CUDA_SHAPES["aligned"], F32, dtype, *USUAL)
          for dtype in (F32, BF16, F16)}
    | {f"odd sizes, {F16}": (SHAPES["odd sizes"], F32, F16, *USUAL)}
    | {f"two pieces, {dtype}": (((16390,), (7, 5), (64,)), F32, dtype, *USUAL)
       for dtype in (F32, BF16, F16)},
    small="odd sizes, bfloat16",
    repeated=("several pieces, float32", "an element more, float32"),
    orders=tuple(f"two pieces, {dtype}" for dtype in (F32, BF16, F16)), calls=("adamw_ema_",),
    sized=lambda n: (((n, 3), (n,)), F32, F32, *USUAL),
    approximation=ADAMW_BOUND, good=good_update, bad=ADAMW_BAD, is_differentiated=False,
    reasons=(Reason(_double, "float64 parameters run on the reference"),),
)  # fmt: skip
ROWS = Op(
    "adamw_ema_rows_", RowsCase, {name: (*size, F32) for name, size in SIZES.items()},
    native={"large": (300, 384, F32)}, cuda={"vectors": (70, 36, F32)}, small="primes",
    repeated=("large", "primes"), orders=("primes", "vectors"), calls=("adamw_ema_rows_",),
    sized=lambda rows: (rows, 5, F32),
    approximation=ADAMW_BOUND, good=good_rows, bad=ROWS_BAD, is_differentiated=False,
    reasons=(Reason(_double_rows, "float64 parameters run on the reference"),),
)  # fmt: skip
