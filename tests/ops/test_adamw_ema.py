"""adamw_ema_ and gradient_norm against torch.optim.AdamW, clipping and a lerp."""

from __future__ import annotations

import copy
import math
import os
import random
import subprocess
import sys

import pytest
import torch
from torch.optim.adamw import adamw

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.adamw_ema import (
    adamw_ema_,
    clip_factor,
    gradient_norm,
    gradient_norm_reference,
)
from tests.ops.op_checks import capabilities

assert extension is not None, extension_error
ops = torch.ops.sbrrt

SHAPES = {
    "one element": [()],
    "odd sizes": [(3, 7), (1,), (13,), (0, 4), (31, 33), (17,)],
    "several pieces": [(16384,), (16385,), (5, 7919), (3,)],
    "one large": [(211, 499)],
}
samples = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
BACKENDS = ["cpu", "reference"]


class State:
    """Parameters with their moments, averages and copies, and the arguments of one update."""

    def __init__(self, shapes, dtype=torch.float32, grad_dtype=None, copies=True):
        self.params = [torch.randn(shape, dtype=dtype) for shape in shapes]
        self.grad_dtype = grad_dtype or dtype
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.params]
        self.ema = [p.clone() for p in self.params]
        low = [torch.full(p.shape, math.nan, dtype=torch.bfloat16) for p in self.params]
        self.low_precision = low if copies else []
        self.ema_low_precision = copy.deepcopy(self.low_precision)

    def grads(self, scale=1.0):
        return [(scale * torch.randn_like(p)).to(self.grad_dtype) for p in self.params]

    def update(self, grads, count, backend="cpu", **changes):
        settings = {
            "learning_rate": torch.tensor(1e-3, dtype=torch.float64),
            "weight_decay": [0.01 if p.ndim > 1 else 0.0 for p in self.params],
            "clip_factor": torch.tensor(1.0),
            "step": torch.tensor(count),
            "ema_beta": 0.95,
            "low_precision": self.low_precision,
            "ema_low_precision": self.ema_low_precision,
        }
        lists = (self.params, grads, self.exp_avg, self.exp_avg_sq)
        adamw_ema_(*lists, ema=self.ema, backend=backend, **{**settings, **changes})

    def tensors(self):
        lists = self.params, self.exp_avg, self.exp_avg_sq, self.ema
        return [t for tensors in lists for t in tensors]

    def bits(self):
        everything = [*self.tensors(), *self.low_precision, *self.ema_low_precision]
        return b"".join(t.view(-1).view(torch.uint8).numpy().tobytes() for t in everything)


def torch_adamw(params, weight_decay, rates, **options):
    """torch's optimizer over one group per parameter."""
    groups = [
        {"params": [p], "weight_decay": decay, "lr": rate}
        for p, decay, rate in zip(params, weight_decay, rates, strict=True)
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, **options)


def assert_equal_within_1e_6(ours, theirs):
    """1e-6 of each tensor's largest entry."""
    for mine, other in zip(ours, theirs, strict=True):
        if other.numel():
            assert (mine - other).abs().max() <= 1e-6 * other.abs().max()


