"""adamw_ema_, adamw_ema_rows_ and gradient_norm: their CUDA kernels, executed on the CPU."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from sbrrt_fast.ops.adamw_ema import adamw_ema_rows_
from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import assert_same_bits_in_any_order, bits
from tests.ops.op_checks import BF16, F32
from tests.ops.test_adamw_ema import SHAPES, State, samples, stock_step
from tests.ops.test_adamw_rows import SIZES, gradient, numbers, table

F16 = torch.float16
DTYPES = [F32, BF16, F16]
ALIGNED = [(16384,), (12, 64), (129, 4)]


def update_numbers(learning_rate, clip_factor, step, betas, eps, ema_beta):
    """What the kernels take of an update's numbers, in order."""
    rate = learning_rate, int(learning_rate.dim() > 0), int(learning_rate.dtype == torch.float64)
    return *rate, clip_factor, step, int(step.dtype == torch.int64), *betas, eps, ema_beta


class CudaState(State):
    """The state of the C++ op's tests, updated by the CUDA launchers."""

    def update(self, grads, count, backend="cuda", seed=0, **changes):
        if backend != "cuda":
            return super().update(grads, count, backend, **changes)
        given = {"learning_rate": torch.tensor(1e-3, dtype=torch.float64)}
        given |= {"clip_factor": torch.tensor(1.0), "step": torch.tensor(count), "ema_beta": 0.95}
        given |= {"betas": (0.9, 0.999), "eps": 1e-8} | changes
        decay = torch.tensor([0.01 if p.ndim > 1 else 0.0 for p in self.params]).double()
        with library("adamw").device(seed) as device:
            found = [self.addresses(device, i, g) for i, g in enumerate(grads)]
            addresses, sizes = torch.tensor(found), torch.tensor([g.numel() for g in grads])
            host = (x.data_ptr() for x in (addresses, sizes, decay))
            device.call("update", *update_numbers(**given), grads[0].dtype, len(grads), *host)

    def addresses(self, device, i, grad):
        lists = self.params, self.exp_avg, self.exp_avg_sq, self.ema
        lists += self.low_precision, self.ema_low_precision
        entries = [x[i] if len(x) and x[i].numel() else None for x in lists]
        return [0 if x is None else device.pointer(x) for x in (*entries, grad)]


