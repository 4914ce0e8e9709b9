"""AdamW groups, learning-rate schedule and clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sbrrt_fast.config import OptimizerConfig
from sbrrt_fast.training.step.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    set_learning_rate,
)


class TwoPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
        self.heads = nn.ModuleDict({"a": nn.Linear(7, 1)})


def names_by_group(model, optimizer):
    name_of = {id(p): name for name, p in model.named_parameters()}
    return {g["name"]: {name_of[id(p)] for p in g["params"]} for g in optimizer.param_groups}


def test_groups_separate_decay_and_heads():
    model = TwoPart()
    config = OptimizerConfig(learning_rate=1e-4, head_learning_rate=1e-3, weight_decay=0.03)
    optimizer = build_optimizer(model.named_parameters(), config)
    assert names_by_group(model, optimizer) == {
        "encoder.decay": {"encoder.0.weight"},
        "encoder.no_decay": {"encoder.0.bias", "encoder.1.weight", "encoder.1.bias"},
        "heads.decay": {"heads.a.weight"},
        "heads.no_decay": {"heads.a.bias"},
    }
    settings = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert settings["encoder.decay"] == (1e-4, 0.03)
    assert settings["encoder.no_decay"] == (1e-4, 0.0)
    assert settings["heads.decay"] == (1e-3, 0.03)
    assert settings["heads.no_decay"] == (1e-3, 0.0)


def test_heads_follow_the_encoder_without_a_rate_of_their_own():
    optimizer = build_optimizer(TwoPart().named_parameters(), OptimizerConfig(learning_rate=2e-5))
    assert {g["lr"] for g in optimizer.param_groups} == {2e-5}


def test_frozen_parameters_are_left_out():
    model = TwoPart()
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
    assert set(names_by_group(model, optimizer)) == {"heads.decay", "heads.no_decay"}


def test_one_step_is_adamw_with_decoupled_decay():
    model = TwoPart()
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(model.named_parameters(), config)
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.full_like(p, -2.0)
    optimizer.step()
    for name, p in model.named_parameters():
        decay = 0.1 if p.ndim == 2 else 0.0
        expected = before[name] * (1 - 1e-2 * decay) + 1e-2 * 2.0 / (2.0 + config.eps)
        torch.testing.assert_close(p.detach().double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [
        ("linear", 1, 0.1),
        ("linear", 5, 0.5),
        ("linear", 10, 1.0),
        ("linear", 11, 1.0),
        ("linear", 56, 0.5),
        ("linear", 100, 1 / 90),
        ("cosine", 10, 1.0),
        ("cosine", 41, 0.75),
        ("cosine", 56, 0.5),
        ("cosine", 100, 0.5 * (1 - math.cos(math.pi / 90))),
        ("constant", 3, 0.3),
        ("constant", 100, 1.0),
    ],
)
def test_schedule_values(decay, step, expected):
    config = OptimizerConfig(warmup=0.1, decay=decay)
    assert learning_rate_factor(step, 100, config) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0.0, 7), (0.1, 1), (0.1, 30), (0.37, 13), (1.0, 9)])
def test_no_step_is_wasted_and_the_peak_is_reached(decay, warmup, total):
    config = OptimizerConfig(warmup=warmup, decay=decay)
    factors = [learning_rate_factor(step, total, config) for step in range(1, total + 1)]
    assert min(factors) > 0
    assert max(factors) == 1.0
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("step", [0, 11])
def test_steps_are_counted_from_one_to_the_total(step):
    with pytest.raises(AssertionError, match=r"not in 1\.\.10"):
        learning_rate_factor(step, 10, OptimizerConfig())


@pytest.mark.parametrize("as_tensor", [False, True])
def test_set_learning_rate_scales_each_groups_peak(as_tensor):
    config = OptimizerConfig(learning_rate=1e-4, head_learning_rate=1e-3)
    optimizer = build_optimizer(TwoPart().named_parameters(), config)
    if as_tensor:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in (56, 5):
        set_learning_rate(optimizer, step, 100, config)
        for group in optimizer.param_groups:
            peak = 1e-3 if group["name"].startswith("heads") else 1e-4
            assert float(group["lr"]) == pytest.approx(0.5 * peak)
    assert not as_tensor or all(
        group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True)
    )


@pytest.mark.parametrize(("max_norm", "scale"), [(1.0, 1 / 13), (20.0, 1.0), (0.0, 1.0)])
def test_clipping_returns_the_norm_before(max_norm, scale):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    for p, value in zip(parameters, (3.0, -4.0, 12.0), strict=False):
        p.grad = torch.tensor([value])
    norm = clip_gradients(iter(parameters), max_norm)
    assert norm.shape == () and norm.item() == pytest.approx(13.0)
    clipped = [p.grad.item() for p in parameters[:3]]
    assert clipped == pytest.approx([3.0 * scale, -4.0 * scale, 12.0 * scale], rel=1e-6)
    assert parameters[3].grad is None
