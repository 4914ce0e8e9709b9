"""adamw_ema_rows_ in Triton, a table with gradients in a few rows, against the dense step."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import adamw_rows as kernels
from sbrrt_fast.ops.adamw_ema import RowGradient, adamw_ema_, adamw_ema_rows_
from tests.ops.op_checks import F32, F64
from tests.ops.test_adamw_rows import gradient
from tests.ops.triton_checks import (
    REPEATS,
    assert_compiles_once,
    assert_same_bits,
    here,
    interpreted,
)
from tests.ops.triton_only import ADAMW, DEVICE

ops = torch.ops.sbrrt_triton

# a program holds 512 / width rows of narrow tables and one of wide ones
SIZES = {
    "one row": (1, 5),
    "primes": (97, 37),
    "a row more": (65, 16),
    "whole tiles": (64, 16),
    "wide": (40, 384),
    "no rows": (0, 7),
}
samples = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


class Table:
    """A table with its moments and average; whether a row has moments."""

    def __init__(self, size, has_average=True):
        self.param = torch.randn(size, device=DEVICE)
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.param) for _ in range(2))
        self.ema = self.param + 0.01 * torch.randn_like(self.param) if has_average else None
        self.touched = torch.zeros(size[0], dtype=torch.bool, device=DEVICE)

    def tensors(self):
        average = [] if self.ema is None else [self.ema]
        return [self.param, self.exp_avg, self.exp_avg_sq, *average]

    def step(self, found: RowGradient, count: int, **change) -> None:
        state = self.touched, self.exp_avg, self.exp_avg_sq
        settings = {"weight_decay": 0.1, "ema": self.ema, "backend": "triton"} | numbers(count)
        adamw_ema_rows_(self.param, found, *state, **(settings | change))

    def dense_step(self, found: RowGradient, count: int) -> None:
        gradient = found.dense(self.param)
        lists = [self.param], [gradient], [self.exp_avg], [self.exp_avg_sq]
        average = [] if self.ema is None else [self.ema]
        settings = {"weight_decay": [0.1], "ema": average, "backend": "reference"}
        adamw_ema_(*lists, **settings, **numbers(count))


def numbers(count: int) -> dict:
    rate, clip = torch.tensor(1e-2 / count, dtype=F64), torch.tensor(0.7)
    device = dict(zip(("learning_rate", "clip_factor"), here([rate, clip]), strict=True))
    step = torch.tensor(count, device=DEVICE)
    return device | {"step": step, "betas": (0.9, 0.99), "ema_beta": 0.95}


def found_in(size, count: int) -> RowGradient:
    """Of no row at all up to every row, by the number of the step."""
    drawn = gradient(size, count)
    return RowGradient(*here([drawn.rows, drawn.values]))


def compare(size, has_average=True) -> None:
    """Several steps with other rows each: within twice the error of the dense steps by torch's
    operations, both in float32, and three roundings of the largest value."""
    ours = Table(size, has_average)
    stock, exact = copy.deepcopy(ours), doubled(ours)
    for count in range(1, 7):
        found = found_in(size, count)
        ours.step(found, count)
        for dense in (stock, exact):
            dense.dense_step(found, count)
        assert torch.equal(ours.touched, (exact.exp_avg_sq != 0).any(1))
    triples = zip(ours.tensors(), stock.tensors(), exact.tensors(), strict=True)
    for mine, theirs, truth in triples:
        if truth.numel():
            allowed = 2 * (theirs - truth).abs().max() + (2e-7 + ADAMW) * truth.abs().max()
            assert (mine - truth).abs().max() <= allowed


def doubled(table: Table) -> Table:
    """A copy in float64."""
    exact = copy.deepcopy(table)
    for name in ("param", "exp_avg", "exp_avg_sq", "ema"):
        value = getattr(table, name)
        setattr(exact, name, None if value is None else value.double())
    return exact


def test_a_clip_factor_of_nan_leaves_the_update_out():
    for size in (SIZES["primes"], SIZES["wide"]):
        ours = Table(size)
        ours.step(found_in(size, 3), 3)
        before = [x.clone() for x in (*ours.tensors(), ours.touched)]
        ours.step(found_in(size, 5), 5, clip_factor=torch.tensor(torch.nan, device=DEVICE))
        after = *ours.tensors(), ours.touched
        assert all(torch.equal(x, old) for x, old in zip(after, before, strict=True))
        ours.step(found_in(size, 5), 5)
        assert not torch.equal(ours.touched, before[-1])


@samples
@pytest.mark.parametrize("has_average", [True, False])
def test_rows_are_updated_like_the_dense_table(size, has_average):
    compare(size, has_average)


def test_moments_of_untouched_rows_are_neither_read_nor_written():
    table = Table(SIZES["primes"])
    found = found_in(SIZES["primes"], 3)
    idle = torch.ones(97, dtype=torch.bool, device=DEVICE)
    idle[found.rows] = False
    expected = copy.deepcopy(table)
    expected.step(found, 1)
    for moment in (table.exp_avg, table.exp_avg_sq):
        moment[idle] = float("nan")
    table.step(found, 1)
    assert torch.equal(table.param, expected.param)
    assert table.exp_avg[idle].isnan().all() and not table.exp_avg[~idle].isnan().any()


def test_every_row_once_touched_moves_on():
    """Momentum moves a row without a gradient, unlike a row that never had one."""
    table = Table((4, 8))
    table.step(RowGradient(*here([torch.tensor([2]), torch.ones(1, 8)])), 1)
    before = table.param.clone()
    table.step(RowGradient(*here([torch.empty(0).long(), torch.empty(0, 8)])), 2, weight_decay=0.0)
    moved = (table.param != before).any(1)
    assert moved.tolist() == [False, False, True, False] == table.touched.tolist()


def test_the_same_bits_every_time():
    first, found = Table(SIZES["primes"]), found_in(SIZES["primes"], 5)
    tables = iter([copy.deepcopy(first) for _ in range(REPEATS + 1)])

    def compute():
        table = next(tables)
        table.step(found, 1)
        return table.tensors()

    assert_same_bits(compute)


@triton.jit
def _short_row_tile(i_tile, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A planted bug: the last feature of each row is masked."""
    o_row, o, m = _tile_rows(i_tile, num_rows, width, ROWS, BLOCK)
    return o_row, o, m & (o < width - 1)