def norm(grads, per_launch=1000, seed=0):
    num_partial = sum(-(-g.numel() // 16384) for g in grads)
    partial, ticket = torch.zeros(num_partial + 1, dtype=torch.int64), torch.zeros(1).int()
    out = torch.full((), math.nan)
    with library("gradient_norm").device(seed) as device:
        addresses = torch.tensor([device.pointer(g) if g.numel() else 0 for g in grads])
        sizes = torch.tensor([g.numel() for g in grads])
        host = addresses.data_ptr(), sizes.data_ptr(), per_launch
        written = partial, ticket, out
        device.call("norm", grads[0].dtype, len(grads), *host, num_partial, *written)
    return out


def states_in_use(shapes):
    """The same state after three updates: in float64, for a kernel, for stock torch."""
    exact = CudaState(shapes, torch.float64, torch.float64)
    for step in range(1, 4):
        exact.update(exact.grads(), step, "reference")
    ours = copy.deepcopy(exact)
    for name in ("params", "exp_avg", "exp_avg_sq", "ema"):
        setattr(ours, name, [t.float() for t in getattr(ours, name)])
        setattr(exact, name, [t.double() for t in getattr(ours, name)])
    return exact, ours, copy.deepcopy(ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", [*SHAPES.values(), ALIGNED], ids=[*SHAPES, "aligned"])
def test_error_is_within_twice_torch_s(shapes, dtype):
    exact, ours, stock = states_in_use(shapes)
    grads = [g.to(dtype) for g in ours.grads(0.1)]
    exact.update([g.double() for g in grads], 5, "reference")
    ours.update(grads, 5)
    stock_step(stock, [g.float() for g in grads], 5)
    for mine, theirs, truth in zip(ours.tensors(), stock.tensors(), exact.tensors(), strict=True):
        if truth.numel():
            allowed = 2 * (theirs - truth).abs().max() + 2e-7 * truth.abs().max()
            assert (mine - truth).abs().max() <= allowed


@samples
def test_many_steps_equal_the_reference_in_float64(shapes):
    exact, ours, _ = states_in_use(shapes)
    for step in range(4, 12):
        grads = [g.float() for g in ours.grads(10.0 ** (step % 5 - 2))]
        rates = torch.tensor([1e-3 * (1 + i) / step for i in range(len(shapes))])
        changes = {"clip_factor": torch.tensor(0.3), "ema_beta": 0.9 + 0.09 * (step % 2)}
        changes |= {"learning_rate": rates, "betas": (0.8, 0.99), "eps": 1e-6}
        exact.update([g.double() for g in grads], step, "reference", **changes)
        ours.update(grads, step, **changes)
    for mine, truth in zip(ours.tensors(), exact.tensors(), strict=True):
        if truth.numel():
            assert (mine - truth).abs().max() <= 2e-6 * truth.abs().max()


def test_copies_are_the_rounded_tensors():
    for shapes in (SHAPES["odd sizes"], ALIGNED):
        state = CudaState(shapes)
        state.update(state.grads(), 1)
        pairs = zip(
            state.low_precision + state.ema_low_precision, state.params + state.ema, strict=True
        )
        assert all(torch.equal(copied, source.bfloat16()) for copied, source in pairs)


def test_left_out_entries_are_not_written():
    state = CudaState([(5, 40), (40,)])
    whole, grads, none = copy.deepcopy(state), state.grads(), torch.empty(0)
    whole.update(grads, 1)
    state.ema = [state.ema[0], none]
    state.low_precision = [none.bfloat16(), state.low_precision[1]]
    state.ema_low_precision = [state.ema_low_precision[0], none.bfloat16()]
    state.update(grads, 1)
    assert torch.equal(state.params[0], whole.params[0])
    assert torch.equal(state.ema[0], whole.ema[0])
    assert torch.equal(state.low_precision[1], whole.low_precision[1])


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.999, 1.0])
def test_momentum_at_its_ends(beta):
    state = CudaState([(33,)])
    before = state.ema[0].double()
    state.update(state.grads(), 1, ema_beta=beta)
    expected = beta * before + (1 - beta) * state.params[0].double()
    assert torch.allclose(state.ema[0].double(), expected, rtol=0, atol=4e-7)
    if beta in (0.0, 1.0):
        assert torch.equal(state.ema[0].double(), expected)


def test_steps_and_rates_of_either_dtype_agree():
    first = CudaState([(100, 3)])
    others, grads = [copy.deepcopy(first) for _ in range(2)], first.grads()
    first.update(grads, 7)
    others[0].update(grads, 7, step=torch.tensor(7.0))
    others[1].update(grads, 7, learning_rate=torch.tensor([1e-3]))
    assert first.bits() == others[0].bits()
    assert torch.allclose(first.params[0], others[1].params[0], rtol=1e-6)


def test_memory_that_16_bytes_do_not_divide():
    whole = CudaState([(500,)])
    shifted = copy.deepcopy(whole)
    shifted.exp_avg = [torch.cat([torch.zeros(1), shifted.exp_avg[0]])[1:]]
    grads = whole.grads()
    whole.update(grads, 1)
    shifted.update(grads, 1)
    assert torch.equal(shifted.params[0], whole.params[0])
    assert torch.equal(shifted.exp_avg[0], whole.exp_avg[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", [*SHAPES.values(), ALIGNED], ids=[*SHAPES, "aligned"])
def test_norm_equals_float64(shapes, dtype):
    for scale in (1e-3,) if dtype is F16 else (1e-12, 1.0, 1e12):
        grads = [(scale * torch.randn(shape)).to(dtype) for shape in shapes]
        exact = torch.cat([g.double().reshape(-1) for g in grads]).norm()
        for per_launch in (1, 2, 1000):
            assert abs(norm(grads, per_launch).double() - exact) <= 3e-7 * exact


def test_norm_shows_what_is_not_finite():
    assert norm([torch.tensor([1.0, math.inf])]).item() == math.inf
    assert math.isnan(norm([torch.ones(70), torch.tensor([math.nan])]).item())


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_updated_like_the_reference_s(name):
    size = SIZES[name] if name != "wide" else (100, 64)
    ours, exact = table(size), {key: x.double() for key, x in table(size).items()}
    touched = {which: torch.zeros(size[0], dtype=torch.bool) for which in ("ours", "exact")}
    for step in range(1, 9):
        found = gradient(size, step)
        update_rows(ours, found, touched["ours"], step)
        precise = replace(found, values=found.values.double())
        state = exact["param"], precise, touched["exact"], exact["exp_avg"], exact["exp_avg_sq"]
        adamw_ema_rows_(
            *state, weight_decay=0.1, ema=exact["ema"], backend="reference", **numbers(step)
        )
        for key, value in ours.items():
            error = (value - exact[key]).abs().max()
            assert error <= 2e-6 * exact[key].abs().max(), (step, key)
        assert torch.equal(*touched.values())


def update_rows(state, found, touched, step, seed=0, **changes):
    size, names = state["param"].shape, ("param", "exp_avg", "exp_avg_sq", "ema")
    library("adamw").call(
        "update_rows", *update_numbers(**{"eps": 1e-8} | numbers(step) | changes),
        *(state[name] for name in names), found.values, 0.1, *size, len(found.rows), found.rows,
        touched, seed=seed,
    )  # fmt: skip


def test_a_clip_factor_of_nan_leaves_the_update_out():
    left_out = {"clip_factor": torch.tensor(math.nan)}
    for shapes in (SHAPES["odd sizes"], ALIGNED):
        state = CudaState(shapes)
        state.update(state.grads(), 1)
        before = state.bits()
        state.update([torch.full_like(g, math.inf) for g in state.grads()], 2, **left_out)
        assert state.bits() == before
        state.update(state.grads(), 2)
        assert state.bits() != before


def test_a_clip_factor_of_nan_leaves_the_rows_out():
    for size in ((70, 36), (97, 37)):
        rows, touched = table(size), torch.zeros(size[0], dtype=torch.bool)
        update_rows(rows, gradient(size, 3), touched, 3)
        before = [x.clone() for x in (*rows.values(), touched)]
        update_rows(rows, gradient(size, 5), touched, 5, clip_factor=torch.tensor(math.nan))
        pairs = zip((*rows.values(), touched), before, strict=True)
        assert all(torch.equal(x, old) for x, old in pairs)
        update_rows(rows, gradient(size, 5), touched, 5)
        assert not torch.equal(touched, before[-1])


def test_same_bits_in_any_order_of_threads():
    first = CudaState([(16390,), (7, 5), (64,)])
    grads = {dtype: [g.to(dtype) for g in first.grads()] for dtype in DTYPES}
    size = (70, 36)

    def run(seed):
        results = []
        for dtype in DTYPES:
            state = copy.deepcopy(first)
            state.update(grads[dtype], 3, seed=seed)
            results += [*state.tensors(), *state.low_precision, *state.ema_low_precision]
            results.append(norm(grads[dtype], seed=seed))
        rows, touched = table(size), torch.zeros(size[0], dtype=torch.bool)
        for step in (3, 5):
            update_rows(rows, gradient(size, step), touched, step, seed)
        return [*results, *rows.values(), touched]

    assert_same_bits_in_any_order(run)
    assert bits(run(0)[0]) != bits(first.params[0])
