"""Every public op under torch.compile: one graph, whatever the length, and Inductor's code."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from sbrrt_fast.ops.adamw_ema import adamw_ema_
from sbrrt_fast.ops.attention import attention
from sbrrt_fast.ops.embed import embed
from sbrrt_fast.ops.gelu import bias_gelu
from sbrrt_fast.ops.gradient_norm import clipped_gradient_norm
from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta
from tests.ops.backends import DEVICES, FUSED, Derivatives, case_of, params, small
from tests.ops.on_device import equal, moved
from tests.ops.op_checks import RNG

HIDDEN, HEADS, MAX_POSITIONS, P, EPS = 64, 2, 512, 0.1, 1e-12


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()


def is_compiled(op, backend):
    """But for a case that draws gradients between its steps, which no graph holds."""
    return op.name != "adamw_ema_rows_"


def values(function, case):
    """The result and the gradients of all inputs."""
    found = Derivatives(
        lambda *inputs: function(*inputs, *case.constants), case.inputs, case.grad, case.tangents
    )
    return [*found.value, *(found.gradients if case.grad is not None else [])]


@params(FUSED, names=small, where=is_compiled)
def test_one_graph_gives_the_same_numbers(op, backend, sample):
    case = moved(case_of(op, sample), DEVICES.get(backend, "cpu"))
    function = case.function(backend)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert equal(values(compiled, case), values(function, case))


@params(("cpu",), names=small, where=is_compiled)
def test_graphs_do_not_depend_on_the_length(op, backend, sample):
    """The second length may still make a graph of its own, which then serves all others."""
    cases = [op.case(op.sized(rows)) for rows in (7, 11, 13, 17)]
    function = cases[-1].function(backend)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for case in cases:
        assert equal(values(compiled, case), values(function, case))
    assert counter.frame_count <= 2


def update(params, grads, m, v, ema, low, ema_low, rate, step):
    """One optimiser step of two parameters."""
    factor = clipped_gradient_norm(grads, 1.0, backend="cpu").clip_factor
    adamw_ema_(
        params, grads, m, v, ema=ema, low_precision=low, ema_low_precision=ema_low, ema_beta=0.9,
        learning_rate=rate, weight_decay=[0.1, 0.0], clip_factor=factor, step=step, backend="cpu",
    )  # fmt: skip


def update_arguments():
    """Of ``update``, without gradients that fit a state in use."""
    torch.manual_seed(0)
    lists = [[torch.rand(31, 5), torch.rand(5)] for _ in range(5)]
    copies = [[x.bfloat16() for x in lists[0]] for _ in range(2)]
    return *lists, *copies, torch.tensor(1e-3), torch.tensor(3)


def test_an_update_in_one_graph():
    eager, compiled = update_arguments(), update_arguments()
    update(*eager)
    torch.compile(update, fullgraph=True, backend="aot_eager")(*compiled)
    for ours, expected, before in zip(compiled[:7], eager[:7], update_arguments(), strict=False):
        assert equal(ours, expected)
        assert torch.equal(ours[0], before[0]) == (ours is compiled[1])  # gradients stay


def encode(table, projection, weight, shift, bias, ids, cu_seqlens, rows):
    """A piece of a model that calls most ops one after the other."""
    n = len(ids)
    offsets = torch.arange(n) * HIDDEN
    indices = ids, torch.arange(n), ids % 2
    tables = table, table[:64], table[:2]
    x = embed(*indices, *tables, weight, shift, EPS, P, RNG, 0, offsets, backend="cpu")
    numbers = 32, HEADS, P, RNG, 1, rows, MAX_POSITIONS
    y = attention(*(x @ projection).chunk(3, dim=1), cu_seqlens, *numbers, backend="cpu")
    y = bias_gelu(y, bias, backend="cpu")
    x = dropout_add_layernorm(y, bias, x, weight, shift, EPS, P, RNG, 2, offsets, backend="cpu")
    return symmetric_kl_delta(x[:, :5], x[:, 5:10], backend="cpu").mean()


def test_the_default_compiler():
    """Inductor's code calls the ops and their backwards: the same numbers but for its own ops."""
    table, projection = torch.randn(101, HIDDEN), torch.randn(HIDDEN, 3 * HIDDEN) / 8
    weight, shift, bias = torch.rand(3, HIDDEN)
    cu_seqlens = torch.tensor([0, 3, 20, 31], dtype=torch.int32)
    fixed = torch.arange(31), cu_seqlens, torch.arange(3)
    results = []
    for function in (encode, torch.compile(encode, fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in (table, projection, weight, shift, bias)]
        loss = function(*leaves, *fixed)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, expected in zip(results[1], results[0], strict=True):
        assert (ours - expected).norm() <= 1e-5 * expected.norm()
