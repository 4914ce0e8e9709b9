"""What choosing an implementation costs per call, on the host, beside torch's smallest op.

Each op's arguments are those that its public function hands to ``Op.choose``. The two Functions do
nothing: what remains is what torch does around them.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from sbrrt_fast.ops._backend.dispatch import Op
from sbrrt_fast.ops.adamw_ema import adamw_ema_
from sbrrt_fast.ops.attention import attention
from sbrrt_fast.ops.gelu import bias_gelu
from sbrrt_fast.ops.gradient_norm import gradient_norm
from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from sbrrt_fast.ops.smart_ascend import smart_ascend
from sbrrt_fast.ops.smart_noise import smart_noise
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta

RNG = torch.tensor([17, 5])
ROW, BIAS = torch.randn(20, 64), torch.randn(64)
LENGTHS, TOKEN = torch.tensor([0, 9, 20], dtype=torch.int32), torch.arange(20)


def ascend():
    return smart_ascend(
        ROW, ROW, TOKEN > 3, TOKEN // 9, 3, step_size=0.1, normalize_gradient=True,
        projection="ball", radius=0.1, norm="inf", level="token",
    )  # fmt: skip


def update():
    """A model of 100 parameters."""
    params = [torch.rand(7) for _ in range(100)]
    grads, m, v = ([x.clone() for x in params] for _ in range(3))
    rate, one, step = torch.tensor(1e-3), torch.ones(()), torch.tensor(1)
    adamw_ema_(
        params, grads, m, v, learning_rate=rate, weight_decay=[0.0] * 100, clip_factor=one,
        step=step,
    )  # fmt: skip


CALLS = {
    "attention": lambda: attention(ROW, ROW, ROW, LENGTHS, 11, 2, 0.1, RNG, 2, TOKEN[:2], 512),
    "dropout_add_layernorm": lambda: dropout_add_layernorm(
        ROW, BIAS, ROW, BIAS, BIAS, 1e-12, 0.1, RNG, 2, TOKEN * 64
    ),
    "bias_gelu": lambda: bias_gelu(ROW, BIAS),
    "symmetric_kl": lambda: symmetric_kl_delta(ROW[:8, :5], ROW[8:16, :5], backend="auto"),
    "smart_noise": lambda: smart_noise(TOKEN * 64, 64, RNG, 2),
    "smart_ascend": ascend,
    "gradient_norm": lambda: gradient_norm([ROW] * 100),
    "adamw_ema_": update,
}


def arguments_of_choice(call):
    """The op and the arguments of its choice."""
    seen = []
    choose = Op.choose

    def record(self, *args, **kwargs):
        seen.append((self, args, kwargs))
        return choose(self, *args, **kwargs)

    with mock.patch.object(Op, "choose", record):
        call()
    return seen[0]


class WithContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x.detach()


class WithSetupContext(torch.autograd.Function):
    @staticmethod
    def forward(x, y):
        return x.detach()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


FUNCTIONS = {"Function": WithContext, "Function with setup_context": WithSetupContext}


@pytest.fixture(autouse=True)
def one_table(benchmark):
    benchmark.group = "per call"


@pytest.mark.parametrize("name", CALLS)
def test_choice(benchmark, name):
    op, args, kwargs = arguments_of_choice(CALLS[name])
    assert (op.name, op.choose(*args, **kwargs).backend) == (name, "cpu")
    benchmark(op.choose, *args, **kwargs)


def test_torch_add(benchmark):
    benchmark(torch.add, *torch.randn(2, 8, 5))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(benchmark, name):
    x, y = torch.randn(2, 8, 5)
    benchmark(FUNCTIONS[name].apply, x.requires_grad_(), y)
