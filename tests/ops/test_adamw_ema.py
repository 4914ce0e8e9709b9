"""The optimiser's own: many steps of torch.optim.AdamW, copies, left-out entries, clipping."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from sbrrt_fast.ops.adamw_ema import adamw_ema_, native_reason
from sbrrt_fast.ops.gradient_norm import gradient_norm
from tests.cuda_on_cpu.kernels import adamw as cuda_kernels
from tests.ops.backends import DEVICES, INTERPRETED, backends_of
from tests.ops.cases.adamw import SHAPES, good_update
from tests.ops.on_device import equal, moved
from tests.ops.update_samples import clipped, is_interpreted, norm, samples, triton_ops

every_backend = backends_of("adamw_ema_", "reference", "cuda_on_cpu")
of_tensors = backends_of("adamw_ema_", "reference")


class State:
    """Parameters with their moments, averages and copies, updated by a backend."""

    def __init__(self, shapes, backend="cpu", copies=True):
        self.backend, self.device = backend, DEVICES.get(backend, "cpu")
        self.params = [torch.randn(shape, device=self.device) for shape in shapes]
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.params]
        self.ema = [p.clone() for p in self.params]
        low = [torch.full_like(p, math.nan, dtype=torch.bfloat16) for p in self.params]
        self.low_precision = low if copies else []
        self.ema_low_precision = copy.deepcopy(self.low_precision)

    def grads(self, scale=1.0):
        return [scale * torch.randn_like(p) for p in self.params]

    def update(self, grads, count, *, weight_decay=None, **changes):
        settings = {
            "learning_rate": torch.tensor(1e-3, dtype=torch.float64),
            "clip_factor": torch.tensor(1.0),
            "step": torch.tensor(count or 1),
            "ema_beta": 0.95,
            "betas": (0.9, 0.999),
        } | changes
        settings = moved(settings, self.device)
        decay = weight_decay or [0.01 if p.ndim > 1 else 0.0 for p in self.params]
        lists = self.params, self.exp_avg, self.exp_avg_sq
        copies = self.low_precision, self.ema_low_precision
        if self.backend == "cuda_on_cpu":
            cuda_kernels.update((*lists, self.ema), grads, decay, settings, copies)
            return
        if is_interpreted(self.backend):
            numbers = (settings[name] for name in ("clip_factor", "step", "ema_beta"))
            numbers = settings["learning_rate"], decay, *settings["betas"], 1e-8, *numbers
            triton_ops.adamw_ema_(self.params, grads, *lists[1:], self.ema, *copies, *numbers)
            return
        names = ("low_precision", "ema_low_precision")
        adamw_ema_(
            self.params, grads, *lists[1:], ema=self.ema, weight_decay=decay,
            backend=self.backend, **dict(zip(names, copies, strict=True)), **settings,
        )  # fmt: skip

    def tensors(self):
        lists = self.params, self.exp_avg, self.exp_avg_sq, self.ema
        return [t for tensors in lists for t in tensors]

    def everything(self):
        return [*self.tensors(), *self.low_precision, *self.ema_low_precision]


def torch_adamw(params, weight_decay, rates, **options):
    """torch's optimizer over one group per parameter."""
    groups = [
        {"params": [p], "weight_decay": decay, "lr": rate}
        for p, decay, rate in zip(params, weight_decay, rates, strict=True)
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, **options)


