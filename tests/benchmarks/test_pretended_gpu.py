"""What the pretended GPU refuses and does, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.pretended_gpu import PretendedGpu, Refused
from sbrrt_fast.ops._backend import backends
from tests.training.recorded_graph import RecordedGraph


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with PretendedGpu() as found, found.no_waits():
        yield found


class Squared(torch.autograd.Function):
    """x^2, whose derivatives a test plants mistakes in."""

    mistake = staticmethod(lambda x: x)

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2.0 * grad * Squared.mistake(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx, tangent):
        return 2.0 * tangent * Squared.mistake(*ctx.saved_tensors)


MISTAKES = {
    "a host mask": lambda x: x * torch.ones(3, dtype=torch.bool),
    "a host scalar tensor": lambda x: x * torch.tensor(0.5),
    "a host tensor that is filled": lambda x: torch.zeros(3).copy_(x),
    "a host index": lambda x: x[torch.tensor([0, 1, 2])],
    "a host tensor among several": lambda x: torch.stack([x, torch.ones(3)]).sum(0),
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x[0]),
    "int": lambda x: x + int(x[0]),
    "a condition": lambda x: x if (x > 0).any() else -x,
    "tolist": lambda x: x * x.tolist()[0],
    "cpu": lambda x: x.cpu(),
    "to the host": lambda x: x.to("cpu", non_blocking=True),
    "showing": lambda x: x if f"{x}" else -x,
    "showing a number": lambda x: x if f"{x.sum():.3f}" else -x,
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "nonzero": lambda x: x + x.nonzero().sum(),
    "where without values": lambda x: x + torch.where(x > 0)[0].sum(),
    "a boolean index": lambda x: x + x[x > 0].sum(),
    "writing by a boolean index": lambda x: x.clone().index_put_((x > 0,), x.sum()),
    "masked_select": lambda x: x + x.masked_select(x > 0).sum(),
    "unique": lambda x: x + x.unique().sum(),
    "a size that depends on data": lambda x: x + x.repeat_interleave(x.long() + 1).sum(),
    "an index that is read": lambda x: x * torch.arange(3.0, device=x.device)[x.argmax()],
    "a pageable copy": lambda x: x * torch.ones(3).to(x.device, non_blocking=True),
    "a pageable copy in place": lambda x: torch.empty_like(x).copy_(torch.ones(3), True),
    "a copy that is waited for": lambda x: x * torch.ones(3).pin_memory().to(x.device),
    "a tensor of numbers": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "new_tensor": lambda x: x * x.new_tensor([1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name, gpu):
    """In plain code, in a backward pass and in forward mode."""
    mistake, x = MISTAKES[name], torch.arange(3.0, device="cuda", requires_grad=True)
    for call in (mistake, backward_of(mistake), tangent_of(mistake)):
        with pytest.raises(Refused):
            call(x.detach())


def backward_of(mistake):
    def call(x):
        Squared.mistake = staticmethod(mistake)
        x = x.requires_grad_()
        torch.autograd.grad(Squared.apply(x).sum(), x)

    return call


def tangent_of(mistake):
    def call(x):
        Squared.mistake = staticmethod(mistake)
        with torch.autograd.forward_ad.dual_level():
            Squared.apply(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))

    return call


RIGHT = {
    "numbers of Python": lambda x: 0.5 * x + 1,
    "a number made on the device": lambda x: x * torch.full((), 0.5, device=x.device),
    "pinned memory": lambda x: x * torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "pinned memory in place": lambda x: torch.empty_like(x).copy_(
        torch.ones(3, pin_memory=True), non_blocking=True
    ),
    "a choice on the device": lambda x: torch.where(x > 0, x, -x),
    "a device index": lambda x: x[torch.arange(2, -1, -1, device=x.device)],
    "a known size": lambda x: x.repeat_interleave(
        torch.ones(3, dtype=torch.int64, device=x.device), output_size=3
    ),
    "a view that is written": lambda x: x.clone()[1:].add_(1),
    "the host's own numbers": lambda x: x * torch.ones(3)[torch.ones(3) > 0].sum().item(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_gpu_does_is_done(name, gpu):
    expected = RIGHT[name](torch.arange(3.0)) if "pin" not in name else torch.arange(3.0)
    if name == "pinned memory in place":
        expected = torch.ones(3)
    assert torch.equal(gpu.value(RIGHT[name](torch.arange(3.0, device="cuda"))), expected)
    for call in (backward_of(RIGHT[name]), tangent_of(RIGHT[name])):
        if name != "a view that is written":  # of another shape
            call(torch.arange(3.0, device="cuda"))


@pytest.mark.parametrize("name", ["pinned memory", "pinned memory in place"])
def test_a_graph_holds_no_copy_from_the_host(name, gpu):
    x = torch.arange(3.0, device="cuda")
    with pytest.raises(Refused, match=r"captured|every replay"):
        RecordedGraph().capture(lambda: RIGHT[name](x))


def test_it_is_gone_afterwards():
    missing = backends.cuda_missing()
    with PretendedGpu():
        inside = torch.zeros(2, device="cuda")
        assert backends.cuda_missing() is None
        assert inside.is_cuda and inside.device.type == "cuda"
    assert inside.device.type == "meta"
    assert PretendedGpu.active is None
    assert backends.cuda_missing() == missing


def test_memory_is_forgotten_with_its_tensors():
    with PretendedGpu() as gpu:
        kept = torch.arange(3.0, device="cuda")
        gpu.memory._limit = 100
        for _ in range(5000):
            torch.zeros(2, device="cuda")
        assert len(gpu.memory) == len(gpu.memory._values) < 5000
        assert gpu.value(kept).tolist() == [0.0, 1.0, 2.0]