@samples
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_equal_torch(shapes, fused, backend):
    """20 steps with clipping, a rate per tensor and per step, and a changing momentum.

    Both take the same clip factor: torch's own norm is a sum in float32 whose rounding changes with
    the number of threads, and a momentum that cancels shows that enlarged.
    """
    ours = State(shapes)
    stock = [torch.nn.Parameter(p.clone()) for p in ours.params]
    averages = [p.detach().clone() for p in stock]
    decay = [0.1 * (i % 3) for i in range(len(shapes))]
    rates = [1e-3 * (1 + i) for i in range(len(shapes))]
    optimizer = torch_adamw(stock, decay, rates, fused=fused)
    for step in range(1, 21):
        grads = ours.grads(scale=10.0 ** (step % 5 - 2))
        factor = clip_factor(gradient_norm(grads, backend=backend), 1.0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / step
        for p, g in zip(stock, grads, strict=True):
            p.grad = g * factor
        optimizer.step()
        beta = 0.9 + 0.09 * (step % 2)
        torch._foreach_lerp_(averages, [p.detach() for p in stock], 1 - beta)
        rate = torch.tensor(rates, dtype=torch.float64) / step
        changes = {"learning_rate": rate, "weight_decay": decay, "ema_beta": beta}
        ours.update(grads, step, backend, clip_factor=factor, **changes)
    assert_equal_within_1e_6(ours.params + ours.ema, [*stock, *averages])
    for i, p in enumerate(stock):
        state = optimizer.state[p]
        for mine, theirs in ((ours.exp_avg, "exp_avg"), (ours.exp_avg_sq, "exp_avg_sq")):
            assert torch.allclose(mine[i], state[theirs], rtol=1e-6, atol=0)


@samples
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_error_is_within_twice_torch_s(shapes, grad_dtype):
    """Against float64, the worst error of one step from a state in use."""
    exact = State(shapes, torch.float64, torch.float64)
    for step in range(1, 4):
        exact.update(exact.grads(), step, "reference")
    exact.update([g.to(torch.float64) for g in exact.grads()], 4, "reference")
    ours = copy.deepcopy(exact)
    for name in ("params", "exp_avg", "exp_avg_sq", "ema"):
        setattr(ours, name, [t.float() for t in getattr(ours, name)])
        setattr(exact, name, [t.double() for t in getattr(ours, name)])
    stock = copy.deepcopy(ours)
    grads = [g.to(grad_dtype) for g in ours.grads(0.1)]
    exact.update([g.double() for g in grads], 5, "reference")
    ours.update(grads, 5)
    stock_step(stock, [g.float() for g in grads], 5)
    for mine, theirs, truth in zip(ours.tensors(), stock.tensors(), exact.tensors(), strict=True):
        if truth.numel():
            allowed = 2 * (theirs - truth).abs().max() + 2e-7 * truth.abs().max()
            assert (mine - truth).abs().max() <= allowed


def stock_step(state, grads, step):
    """The same update by torch's single-tensor path and a lerp."""
    for i, p in enumerate(state.params):
        adamw(
            [p], [grads[i]], [state.exp_avg[i]], [state.exp_avg_sq[i]], [],
            [torch.tensor(step - 1.0)], amsgrad=False, beta1=0.9, beta2=0.999, lr=1e-3,
            weight_decay=0.01 if p.ndim > 1 else 0.0, eps=1e-8, maximize=False, foreach=False,
        )  # fmt: skip
    torch._foreach_lerp_(state.ema, state.params, 0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_are_the_rounded_tensors(backend):
    state = State(SHAPES["odd sizes"])
    state.update(state.grads(), 1, backend)
    for copies, sources in (
        (state.low_precision, state.params),
        (state.ema_low_precision, state.ema),
    ):
        for copied, source in zip(copies, sources, strict=True):
            assert torch.equal(copied, source.to(torch.bfloat16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_left_out_entries_are_not_written(backend):
    state = State([(5, 40), (40,)])
    whole = copy.deepcopy(state)
    grads, none = state.grads(), torch.empty(0)
    whole.update(grads, 1, backend)
    kept = state.ema[1].clone()
    state.ema = [state.ema[0], none]
    state.low_precision = [none.bfloat16(), state.low_precision[1]]
    state.ema_low_precision = [state.ema_low_precision[0], none.bfloat16()]
    state.update(grads, 1, backend)
    assert torch.equal(state.params[0], whole.params[0])
    assert torch.equal(state.ema[0], whole.ema[0])
    assert torch.equal(state.low_precision[1], whole.low_precision[1])
    bare = State([(5, 40), (40,)], copies=False)
    bare.params = [torch.ones(5, 40), torch.ones(40)]
    bare.ema = []
    bare.update(grads, 1, backend)
    assert (bare.params[1] != 1).all()
    assert kept.shape == (40,)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.999, 1.0])
def test_momentum_at_its_ends(beta):
    state = State([(33,)])
    before = state.ema[0].double().clone()
    state.update(state.grads(), 1, ema_beta=beta)
    expected = beta * before + (1 - beta) * state.params[0].double()
    assert torch.allclose(state.ema[0].double(), expected, rtol=0, atol=1e-7 * 4)
    if beta in (0.0, 1.0):
        assert torch.equal(state.ema[0].double(), expected)


def test_steps_and_rates_of_either_dtype_agree():
    first = State([(100, 3)])
    others = [copy.deepcopy(first) for _ in range(2)]
    grads = first.grads()
    first.update(grads, 7)
    others[0].update(grads, 7, step=torch.tensor(7.0))
    others[1].update(grads, 7, learning_rate=torch.tensor([1e-3]))
    assert first.bits() == others[0].bits()
    assert torch.allclose(first.params[0], others[1].params[0], rtol=1e-6)


def test_strided_gradients():
    state = State([(30, 50)])
    other = copy.deepcopy(state)
    grad = torch.randn(50, 30).t()
    state.update([grad], 1)
    other.update([grad.contiguous()], 1)
    assert state.bits() == other.bits()
    assert gradient_norm([grad]).item() == pytest.approx(grad.double().norm().item(), rel=1e-6)


@samples
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_equals_float64(shapes, dtype):
    for scale in (1e-12, 1.0, 1e12):
        grads = [(scale * torch.randn(shape)).to(dtype) for shape in shapes]
        exact = torch.cat([g.double().reshape(-1) for g in grads]).norm()
        got = gradient_norm(grads, backend="cpu")
        assert got.dtype == torch.float32
        assert got.shape == ()
        assert abs(got.double() - exact) <= 3e-7 * exact
        assert gradient_norm_reference(grads).double() == pytest.approx(exact.item(), rel=1e-7)


def test_norm_shows_what_is_not_finite():
    assert gradient_norm([torch.tensor([1.0, math.inf])]).item() == math.inf
    assert math.isnan(gradient_norm([torch.ones(70), torch.tensor([math.nan])]).item())
    assert gradient_norm([]).item() == 0.0
    assert gradient_norm([torch.empty(0)]).item() == 0.0


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_clip_factor_is_torch_s(max_norm):
    p = torch.nn.Parameter(torch.zeros(50))
    p.grad = torch.randn(50)
    grad = p.grad.clone()
    factor = clip_factor(gradient_norm([grad]), max_norm)
    if max_norm > 0:
        torch.nn.utils.clip_grad_norm_([p], max_norm)
    assert torch.allclose(factor * grad, p.grad, rtol=1e-6)


@samples
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clip_factor_equals_float64(shapes, max_norm):
    grads = State(shapes).grads()
    norm = torch.cat([g.double().reshape(-1) for g in grads]).norm()
    expected = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    factor = clip_factor(gradient_norm(grads), max_norm)
    assert factor.dtype == torch.float32
    assert torch.allclose(factor.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_a_norm_that_is_not_finite_has_no_clip_factor(norm, max_norm):
    assert clip_factor(torch.tensor(norm), max_norm).isnan()
    assert clip_factor(torch.tensor(3e38), max_norm).isfinite()


@samples
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_factor_of_nan_leaves_the_update_out(shapes, backend):
    """Nothing is written, and the next update goes on from there."""
    ours = State(shapes)
    ours.update(ours.grads(), 1, backend)
    whole, before = copy.deepcopy(ours), ours.bits()
    bad = [torch.full_like(g, math.inf) for g in ours.grads()]
    ours.update(bad, 2, backend, clip_factor=torch.tensor(math.nan))
    assert ours.bits() == before
    grads = ours.grads()
    for state in (ours, whole):
        state.update(grads, 2, backend)
    assert ours.bits() == whole.bits() != before


def test_same_bits_for_any_number_of_threads_and_again():
    first = State([(7919,), (500, 301), (64,), (129, 511)])
    others = [copy.deepcopy(first) for _ in range(4)]
    grads, before = first.grads(), torch.get_num_threads()
    first.update(grads, 3)
    norms = []
    try:
        for other, num_threads in zip(others, (1, 2, 3, 1), strict=True):
            torch.set_num_threads(num_threads)
            other.update(grads, 3)
            norms.append(gradient_norm(grads).item())
            assert other.bits() == first.bits()
    finally:
        torch.set_num_threads(before)
    assert len(set(norms)) == 1


VARIANT = """
import torch
from torch.optim.adamw import adamw
from sbrrt_fast._extension import extension
from tests.ops.test_adamw_ema import State, gradient_norm
torch.manual_seed(0)
state = State([(7919,), (50, 31)])
grads = state.grads()
for step in (1, 2, 3):
    state.update(grads, step)
numbers = [t.double().square().sum().item() for t in state.tensors()]
print(extension.build_info()["cpu_capability"], gradient_norm(grads).item(), *numbers)
"""


def test_every_instruction_set_agrees():
    found = {}
    for capability in capabilities():
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", VARIANT]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        name, *numbers = result.stdout.split()
        found[name] = torch.tensor([float(x) for x in numbers], dtype=torch.float64)
    assert "plain" in found
    for numbers in found.values():
        assert torch.allclose(numbers, found["plain"], rtol=1e-6)


def arguments(**changes):
    state = State([(4, 5), (5,)])
    values = {
        "params": state.params,
        "grads": state.grads(),
        "exp_avg": state.exp_avg,
        "exp_avg_sq": state.exp_avg_sq,
        "ema": state.ema,
        "low_precision": state.low_precision,
        "ema_low_precision": state.ema_low_precision,
        "learning_rate": torch.tensor(1e-3),
        "weight_decay": [0.1, 0.0],
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "clip_factor": torch.tensor(1.0),
        "step": torch.tensor(1),
        "ema_beta": 0.9,
    }
    return {**values, **changes}


PAIR = [torch.zeros(4, 5), torch.zeros(5)]
BAD = [
    ("params", [torch.zeros(4, 5).double(), torch.zeros(5)], TypeError, r"params\[0\] must have"),
    ("params", [torch.zeros(5, 4).t(), torch.zeros(5)], ValueError, r"params\[0\] is written in"),
    ("params", [torch.zeros(4, 5)], ValueError, "grads must have 1 like params, got 2"),
    ("grads", [torch.zeros(4, 5), torch.zeros(6)], ValueError, r"grads\[1\] must be .* \[5\]"),
    ("grads", [torch.zeros(4, 5), torch.zeros(5).bfloat16()], TypeError, r"grads\[1\] must have"),
    ("grads", [g.half() for g in PAIR], TypeError, "grads must have dtype float32 or bfloat16"),
    ("exp_avg", PAIR[:1], ValueError, "exp_avg must have 2 like params, got 1"),
    ("exp_avg", PAIR[::-1], ValueError, r"exp_avg\[0\] must be a dense tensor of shape \[4, 5\]"),
    ("exp_avg_sq", [PAIR[0], PAIR[0]], ValueError, r"exp_avg_sq\[1\] must be"),
    ("ema", PAIR[:1], ValueError, "ema must have no entries or 2 like params, got 1"),
    ("ema", [g.double() for g in PAIR], TypeError, r"ema\[0\] must have dtype Float"),
    ("ema", [], ValueError, r"ema_low_precision\[0\] needs ema\[0\]"),
    ("low_precision", PAIR, TypeError, r"low_precision\[0\] must have dtype BFloat16"),
    ("learning_rate", torch.tensor([1e-3] * 3), ValueError, "learning_rate must be a dense"),
    ("learning_rate", torch.tensor(1), TypeError, "learning_rate must have dtype float32 or"),
    ("learning_rate", torch.tensor(-1.0), ValueError, "learning_rate must be >= 0, got -1"),
    ("learning_rate", torch.tensor(math.nan), ValueError, "learning_rate must be >= 0, got nan"),
    ("weight_decay", [0.1], ValueError, "weight_decay must have 2 like params, got 1"),
    ("weight_decay", [0.1, -0.1], ValueError, "weight_decay must be >= 0, got -0.1"),
    ("beta1", 1.0, ValueError, r"betas must be in \[0, 1\), got 1 and 0.999"),
    ("beta2", -0.1, ValueError, r"betas must be in \[0, 1\)"),
    ("eps", -1e-8, ValueError, "eps must be >= 0"),
    ("clip_factor", torch.tensor([1.0]), ValueError, r"clip_factor must be .* shape \[\]"),
    ("clip_factor", torch.tensor(1.0).double(), TypeError, "clip_factor must have dtype Float"),
    ("step", torch.tensor(0), ValueError, "step counts from 1, got 0"),
    ("step", torch.tensor([1]), ValueError, r"step must be a dense tensor of shape \[\]"),
    ("step", torch.tensor(1, dtype=torch.int32), TypeError, "step must have dtype int64 or"),
    ("ema_beta", 1.5, ValueError, r"ema_beta must be in \[0, 1\], got 1.5"),
    ("ema_beta", math.nan, ValueError, r"ema_beta must be in \[0, 1\], got nan"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument_writes_nothing(argument, value, error, message):
    call = arguments(**{argument: value})
    before = [t.clone() for t in (*call["exp_avg"], *call["low_precision"])]
    with pytest.raises(error, match=f"sbrrt::adamw_ema_: {message}"):
        ops.adamw_ema_(**call)
    after = [*call["exp_avg"], *call["low_precision"]]
    assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(after, before, strict=True))


def test_shared_memory_is_refused():
    call = arguments()
    call["ema"] = [call["params"][0], call["ema"][1]]
    with pytest.raises(ValueError, match="share memory"):
        ops.adamw_ema_(**call)


@pytest.mark.parametrize("argument", ["learning_rate", "clip_factor", "step"])
def test_mixed_devices_are_refused(argument):
    call = arguments()
    call[argument] = call[argument].to("meta")
    with pytest.raises(ValueError, match="must be on "):
        ops.adamw_ema_(**call)


def test_named_backend_gives_its_reason():
    state = State([(3,)], torch.float64, copies=False)
    with pytest.raises(BackendError, match=r"float64 parameters run on the reference"):
        state.update(state.grads(), 1, "cpu")
    with pytest.raises(BackendError, match="float64 gradients run on the reference"):
        gradient_norm(state.grads(), backend="cpu")
    assert gradient_norm(state.grads()).dtype == torch.float64


def test_graphs_notice_the_change():
    p = torch.randn(4, 5, requires_grad=True)
    loss = (p * p).sum()
    with torch.no_grad():
        ops.adamw_ema_(**arguments(params=[p, torch.zeros(5)]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck():
    torch.library.opcheck(ops.gradient_norm.default, ([torch.randn(3, 5), torch.randn(7)],))
    torch.library.opcheck(ops.adamw_ema_.default, (), arguments())


def test_compiled():
    state = State([(31, 5), (5,)])
    other, grads = copy.deepcopy(state), state.grads()
    rate, step = torch.tensor(1e-3), torch.tensor(3)

    def update(params, grads, m, v, ema):
        factor = clip_factor(gradient_norm(grads), 1.0)
        adamw_ema_(
            params, grads, m, v, ema=ema, ema_beta=0.9, learning_rate=rate,
            weight_decay=[0.1, 0.0], clip_factor=factor, step=step,
        )  # fmt: skip

    update(state.params, grads, state.exp_avg, state.exp_avg_sq, state.ema)
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    compiled(other.params, grads, other.exp_avg, other.exp_avg_sq, other.ema)
    assert state.bits() == other.bits()


def fuzzed(draw):
    """Arguments, some of them wrong."""
    call = arguments(step=torch.tensor(draw.choice([1, 5, 1000, 0, -3])))
    wrong = [
        torch.zeros([draw.randrange(4) for _ in range(draw.randrange(3))]),
        torch.zeros(4, 5, dtype=draw.choice([torch.bfloat16, torch.float64, torch.int64])),
        torch.zeros(4, 5, device="meta"),
        torch.zeros(4, 5).to_sparse(),
        torch.zeros(5).expand(4, 5),
        None,
        "tensor",
    ]
    for _ in range(draw.choice([0, 0, 1, 2])):
        name = draw.choice(list(call))
        if isinstance(call[name], list) and name != "weight_decay":
            items = list(call[name])
            if items:
                items[draw.randrange(len(items))] = draw.choice(wrong)
            call[name] = draw.choice([items, items[:1], [], items + items])
        elif isinstance(call[name], torch.Tensor):
            call[name] = draw.choice(wrong)
        else:
            call[name] = draw.choice([0.0, 0.5, -1.0, math.nan, math.inf, [0.1], [math.nan] * 2])
    return call


def test_fuzzed_calls_answer_or_raise():
    draw, num_answers = random.Random(1), 0
    for _ in range(2000):
        call = fuzzed(draw)
        try:
            ops.adamw_ema_(**call)
        except (TypeError, ValueError, RuntimeError):
            continue
        num_answers += 1
    assert num_answers > 500