@pytest.mark.parametrize("fused", [True, False])
@every_backend
@samples
def test_many_steps_equal_torch(shapes, backend, fused):
    """20 steps with clipping, a rate per tensor and per step, and a changing momentum.

    Both take the same clip factor: torch's own norm is a sum in float32 whose rounding changes with
    the number of threads, and a momentum that cancels shows that enlarged.
    """
    ours = State(shapes, backend)
    stock = [torch.nn.Parameter(p.cpu()) for p in copy.deepcopy(ours.params)]
    averages = [p.detach().clone() for p in stock]
    decay = [0.1 * (i % 3) for i in range(len(shapes))]
    rates = [1e-3 * (1 + i) for i in range(len(shapes))]
    optimizer = torch_adamw(stock, decay, rates, fused=fused)
    for step in range(1, 21):
        grads = ours.grads(scale=10.0 ** (step % 5 - 2))
        factor = clipped(grads, 1.0, backend).clip_factor
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / step
        for p, g in zip(stock, grads, strict=True):
            p.grad = g.cpu() * factor
        optimizer.step()
        beta = 0.9 + 0.09 * (step % 2)
        torch._foreach_lerp_(averages, [p.detach() for p in stock], 1 - beta)
        changes = {"learning_rate": torch.tensor(rates, dtype=torch.float64) / step}
        changes |= {"clip_factor": factor, "weight_decay": decay, "ema_beta": beta}
        ours.update(grads, step, **changes)
    for mine, theirs in zip(ours.params + ours.ema, [*stock, *averages], strict=True):
        if theirs.numel():
            assert (mine.cpu() - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    if backend not in ("cpu", "reference"):
        return  # a moment crosses zero, where their roundings differ
    for i, p in enumerate(stock):
        state = optimizer.state[p]
        for mine, theirs in ((ours.exp_avg, "exp_avg"), (ours.exp_avg_sq, "exp_avg_sq")):
            assert torch.allclose(mine[i].cpu(), state[theirs], rtol=1e-6, atol=0)


TURNS = [(0, 1, 2), (0, 1), (2, 3), (0, 1, 2, 3), (3,), (0, 2)]  # who is updated
SKIPPED_TURN = 2


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_updated_in_different_turns_equal_torch(dtype, backend):
    """Numbers of updates of their own in one call; averages of the others move; one is left out."""
    ours = State([(33, 50), (7,), (16390,), (129, 4)], backend)
    stock = [torch.nn.Parameter(p.cpu()) for p in copy.deepcopy(ours.params)]
    averages, steps = [p.cpu().clone() for p in ours.ema], torch.zeros(4)
    optimizer = torch_adamw(stock, [0.1, 0.0, 0.01, 0.0], [1e-3] * 4, fused=True)
    for turn, updated in enumerate(TURNS * 3):
        grads = [g if i in updated else g.new_empty(0) for i, g in enumerate(ours.grads())]
        grads[1:3] = [g.to(dtype) for g in grads[1:3]]
        is_made = turn != SKIPPED_TURN
        steps[list(updated)] += is_made
        for i, p in enumerate(stock):
            p.grad = grads[i].cpu().float() if i in updated and is_made else None
        optimizer.step()
        if is_made:
            torch._foreach_lerp_(averages, [p.detach() for p in stock], 0.05)
        factor = torch.tensor(1.0 if is_made else math.nan)
        changes = {"step": steps.clone(), "clip_factor": factor}
        ours.update(grads, None, weight_decay=[0.1, 0.0, 0.01, 0.0], **changes)
    assert [optimizer.state[p]["step"].item() for p in stock] == steps.tolist()
    assert len(set(steps.tolist())) > 1
    for mine, theirs in zip(ours.params + ours.ema, [*stock, *averages], strict=True):
        assert (mine.cpu() - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@every_backend
def test_a_parameter_without_a_gradient_stays_as_it_is(backend):
    """With or without moments; its average moves, and the average's copy."""
    state = State([(40, 5), (16390,), (33,)], backend)
    state.update(state.grads(), 1)
    before, grads = copy.deepcopy(state), state.grads()
    none = grads[0].new_empty(0)
    state.exp_avg[1], state.exp_avg_sq[1] = none, none
    state.ema[2] = state.ema_low_precision[2] = none
    state.ema_low_precision[2] = none.bfloat16()
    kept = [state.params[1].clone(), *(x[2].clone() for x in (state.params, state.exp_avg))]
    state.update([grads[0], none, none], None, step=torch.tensor([2, 0, 0]))
    assert equal([state.params[1], state.params[2], state.exp_avg[2]], kept)
    assert equal(state.low_precision[1:], before.low_precision[1:])
    assert not equal(state.params[:1], before.params[:1])
    moved_average = before.ema[1].lerp(before.params[1], 0.05)
    torch.testing.assert_close(state.ema[1], moved_average, rtol=1e-6, atol=1e-7)
    tolerance = 2**-7 if is_interpreted(backend) else 0
    expected = state.ema[1].bfloat16()
    torch.testing.assert_close(state.ema_low_precision[1], expected, rtol=tolerance, atol=0)


@every_backend
@pytest.mark.parametrize("name", SHAPES)
def test_copies_are_the_rounded_tensors(name, backend):
    state = State(SHAPES[name], backend)
    state.update(state.grads(), 1)
    copies = state.low_precision + state.ema_low_precision
    for copied, source in zip(copies, state.params + state.ema, strict=True):
        expected = source.to(torch.bfloat16).float()
        tolerance = 2**-7 if is_interpreted(backend) else 0
        torch.testing.assert_close(copied.float(), expected, rtol=tolerance, atol=0)


@every_backend
def test_left_out_entries_are_not_written(backend):
    state = State([(5, 40), (40,)], backend)
    whole, grads, left_out = copy.deepcopy(state), state.grads(), state.ema[1]
    none, kept = left_out.new_empty(0), left_out.clone()
    whole.update(grads, 1)
    state.ema = [state.ema[0], none]
    state.low_precision = [none.bfloat16(), state.low_precision[1]]
    state.ema_low_precision = [state.ema_low_precision[0], none.bfloat16()]
    state.update(grads, 1)
    for ours, expected in ((state.params, whole.params), (state.ema[:1], whole.ema[:1])):
        assert equal(ours, expected)
    assert torch.equal(state.low_precision[1], whole.low_precision[1])
    assert torch.equal(left_out, kept)
    bare = State([(5, 40), (40,)], backend, copies=False)
    bare.params, bare.ema = [torch.ones_like(p) for p in bare.params], []
    bare.update(grads, 1)
    assert (bare.params[1] != 1).all()


@every_backend
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.999, 1.0])
def test_the_average_s_momentum_at_its_ends(beta, backend):
    state = State([(33,)], backend)
    before = state.ema[0].double().clone()
    state.update(state.grads(), 1, ema_beta=beta)
    expected = beta * before + (1 - beta) * state.params[0].double()
    assert torch.allclose(state.ema[0].double(), expected, rtol=0, atol=4e-7)
    if beta in (0.0, 1.0):
        assert torch.equal(state.ema[0].double(), expected)


