"""Every public op under torch.compile in one graph, and opcheck of every schema."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops.adamw_ema import adamw_ema_, clip_factor, gradient_norm
from sbrrt_fast.ops.attention import attention
from sbrrt_fast.ops.dropout import dropout_mask, philox_bits
from sbrrt_fast.ops.embed import embed
from sbrrt_fast.ops.gelu import bias_gelu
from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from sbrrt_fast.ops.smart_ascend import smart_ascend
from sbrrt_fast.ops.smart_noise import smart_noise
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta, symmetric_kl_fisher
from tests.ops.op_checks import RNG, SITE, Calls, float_tangent

assert extension is not None, extension_error
HIDDEN, HEADS, MAX_POSITIONS, P, EPS = 64, 2, 512, 0.1, 1e-12
ASCENT = {
    "step_size": math.inf, "normalize_gradient": True, "projection": "normalize", "radius": 0.1,
    "norm": "2", "level": "token",
}  # fmt: skip


@dataclass
class Case:
    """A call of one op: ``function(*floats, *constants)``.

    Attributes:
        is_differentiated: whether the op has gradients in ``floats``.
        num_tangents: how many of them, from the first, may have a tangent.
    """

    function: Callable[..., Tensor]
    floats: list[Tensor]
    constants: tuple[Tensor, ...] = ()
    is_differentiated: bool = False
    num_tangents: int = 0

    def values(self, function: Callable[..., Tensor]) -> list[Tensor]:
        """The result and the gradients of all floats."""
        floats = [x.clone().requires_grad_(self.is_differentiated) for x in self.floats]
        out = function(*floats, *self.constants)
        if not self.is_differentiated:
            return [out]
        grad = torch.linspace(-1, 1, out.numel()).view(out.shape)
        return [out.detach(), *torch.autograd.grad(out, floats, grad)]

    def tangent(self) -> Tensor | None:
        if not self.num_tangents:
            return None
        fixed = [*self.floats[self.num_tangents :], *self.constants]
        primals = self.floats[: self.num_tangents]
        return float_tangent(lambda *x: self.function(*x, *fixed), primals, primals)


def attention_case(n):
    lengths = torch.arange(n, dtype=torch.int32)  # the first sequence is empty
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])
    tensors = list(torch.randn(3, int(lengths.sum()), HIDDEN))

    def function(query, key, value, cu_seqlens, rows):
        numbers = 32, HEADS, P, RNG, SITE, rows, MAX_POSITIONS
        return attention(query, key, value, cu_seqlens, *numbers, backend="cpu")

    return Case(function, tensors, (cu_seqlens, torch.arange(n)), True, 3)


def layernorm_case(n):
    x, residual = torch.randn(2, n, HIDDEN)
    bias, weight, shift = torch.randn(3, HIDDEN)

    def function(x, residual, bias, weight, shift, offsets):
        numbers = EPS, P, RNG, SITE, offsets
        return dropout_add_layernorm(x, bias, residual, weight, shift, *numbers, backend="cpu")

    floats = [x, residual, bias, weight, shift]
    return Case(function, floats, (torch.arange(n) * HIDDEN,), True, 2)


def gelu_case(n):
    return Case(
        lambda x, bias: bias_gelu(x, bias, backend="cpu"),
        [torch.randn(n, HIDDEN), torch.randn(HIDDEN)],
        is_differentiated=True,
        num_tangents=1,
    )


def embed_case(n):
    tables = [torch.randn(rows, HIDDEN) for rows in (101, MAX_POSITIONS, 2)]
    indices = torch.arange(n) % 7, torch.arange(n), torch.arange(n) % 2

    def function(word, position, type_, weight, shift, ids, positions, types, offsets):
        tensors = ids, positions, types, word, position, type_, weight, shift
        return embed(*tensors, EPS, P, RNG, SITE, offsets, backend="cpu")

    constants = *indices, torch.arange(n) * HIDDEN
    return Case(function, [*tables, *torch.randn(2, HIDDEN)], constants, True)


def symmetric_kl_case(n):
    def function(logits, delta):
        return symmetric_kl_delta(logits, delta, backend="cpu")

    return Case(function, list(torch.randn(2, n, 5)), (), True, 2)


def fisher_case(n):
    return Case(lambda w, t: symmetric_kl_fisher(w, t, backend="cpu"), list(torch.randn(2, n, 5)))


def ascend_case(n):
    mask, sequence = torch.arange(n) % 3 > 0, torch.arange(n) // 4

    def function(delta, gradient, mask, sequence):
        groups = mask, sequence, len(delta)  # at most one sequence per token
        return smart_ascend(delta, gradient, *groups, **ASCENT, backend="cpu")

    return Case(function, list(torch.randn(2, n, HIDDEN)), (mask, sequence))


def noise_case(n):
    offsets = torch.arange(n) * HIDDEN
    return Case(lambda o: smart_noise(o, HIDDEN, RNG, SITE, backend="cpu"), [], (offsets,))


def mask_case(n):
    offsets = torch.arange(n) * HIDDEN
    return Case(lambda o: dropout_mask(o, HIDDEN, P, RNG, SITE, backend="cpu"), [], (offsets,))


def bits_case(n):
    offsets = torch.arange(n) * HIDDEN
    return Case(lambda o: philox_bits(o, HIDDEN, RNG, SITE, backend="cpu"), [], (offsets,))


def norm_case(n):
    return Case(lambda a, b: gradient_norm([a, b], backend="cpu"), list(torch.randn(2, n, 3)))


CASES = {
    "attention": attention_case,
    "bias_gelu": gelu_case,
    "dropout_add_layernorm": layernorm_case,
    "dropout_mask": mask_case,
    "embed": embed_case,
    "gradient_norm": norm_case,
    "philox_bits": bits_case,
    "smart_ascend": ascend_case,
    "smart_noise": noise_case,
    "symmetric_kl": symmetric_kl_case,
    "symmetric_kl_fisher": fisher_case,
}
NODES = ("attention", "bias_gelu", "dropout_add_layernorm", "embed")  # run as their forward ops
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()


def assert_same(ours, expected):
    for mine, other in zip(ours, expected, strict=True):
        assert torch.equal(mine, other)


@cases
def test_one_graph_gives_the_same_numbers(name):
    case = CASES[name](7)
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    assert_same(case.values(compiled), case.values(case.function))


@cases
def test_graphs_do_not_depend_on_the_length(name):
    """The second length may still make a graph of its own, which then serves all others."""
    function = CASES[name](7).function
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    for num_rows in (7, 11, 13, 17):
        case = CASES[name](num_rows)
        assert_same(case.values(compiled), case.values(function))
    assert counter.frame_count <= 2


def update(params, grads, m, v, ema, low, ema_low, rate, step):
    """One optimiser step of two parameters."""
    factor = clip_factor(gradient_norm(grads, backend="cpu"), 1.0)
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
        assert_same(ours, expected)
        assert torch.equal(ours[0], before[0]) == (ours is compiled[1])  # gradients stay


def native_calls() -> dict[str, tuple]:
    """Schema -> arguments, of every native op that a call, its gradient and its tangent run."""
    with Calls() as calls:
        for make in CASES.values():
            case = make(7)
            case.values(case.function)
            case.tangent()
        update(*update_arguments())
    detach = partial(tree_map_only, Tensor, Tensor.detach)
    found = {name: detach(arguments) for name, arguments in calls.seen}
    nodes = {name: found[f"{name}_forward"] for name in NODES}
    return found | nodes | into_calls(found) | {"adamw_ema_rows_": rows_arguments()}


def into_calls(found: dict[str, tuple]) -> dict[str, tuple]:
    """The ops that write into memory of the caller's, from calls of those that return theirs."""

    def results(name: str) -> list[Tensor]:
        values = getattr(torch.ops.sbrrt, name).default(*found[name])
        return list(values) if isinstance(values, tuple) else [values]

    calls = {"mm_into": (torch.randn(7, 5), torch.randn(5, 6), torch.randn(7, 6))}
    for name in (
        f"{op}_{part}" for op in ("attention", "bias_gelu") for part in ("forward", "jvp")
    ):
        calls[f"{name}_into"] = (*found[name], *results(name))
    calls["attention_backward_into"] = (
        *found["attention_backward"],
        *results("attention_backward"),
    )
    calls["bias_gelu_backward_into"] = (
        *found["bias_gelu_backward"],
        results("bias_gelu_backward")[0],
    )
    norm = "dropout_add_layernorm"
    y, mean, rstd = results(f"{norm}_forward")
    calls[f"{norm}_forward_into"] = (*found[f"{norm}_forward"], y, y.bfloat16(), mean, rstd)
    calls[f"{norm}_jvp_into"] = (*found[f"{norm}_jvp"], *results(f"{norm}_jvp"), y.bfloat16())
    grad, *others = found[f"{norm}_backward"]
    outs = results(f"{norm}_backward")[:2]
    calls[f"{norm}_backward_into"] = (grad, torch.randn_like(grad), *others, *outs)
    return calls


def rows_arguments() -> tuple:
    """Of ``adamw_ema_rows_``."""
    table = [torch.rand(31, 5) for _ in range(4)]
    touched, rows = torch.zeros(31, dtype=torch.bool), torch.tensor([2, 7])
    numbers = torch.tensor(1e-3), 0.1, 0.9, 0.999, 1e-8, torch.tensor(1.0), torch.tensor(1), 0.9
    return table[0], torch.rand(2, 5), rows, touched, *table[1:], *numbers


def test_opcheck_of_every_schema():
    """Schema, autograd registration, meta implementation and tracing with symbolic sizes."""
    schemas = {
        n.removeprefix("sbrrt::")
        for n in torch._C._dispatch_get_all_op_names()
        if n.startswith("sbrrt::")
    }
    calls = native_calls()
    assert set(calls) == schemas
    for name, arguments in calls.items():
        torch.library.opcheck(getattr(torch.ops.sbrrt, name).default, arguments)


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
