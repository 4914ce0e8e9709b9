"""The heads of groups of tasks: outputs, tangents, and gradients of vectors and weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast.ops import task_heads_reference as reference
from sbrrt_fast.ops.task_heads import (
    HeadSpec,
    HeadTable,
    heads_forward,
    heads_jvp,
    heads_vjp,
    heads_weight_gradients,
)
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, Sample
from tests.ops.head_groups import heads_of
from tests.ops.op_checks import F32
from tests.ops.triton_only import CONTRACTION

EVERY_KIND = ("sst", "para", "sts", "yes-no", "kinds")
# tasks, kind of pair features, hidden size, dropout or not, further sequences, layout, dtype
SAMPLES = {
    "one example": (("length",), "concat", 1, False, 0, "dense", F32),
    "every kind": (EVERY_KIND, "concat_difference", 33, True, 2, "dense", F32),
    "plain pairs": (("minutes", "sts", "para"), "concat", 17, False, 0, "dense", F32),
    "strided": (("sst", "minutes", "sts"), "concat_difference", 16, True, 1, "strided", F32),
    "wide": (("kinds", "sts"), "concat_difference", 300, True, 0, "dense", F32),
}
NATIVE = {
    "many classes": (("topics", "sts"), "concat", 129, True, 0, "dense", F32),
    "MiniLM": ((*EVERY_KIND, "nli"), "concat_difference", 384, True, 3, "dense", F32),
    "transposed": (("sst", "kinds"), "concat_difference", 20, True, 0, "transposed", F32),
}


class HeadsCase(Case):
    """Inputs: pooled vectors, factors if there are any, weights, and what the op takes besides."""

    def __init__(self, sample: Sample):
        tasks, pair_kind, hidden, self.has_factors, further, layout, dtype = sample
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(tasks))
            heads = heads_of(list(tasks), hidden_size=hidden, pair_kind=pair_kind, dtype=dtype)
        self.table, draw = heads.table, Drawn(hidden, layout)
        shape = self.table.num_sequences + further, hidden
        self.pooled, self.other = (draw.rows(*shape, dtype=dtype) for _ in range(2))
        self.factors = draw.rows(*shape, dtype=dtype).sign().clamp(min=0).mul(1.25)
        if not self.has_factors:
            self.factors = None
        self.weights, self.flat = heads.weights, draw(2, self.table.num_outputs, dtype=dtype)
        self.inputs = self.of(self.weights, *self.others())

    def of(self, *others: Tensor) -> list[Tensor]:
        return [self.pooled, *([self.factors] if self.has_factors else []), *others]

    def split(self, inputs) -> tuple:
        """(pooled, factors, others ...)"""
        pooled, *rest = inputs
        factors = rest.pop(0) if self.has_factors else None
        return pooled, factors, *rest

    def others(self) -> list[Tensor]:
        return []


class ForwardCase(HeadsCase):
    def function(self, backend):
        return lambda *x: heads_forward(self.table, *self.split(x), backend=backend)

    def stock(self, *inputs):
        return reference.heads_forward_reference(self.table, *self.split(inputs))


class JvpCase(HeadsCase):
    def others(self):
        return [self.other]

    def function(self, backend):
        return lambda *x: heads_jvp(self.table, *self.split(x), backend=backend)

    def stock(self, *inputs):
        return reference.heads_jvp_reference(self.table, *self.split(inputs))


class VjpCase(HeadsCase):
    def others(self):
        return [self.flat[0]]

    def function(self, backend):
        return lambda *x: heads_vjp(self.table, *self.split(x), backend=backend)

    def stock(self, *inputs):
        return reference.heads_vjp_reference(self.table, *self.split(inputs))


class WeightCase(HeadsCase):
    """Two passes with dropout, of which the second has none; else one."""

    def __init__(self, sample: Sample):
        super().__init__(sample)
        second = [self.other, self.flat[1]] if self.has_factors else []
        self.inputs = self.of(self.flat[0], *second)
        self.start = torch.full_like(self.weights, 0.5)

    def passes(self, inputs) -> list[tuple]:
        pooled, factors, cotangents, *second = self.split(inputs)
        others = [(second[0], None, second[1])] if second else []
        return [(pooled, factors, cotangents), *others]

    def function(self, backend):
        def run(*inputs):
            lists = [list(x) for x in zip(*self.passes(inputs), strict=True)]
            out = torch.full(self.start.shape, 0.5, dtype=inputs[0].dtype, device=inputs[0].device)
            heads_weight_gradients(self.table, *lists, out, backend=backend)
            return out

        return run

    def stock(self, *inputs):
        out = self.start.to(inputs[0].dtype).clone()
        lists = [list(x) for x in zip(*self.passes(inputs), strict=True)]
        reference.heads_weight_gradients_reference(self.table, *lists, out)
        return out


# A linear head of two examples and three outputs, one of a pair's difference, a cosine.
GOOD_HEADS = [0, 2, 0, 3, 0, 12, 2, 1, 2, 2, 15, 39, 3, 1, 4, 1, -1, -1]


def good() -> dict:
    rows = ("pooled", "pooled_tangent", "dpooled", "other_pooled", "factors", "other_factors")
    flat = ("cotangents", "other_cotangents", "out")
    values = {name: torch.ones(7, 4) for name in rows}
    values |= {name: torch.ones(9) for name in flat}
    return values | {
        "weights": torch.ones(41), "dweights": torch.zeros(41), "heads": [*GOOD_HEADS],
        "scales": [1.0, 1.0, 5.0],
    }  # fmt: skip


def changed(**fields: int) -> list[int]:
    """The good heads but for one number."""
    heads = [*GOOD_HEADS]
    for place, value in fields.items():
        heads[int(place.removeprefix("at"))] = value
    return heads


BAD = (
    Bad("pooled", torch.ones(7, 4).double(), TypeError, "pooled must have dtype"),
    Bad("pooled", torch.ones(7), ValueError, "pooled must (be|have 2 dim)"),
    Bad("pooled", torch.ones(7, 0), ValueError, "pooled must (be|have at least one)"),
    Bad("factors", torch.ones(6, 4), ValueError, "factors must be a dense tensor"),
    Bad("weights", torch.ones(41).double(), TypeError, "weights must have dtype"),
    Bad("weights", torch.ones(1, 41), ValueError, "weights must be a dense tensor"),
    Bad("weights", torch.ones(40), ValueError, "the heads have weights up to 41, above the 40"),
    Bad("dweights", torch.ones(40), ValueError, "the heads have dweights up to 41, above the 40"),
    Bad("pooled_tangent", torch.ones(7, 3), ValueError, "pooled_tangent must be a dense tensor"),
    Bad("cotangents", torch.ones(8), ValueError, "cotangents must be a dense tensor"),
    Bad("other_cotangents", None, ValueError, "other_pooled and other_cotangents come together"),
    Bad("heads", [], ValueError, "heads must have 6 numbers for each head, got 0"),
    Bad("heads", GOOD_HEADS[:-1], ValueError, "heads must have 6 numbers for each head, got 17"),
    Bad("heads", changed(at0=4), ValueError, "heads must be kind, num_examples"),
    Bad("heads", changed(at1=0), ValueError, "heads must be kind, num_examples"),
    Bad("heads", changed(at4=-1), ValueError, "heads must be kind, num_examples"),
    Bad("heads", changed(at15=2), ValueError, "heads must be kind, num_examples"),
    Bad("heads", changed(at8=1), ValueError, "two of the heads share sequences from 1 on"),
    Bad("heads", changed(at14=6), ValueError, "the heads have sequences up to 8, above the 7"),
    Bad("heads", changed(at10=14), ValueError, "two of the heads share d?weights from 14 on"),
    Bad("scales", [1.0], ValueError, "scales must have one number for each of 3 heads"),
    Bad("scales", [1.0, 1.0, 1e300], ValueError, "scales must be finite"),
    Bad("out", torch.ones(8), ValueError, "out must be a dense tensor"),
    Bad("dpooled", torch.ones(7, 8)[:, ::2], ValueError, "dpooled is written and .*strides"),
)


def _doubles(backend):
    table = HeadTable([HeadSpec("linear", 1, 0, 1, 0, 4)], 4, "cpu")
    return heads_forward(
        table, torch.ones(1, 4).double(), None, torch.ones(5).double(), backend=backend
    )


def _three_passes(backend):
    table, x = HeadTable([HeadSpec("linear", 1, 0, 1, 0, 4)], 4, "cpu"), torch.ones(1, 4)
    lists = [x] * 3, [None] * 3, [torch.ones(1)] * 3
    heads_weight_gradients(table, *lists, torch.ones(5), backend=backend)


REASONS = (Reason(_doubles, "float64 tensors run on the reference"),)


def op_of(name: str, case: type[HeadsCase], reasons: tuple = REASONS) -> Op:
    return Op(
        name, case, SAMPLES, native=NATIVE, small="every kind", repeated=("MiniLM",),
        orders=("every kind", "plain pairs"),
        sized=lambda rows: (EVERY_KIND, "concat_difference", 33, True, rows + 50, "dense", F32),
        approximation=CONTRACTION, good=good, bad=BAD, reasons=reasons, is_differentiated=False,
    )  # fmt: skip


FORWARD, JVP = op_of("heads_forward", ForwardCase), op_of("heads_jvp", JvpCase)
VJP = op_of("heads_vjp", VjpCase)
WEIGHTS = op_of(
    "heads_weight_gradients", WeightCase, (Reason(_three_passes, "3 passes are above 2"),)
)