@every_backend
def test_steps_and_rates_of_either_dtype_agree(backend):
    first = State([(100, 3)], backend)
    others, grads = [copy.deepcopy(first) for _ in range(3)], first.grads()
    first.update(grads, 7)
    others[0].update(grads, 7, step=torch.tensor(7.0))
    others[1].update(grads, 7, learning_rate=torch.tensor([1e-3], dtype=torch.float64))
    others[2].update(grads, 7, learning_rate=torch.tensor([1e-3]))
    assert equal(first.everything(), others[0].everything())
    assert equal(first.everything(), others[1].everything())
    assert torch.allclose(first.params[0], others[2].params[0], rtol=1e-6)


@of_tensors
def test_gradients_in_other_layouts_and_at_odd_addresses(backend):
    state = State([(30, 50)], backend)
    others = [copy.deepcopy(state) for _ in range(2)]
    grad = torch.randn(50, 30, device=state.device).t()
    odd = torch.empty(1501, device=state.device)[1:].view(30, 50).copy_(grad)
    assert odd.data_ptr() % 16
    for other, g in zip([state, *others], [grad, grad.contiguous(), odd], strict=True):
        other.update([g], 1)
        assert equal(other.everything(), state.everything())
    found = norm([grad], backend)
    assert found.item() == pytest.approx(grad.double().norm().item(), rel=1e-6)
    assert backend == "reference" or found == norm([grad.contiguous()], backend)


@every_backend
def test_memory_that_16_bytes_do_not_divide(backend):
    whole = State([(500,)], backend)
    shifted, grads = copy.deepcopy(whole), whole.grads()
    shifted.exp_avg = [torch.cat([torch.zeros_like(grads[0][:1]), shifted.exp_avg[0]])[1:]]
    whole.update(grads, 1)
    shifted.update(grads, 1)
    assert equal(shifted.tensors(), whole.tensors())


@every_backend
@pytest.mark.parametrize("name", SHAPES)
def test_a_clip_factor_of_nan_leaves_the_update_out(name, backend):
    """Nothing is written, and the next update goes on from there."""
    ours = State(SHAPES[name], backend)
    ours.update(ours.grads(), 1)
    whole, before = copy.deepcopy(ours), copy.deepcopy(ours.everything())
    bad = [torch.full_like(g, math.inf) for g in ours.grads()]
    ours.update(bad, 2, clip_factor=torch.tensor(math.nan))
    assert equal(ours.everything(), before)
    grads = ours.grads()
    for state in (ours, whole):
        state.update(grads, 2)
    assert equal(ours.everything(), whole.everything())
    assert not equal(ours.everything(), before)


@pytest.mark.parametrize("library", ["sbrrt", "sbrrt_triton"])
def test_shared_memory_is_refused(library):
    update = getattr(torch.ops, library).adamw_ema_
    given = good_update()
    given["ema"] = [given["params"][0], given["ema"][1]]
    with pytest.raises(ValueError, match="share memory"):
        update(**given)
    whole = torch.zeros(40)
    given = good_update() | {"params": [whole[:20].view(4, 5), torch.zeros(5)]}
    given["exp_avg"] = [whole[19:39].view(4, 5), torch.zeros(5)]
    with pytest.raises(ValueError, match=r"(exp_avg|params)\[0\] and (exp_avg|params)\[0\] sh"):
        update(**given)


@pytest.mark.parametrize("library", ["sbrrt", "sbrrt_triton"])
@pytest.mark.parametrize("name", ["params", "grads", "ema"])
def test_tensors_that_require_grad_are_refused(name, library):
    given, update = good_update(), getattr(torch.ops, library).adamw_ema_
    given[name] = [given[name][0].clone().requires_grad_(), given[name][1]]
    with pytest.raises(ValueError, match=rf"adamw_ema_: {name}\[0\] .*requires grad"):
        update(**given)
    with torch.no_grad():
        update(**given)


@backends_of("adamw_ema_")
def test_graphs_notice_the_change(backend):
    state = State([(4, 5)], backend)
    p = state.params[0].requires_grad_()
    loss = (p * p).sum()
    with torch.no_grad():
        state.update(state.grads(), 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_why_parameters_have_no_fused_update():
    params = [torch.ones(3, dtype=torch.float64)]
    reason = "triton: float64 parameters run on the reference"
    assert native_reason(params, "triton") == reason
    assert native_reason([torch.ones(3)], "triton" if INTERPRETED else "cpu") is None
    assert gradient_norm(params).dtype == torch.float64