@triton.jit
def _short_column_tile(i_tile, num_rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A planted bug: the last row is masked."""
    return _tile_rows(i_tile, num_rows - 1, width, ROWS, BLOCK)


_tile_rows = kernels.tile_rows


@interpreted
@pytest.mark.parametrize("bug", [_short_row_tile, _short_column_tile])
@pytest.mark.parametrize("name", ["a row more", "whole tiles", "primes"])
def test_planted_bugs_at_the_edges_of_tiles_are_caught(bug, name, monkeypatch):
    monkeypatch.setattr(kernels, "tile_rows", bug)
    with pytest.raises(AssertionError):
        compare(SIZES[name])


def arguments(**change) -> dict:
    x = torch.zeros(5, 3)
    values = {
        "param": x, "grad": torch.ones(2, 3), "rows": torch.tensor([1, 4]),
        "touched": torch.zeros(5, dtype=torch.bool), "exp_avg": x.clone(), "exp_avg_sq": x.clone(),
        "ema": x.clone(), "learning_rate": torch.tensor(1e-3), "weight_decay": 0.0, "beta1": 0.9,
        "beta2": 0.999, "eps": 1e-8, "clip_factor": torch.tensor(1.0), "step": torch.tensor(1),
        "ema_beta": 0.9,
    }  # fmt: skip
    return {**values, **change}


Z = torch.zeros(5, 3)
BAD = [
    ("param", Z.double(), TypeError, r"param must have dtype torch\.float32"),
    ("param", torch.zeros(15), ValueError, "param must have two dimensions"),
    ("param", torch.zeros(3, 5).t(), ValueError, "param is written in place and must be"),
    ("grad", torch.ones(3, 3), ValueError, r"grad must be .* \[2, 3\]"),
    ("grad", torch.ones(2, 3).half(), TypeError, r"grad must have dtype torch\.float32"),
    ("rows", torch.tensor([1, 4]).int(), TypeError, r"rows must have dtype torch\.int64"),
    ("rows", torch.tensor([[1], [4]]), ValueError, r"rows must be .* \[2\]"),
    ("touched", torch.zeros(4, dtype=torch.bool), ValueError, r"touched must be .* \[5\]"),
    ("touched", torch.zeros(5), TypeError, r"touched must have dtype torch\.bool"),
    ("exp_avg", torch.zeros(5, 4), ValueError, r"exp_avg must be .* \[5, 3\]"),
    ("exp_avg_sq", Z.to("meta"), ValueError, "exp_avg_sq must be on cpu"),
    ("ema", torch.zeros(3, 5).t(), ValueError, "ema is written in place and must be"),
    ("learning_rate", torch.zeros(2), ValueError, r"learning_rate must be .* \[1\]"),
    ("step", torch.tensor(1).int(), TypeError, "step must have dtype int64 or float32"),
    ("weight_decay", -1.0, ValueError, "weight_decay must be >= 0"),
    ("beta1", 1.0, ValueError, r"betas must be in \[0, 1\)"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument_writes_nothing(argument, value, error, message):
    given = arguments(**{argument: value})
    with pytest.raises(error, match=f"adamw_ema_rows_: {message}"):
        kernels.adamw_ema_rows_(**given)
    assert all(given[name].eq(0).all() for name in ("exp_avg", "ema"))


def test_tensors_that_share_memory_are_refused():
    given = arguments()
    given["exp_avg"] = given["param"]
    with pytest.raises(ValueError, match="adamw_ema_rows_: exp_avg and param share memory"):
        kernels.adamw_ema_rows_(**given)


def test_backend_choice():
    table = Table((4, 8))
    table.param = table.param.double()
    empty = RowGradient(*here([torch.empty(0).long(), torch.empty(0, 8)]))
    with pytest.raises(BackendError, match="float64 parameters run on the reference"):
        table.step(empty, 1)


def test_other_values_compile_nothing():
    def run(num_rows, num_found, decay):
        x = torch.empty(num_rows, 384, device="meta")
        rows = x.new_empty(num_found, dtype=torch.int64)
        touched, scalar = x.new_empty(num_rows, dtype=torch.bool), x.new_empty(())
        state = x, x.new_empty(num_found, 384), rows, touched, x, x, x
        kernels.adamw_ema_rows_(*state, scalar, decay, 0.9, 0.999, 1e-8, scalar, scalar, 0.9)

    assert_compiles_once(*(partial(run, *sizes) for sizes in ((64, 3, 0.1), (1, 1, 0.0))))


def test_opcheck():
    table, found = Table((9, 5)), found_in((9, 5), 1)
    state = table.touched, table.exp_avg, table.exp_avg_sq, table.ema
    rate, clip, step = (torch.tensor(x, device=DEVICE) for x in (1e-3, 1.0, 3.0))
    settings = rate, 0.1, 0.9, 0.999, 1e-8, clip, step, 0.9
    inputs = table.param, found.values.to(F32), found.rows, *state, *settings
    torch.library.opcheck(ops.adamw_ema_rows_.default, inputs)
