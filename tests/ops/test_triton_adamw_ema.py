"""adamw_ema_ and gradient_norm in Triton against torch.optim.AdamW, clipping and a lerp."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import adamw_ema as kernels
from sbrrt_fast.ops.adamw_ema import adamw_ema_, clip_factor, gradient_norm, native_reason
from tests.ops.op_checks import BF16, F32, F64
from tests.ops.triton_checks import F16, REPEATS, assert_compiles_once, here, interpreted
from tests.ops.triton_only import ADAMW, DEVICE

ops = torch.ops.sbrrt_triton

# a tile has 2,048 elements, a piece of an update 8,192, a piece of the norm 16,384
SHAPES = {
    "one element": [()],
    "odd sizes": [(3, 7), (1,), (13,), (0, 4), (31, 33), (17,)],
    "whole tiles and pieces": [(2048,), (8192,), (16384,)],
    "an element more": [(2049,), (8193,), (16385,), (5, 1639)],
    "an element less": [(2047,), (8191,), (16383,)],
}
samples = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())


class State:
    """Parameters with their moments, averages and copies, and the arguments of one update."""

    def __init__(self, shapes, dtype=F32, copies=False):
        self.params = [torch.randn(shape, dtype=dtype, device=DEVICE) for shape in shapes]
        self.exp_avg = [torch.randn_like(p) * 0.01 for p in self.params]
        self.exp_avg_sq = [torch.rand_like(p) * 1e-3 for p in self.params]
        self.ema = [p + 0.01 * torch.randn_like(p) for p in self.params]
        self.low_precision = [torch.full_like(p, math.nan, dtype=BF16) for p in self.params]
        self.low_precision = self.low_precision if copies else []
        self.ema_low_precision = copy.deepcopy(self.low_precision)

    def grads(self, dtype=F32, scale=1.0):
        return [(scale * torch.randn_like(p)).to(dtype) for p in self.params]

    def update(self, grads, count, backend="triton", **changes):
        settings = {
            "learning_rate": torch.tensor(1e-3, dtype=F64, device=DEVICE),
            "weight_decay": [0.01 if p.ndim > 1 else 0.0 for p in self.params],
            "clip_factor": torch.tensor(1.0, device=DEVICE),
            "step": torch.tensor(count, device=DEVICE),
            "ema": self.ema,
            "ema_beta": 0.95,
            "low_precision": self.low_precision,
            "ema_low_precision": self.ema_low_precision,
        }
        lists = (self.params, grads, self.exp_avg, self.exp_avg_sq)
        adamw_ema_(*lists, backend=backend, **{**settings, **changes})

    def tensors(self):
        return [*self.params, *self.exp_avg, *self.exp_avg_sq, *self.ema]

    def bits(self):
        everything = [*self.tensors(), *self.low_precision, *self.ema_low_precision]
        return b"".join(t.cpu().view(-1).view(torch.uint8).numpy().tobytes() for t in everything)


def exact_of(state):
    exact = copy.deepcopy(state)
    for name in ("params", "exp_avg", "exp_avg_sq", "ema"):
        setattr(exact, name, [t.double() for t in getattr(state, name)])
    exact.low_precision = exact.ema_low_precision = []
    return exact


def compare(shapes, grad_dtype=F32, count=3, **changes):
    """One step within twice the error of the same step by torch's operations, both in float32,
    and three roundings of what was there before: a moment may cross 0."""
    state = State(shapes)
    exact, stock, before = exact_of(state), copy.deepcopy(state), copy.deepcopy(state)
    grads = state.grads(grad_dtype, 0.1)
    exact.update([g.double() for g in grads], count, "reference", **changes)
    stock.update([g.float() for g in grads], count, "reference", **changes)
    state.update(grads, count, **changes)
    everything = (s.tensors() for s in (state, stock, exact, before))
    for mine, theirs, truth, old in zip(*everything, strict=True):
        if truth.numel():
            size = torch.maximum(truth.abs().max(), old.abs().max())
            allowed = 2 * (theirs - truth).abs().max() + (2e-7 + ADAMW) * size
            assert (mine - truth).abs().max() <= allowed


@samples
@pytest.mark.parametrize("copies", [True, False])
def test_a_clip_factor_of_nan_leaves_the_update_out(shapes, copies):
    state = State(shapes, copies=copies)
    state.update(state.grads(), 1)
    before = state.bits()
    bad = [torch.full_like(g, math.inf) for g in state.grads()]
    state.update(bad, 2, clip_factor=torch.tensor(math.nan, device=DEVICE))
    assert state.bits() == before
    state.update(state.grads(), 2)
    assert state.bits() != before


@samples
@pytest.mark.parametrize("grad_dtype", [F32, F16])
def test_one_step_is_as_good_as_torch_s(shapes, grad_dtype):
    compare(shapes, grad_dtype)


def test_many_steps_equal_torch():
    """With clipping, a rate per tensor and per step, and a changing momentum."""
    shapes = SHAPES["odd sizes"]
    ours = State(shapes)
    ours.exp_avg = [torch.zeros_like(p) for p in ours.params]
    ours.exp_avg_sq = [torch.zeros_like(p) for p in ours.params]
    ours.ema = [p.clone() for p in ours.params]
    stock = [torch.nn.Parameter(p.clone()) for p in ours.params]
    averages = [p.detach().clone() for p in stock]
    decay = [0.1 * (i % 3) for i in range(len(shapes))]
    rates = [1e-3 * (1 + i) for i in range(len(shapes))]
    groups = [
        {"params": [p], "weight_decay": d, "lr": r}
        for p, d, r in zip(stock, decay, rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    for step in range(1, 21):
        grads = ours.grads(scale=10.0 ** (step % 5 - 2))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / step
        for p, g in zip(stock, grads, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(stock, 1.0)
        optimizer.step()
        beta = 0.9 + 0.09 * (step % 2)
        torch._foreach_lerp_(averages, [p.detach() for p in stock], 1 - beta)
        factor = clip_factor(gradient_norm(grads, backend="triton"), 1.0)
        rate = torch.tensor(rates, dtype=F64, device=DEVICE) / step
        changes = {"learning_rate": rate, "weight_decay": decay, "ema_beta": beta}
        ours.update(grads, step, clip_factor=factor, **changes)
    for mine, theirs in zip(ours.params + ours.ema, [*stock, *averages], strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 1000, 10**7])
def test_any_step(count):
    compare(SHAPES["odd sizes"], count=count)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.0), (0.5, 0.99999)])
def test_any_momentum(betas):
    compare(SHAPES["odd sizes"], betas=betas)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.999, 1.0])
def test_the_average_s_momentum_at_its_ends(beta):
    state = State([(33,)])
    before = state.ema[0].double().clone()
    state.update(state.grads(), 1, ema_beta=beta)
    expected = beta * before + (1 - beta) * state.params[0].double()
    torch.testing.assert_close(state.ema[0].double(), expected, rtol=0, atol=4e-7)
    if beta in (0.0, 1.0):
        assert torch.equal(state.ema[0].double(), expected)


def test_copies_are_the_rounded_tensors():
    state = State(SHAPES["an element more"], copies=True)
    state.update(state.grads(), 1)
    # the interpreter truncates to bfloat16
    tolerance = 2**-7 if DEVICE.type == "cpu" else 0
    for copies, sources in (
        (state.low_precision, state.params),
        (state.ema_low_precision, state.ema),
    ):
        for copied, source in zip(copies, sources, strict=True):
            expected = source.to(BF16).float()
            torch.testing.assert_close(copied.float(), expected, rtol=tolerance, atol=0)


def test_left_out_entries_are_not_written():
    state = State([(5, 40), (40,)], copies=True)
    whole = copy.deepcopy(state)
    grads, none = state.grads(), torch.empty(0, device=DEVICE)
    whole.update(grads, 1)
    kept = state.ema[1].clone()
    left_out = state.ema[1]
    state.ema = [state.ema[0], none]
    state.low_precision = [none.bfloat16(), state.low_precision[1]]
    state.ema_low_precision = [state.ema_low_precision[0], none.bfloat16()]
    state.update(grads, 1)
    for ours, expected in ((state.params, whole.params), (state.ema[:1], whole.ema[:1])):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(state.low_precision[1], whole.low_precision[1])
    assert torch.equal(left_out, kept)
    bare = State([(5, 40), (40,)])
    bare.params, bare.ema = [torch.ones_like(p) for p in bare.params], []
    bare.update(grads, 1)
    assert (bare.params[1] != 1).all()


def test_steps_and_rates_of_either_dtype_agree():
    first = State([(100, 3)])
    others = [copy.deepcopy(first) for _ in range(3)]
    grads = first.grads()
    first.update(grads, 7)
    others[0].update(grads, 7, step=torch.tensor(7.0, device=DEVICE))
    others[1].update(grads, 7, learning_rate=torch.tensor([1e-3], dtype=F64, device=DEVICE))
    others[2].update(grads, 7, learning_rate=torch.tensor([1e-3], device=DEVICE))
    assert first.bits() == others[0].bits() == others[1].bits()
    torch.testing.assert_close(first.params[0], others[2].params[0], rtol=1e-6, atol=0)


def test_gradients_in_other_layouts_and_at_odd_addresses():
    state = State([(30, 50)])
    others = [copy.deepcopy(state) for _ in range(2)]
    grad = torch.randn(50, 30, device=DEVICE).t()
    odd = torch.empty(1501, device=DEVICE)[1:].view(30, 50).copy_(grad)
    assert odd.data_ptr() % 16
    for other, g in zip([state, *others], [grad, grad.contiguous(), odd], strict=True):
        other.update([g], 1)
        assert other.bits() == state.bits()
    norm = gradient_norm([grad], backend="triton")
    assert norm.item() == pytest.approx(grad.double().norm().item(), rel=1e-6)
    assert norm == gradient_norm([grad.contiguous()], backend="triton")


def test_autograd_notices_the_change():
    state = State([(3, 4)])
    weight = state.params[0].requires_grad_()
    loss = (weight * torch.ones_like(weight).requires_grad_()).sum()
    with torch.no_grad():
        state.update(state.grads(), 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@samples
@pytest.mark.parametrize("dtype", [F32, F16])
def test_norm_equals_float64(shapes, dtype):
    for scale in (1e-12, 1.0, 1e12) if dtype == F32 else (1e-2, 10.0):
        grads = [(scale * torch.randn(shape, device=DEVICE)).to(dtype) for shape in shapes]
        exact = torch.cat([g.double().reshape(-1) for g in grads]).norm()
        got = gradient_norm(grads, backend="triton")
        assert got.dtype == F32 and got.shape == ()
        assert abs(got.double() - exact) <= 3e-7 * exact


def test_bfloat16_gradients_are_read_exactly():
    state = State(SHAPES["an element more"])
    other, grads = copy.deepcopy(state), state.grads(BF16)
    numbers = [torch.tensor(x, device=DEVICE) for x in (1e-3, 1.0, 3.0)]
    for s, g in ((state, grads), (other, [g.float() for g in grads])):
        lists = (s.params, g, s.exp_avg, s.exp_avg_sq, s.ema, [], [])
        rate, clip, step = numbers
        rest = (rate, [0.0] * 4, 0.9, 0.999, 1e-8, clip, step, 0.9)
        ops.adamw_ema_(*lists, *rest)
    assert state.bits() == other.bits()
    assert ops.gradient_norm(grads) == ops.gradient_norm([g.float() for g in grads])


def test_norm_shows_what_is_not_finite():
    bad = here([torch.tensor([1.0, math.inf])]), here([torch.ones(70), torch.tensor([math.nan])])
    assert gradient_norm(bad[0], backend="triton").item() == math.inf
    assert math.isnan(gradient_norm(bad[1], backend="triton").item())
    assert gradient_norm(here([torch.empty(0)]), backend="triton").item() == 0.0


def test_the_same_bits_every_time():
    first = State(SHAPES["an element more"])
    grads, others = first.grads(), [copy.deepcopy(first) for _ in range(REPEATS)]
    first.update(grads, 3)
    norm = gradient_norm(grads, backend="triton")
    for other in others:
        other.update(grads, 3)
        assert other.bits() == first.bits()
        assert gradient_norm(grads, backend="triton") == norm


@triton.jit
def _forgets_the_end(p_tensor, o, i_end, WHOLE: tl.constexpr):
    """A planted bug: in the last tile the last element is not read."""
    return _load_tile(p_tensor, o, i_end if WHOLE else i_end - 1, WHOLE)


@triton.jit
def _never_whole(p_tensor, o, i_end, b_value, WHOLE: tl.constexpr):
    """A planted bug: a tile that ends where its piece does is one element short."""
    _store_tile(p_tensor, o, i_end - 1, b_value, False)


_load_tile, _store_tile = kernels.load_tile, kernels.store_tile


@interpreted
def test_planted_bugs_at_the_edges_of_tiles_are_caught(monkeypatch):
    monkeypatch.setattr(kernels, "load_tile", _forgets_the_end)
    compare(SHAPES["whole tiles and pieces"])
    for name in ("an element more", "an element less"):
        with pytest.raises(AssertionError):
            compare(SHAPES[name])
        with pytest.raises(AssertionError):
            test_norm_equals_float64([(17,)], F32)
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "store_tile", _never_whole)
    with pytest.raises(AssertionError):
        compare(SHAPES["whole tiles and pieces"])


def test_other_values_of_the_same_tensors_compile_nothing():
    def run(sizes, rate, step):
        tensors = [torch.empty(size, device="meta") for size in sizes]
        scalar = torch.empty((), device="meta")
        kernels.adamw_ema_(
            tensors, tensors, tensors, tensors, tensors, [], [], scalar, [rate] * len(tensors),
            0.9, 0.999, 1e-8, scalar, scalar, step,
        )  # fmt: skip
        kernels.gradient_norm(tensors)

    runs = ([384], 0.01, 0.9), ([384] * 16, 0.0, 0.99), ([7, 5000, 12], 0.1, 1.0)
    assert_compiles_once(*(partial(run, *arguments) for arguments in runs))


def test_opcheck():
    state = State([(5, 4), (7,)], copies=True)
    rate, clip, step = (torch.tensor(x, device=DEVICE) for x in (1e-3, 1.0, 3.0))
    lists = (state.params, state.grads(), state.exp_avg, state.exp_avg_sq, state.ema)
    copies = (state.low_precision, state.ema_low_precision)
    numbers = (rate, [0.0, 0.1], 0.9, 0.999, 1e-8, clip, step, 0.9)
    utilities = ("test_schema", "test_faketensor")  # bfloat16 copies are not what AOT repeats
    torch.library.opcheck(ops.adamw_ema_.default, (*lists, *copies, *numbers), test_utils=utilities)
    torch.library.opcheck(ops.gradient_norm.default, (state.grads(),))


def test_backend_choice():
    state = State([(5, 4)], F64)
    with pytest.raises(BackendError, match="float64 parameters run on the reference"):
        state.update(state.grads(F64), 1)
    mixed = [torch.zeros(3, device=DEVICE), torch.zeros(3, device=DEVICE, dtype=F16)]
    with pytest.raises(BackendError, match="gradients of several dtypes run on the reference"):
        gradient_norm(mixed, backend="triton")
    assert (
        native_reason(state.params, "triton") == "triton: float64 parameters run on the reference"
    )
    assert native_reason(State([(5,)]).params, "triton") is None


def arguments(**changes):
    x = torch.zeros(3, 4)
    values = {
        "params": [x], "grads": [x.clone()], "exp_avg": [x.clone()], "exp_avg_sq": [x.clone()],
        "ema": [x.clone()], "low_precision": [x.bfloat16()], "ema_low_precision": [x.bfloat16()],
        "learning_rate": torch.tensor(1e-3), "weight_decay": [0.0], "beta1": 0.9, "beta2": 0.999,
        "eps": 1e-8, "clip_factor": torch.tensor(1.0), "step": torch.tensor(1), "ema_beta": 0.9,
    }  # fmt: skip
    return {**values, **changes}


Z = torch.zeros(3, 4)
BAD = [
    ("params", [Z.double()], TypeError, r"params\[0\] must have dtype torch\.float32"),
    ("params", [torch.zeros(4, 3).t()], ValueError, r"params\[0\] is written in place and must be"),
    ("grads", [], ValueError, "grads must have 1 like params, got 0"),
    ("grads", [Z.double()], TypeError, "grads must have dtype float32, bfloat16 or float16"),
    ("grads", [torch.zeros(4, 3)], ValueError, r"grads\[0\] must be .* \[3, 4\]"),
    ("exp_avg", [torch.zeros(12)], ValueError, r"exp_avg\[0\] must be .* \[3, 4\]"),
    ("exp_avg_sq", [Z.to("meta")], ValueError, r"exp_avg_sq\[0\] must be on cpu"),
    ("ema", [Z, Z], ValueError, "ema must have no entries or 1 like params, got 2"),
    ("low_precision", [Z], TypeError, r"low_precision\[0\] must have dtype torch\.bfloat16"),
    ("ema", [], ValueError, r"ema_low_precision\[0\] needs ema\[0\]"),
    ("learning_rate", torch.tensor(1), TypeError, "learning_rate must have dtype float32 or"),
    ("learning_rate", torch.zeros(2), ValueError, r"learning_rate must be .* \[1\]"),
    ("learning_rate", torch.zeros(1, 1), ValueError, r"learning_rate must be \[\] or \[1\]"),
    ("clip_factor", torch.zeros(1), ValueError, "clip_factor must be"),
    ("step", torch.tensor(1).int(), TypeError, "step must have dtype int64 or float32"),
    ("weight_decay", [], ValueError, "weight_decay must have 1 entries like params, got 0"),
    ("weight_decay", [-1.0], ValueError, "weight_decay must be >= 0"),
    ("beta2", 1.0, ValueError, r"betas must be in \[0, 1\)"),
    ("eps", -1.0, ValueError, "eps must be >= 0, got -1.0"),
    ("ema_beta", 1.5, ValueError, r"ema_beta must be in \[0, 1\], got 1.5"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument_writes_nothing(argument, value, error, message):
    given = arguments(**{argument: value})
    with pytest.raises(error, match=f"adamw_ema_: {message}"):
        kernels.adamw_ema_(**given)
    assert all(x.eq(0).all() for x in given["exp_avg"])


def test_tensors_that_share_memory_are_refused():
    whole = torch.zeros(24)
    shared = whole[:12].view(3, 4), whole[11:23].view(3, 4)
    given = arguments(params=[shared[0]], exp_avg=[shared[1]])
    with pytest.raises(ValueError, match=r"exp_avg\[0\] and params\[0\] share memory"):
        kernels.adamw_ema_(**given)


@pytest.mark.parametrize("is_dense", [True, False])
def test_a_gradient_in_the_memory_of_a_moment_is_refused(is_dense):
    memory = torch.zeros(2, 4, 4)
    given = arguments(exp_avg=[memory[0, :3]])
    kernels.adamw_ema_(**given)
    given["grads"] = [memory[0, 1:] if is_dense else memory.view(8, 4)[2:8:2]]
    with pytest.raises(ValueError, match=r"exp_avg\[0\] shares memory with grads\[0\]"):
        kernels.adamw_ema_(**given)


@pytest.mark.parametrize("name", ["params", "grads", "ema"])
def test_tensors_that_require_grad_are_refused(name):
    given = arguments()
    given[name] = [given[name][0].clone().requires_grad_()]
    with pytest.raises(ValueError, match=rf"adamw_ema_: {name}\[0\] .*requires grad"):
        kernels.adamw_ema_(**given)
    with torch.no_grad():
        kernels.adamw_ema_(**given)


def test_no_gradients_have_norm_0():
    assert kernels.gradient_norm([]) == 0
    assert ops.gradient_norm([]) == 0


def test_gradients_of_two_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"gradient_norm: grads\[1\] must have dtype"):
        kernels.gradient_norm([Z, Z.half()])
