"""The step under autograd against a plain loop over the papers' formulas, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.config import ModelConfig, SmartConfig
from sbrrt_fast.smart.presets import PRESETS, resolve
from tests.model.models import TASKS
from tests.training.plain_round import PlainModel, plain_losses
from tests.training.steps import SBRRT, autograd, build, losses, make_round

# Large enough that a difference of two forwards has ten digits in float64.
SMART = {
    **{preset: SmartConfig(weight=1.0, preset=preset) for preset in PRESETS},
    "paper": SmartConfig(weight=1e6, preset="paper", sigma=1e-3, radius=1e-3),
    "three steps": SmartConfig(weight=1.0, num_steps=3, step_size=0.02, projection="ball"),
    "2-norm of sequences": SmartConfig(weight=1.0, norm="2", level="sequence"),
    "2-norm, ball": SmartConfig(weight=1.0, preset="mtdnn", norm="2", projection="ball"),
    "none": SmartConfig(),
}
NO_DROPOUT = ModelConfig(hidden_dropout=0.0, attention_dropout=0.0)


def step_of(smart: SmartConfig, pooling: str):
    """A step whose teacher has parted from its student."""
    config = replace(SBRRT, backend="reference", smart=smart, model=NO_DROPOUT)
    step = build(autograd, config, torch.float64, pooling)
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for module in (step.model, step.teacher.module):
        module.encoder.set_config(replace(module.encoder.config, **without))
    torch.manual_seed(1)
    with torch.no_grad():
        for average in step.teacher.module.parameters():
            average.add_(0.02 * torch.randn_like(average))
    return step


@pytest.mark.parametrize("pooling", ["mean", "cls", "cls_token"])
@pytest.mark.parametrize("name", SMART)
@pytest.mark.parametrize("task", TASKS)
def test_losses_and_gradients_are_the_papers(task, name, pooling):
    step, rng = step_of(SMART[name], pooling), torch.tensor([3, 1])
    batch = next(b for b in make_round() if b.name == task)
    ours = losses(step, batch, rng)
    found = torch.autograd.grad(ours["total"], list(step.model.parameters()), allow_unused=True)

    (group,) = step.passes.groups([batch])
    this = step.passes.begin(group, rng)
    this.clean(None)
    noise, tokens = this.noise(0xFFF1), batch.tokens.padded()
    pad = batch.tokens.pad
    parts = [PlainModel(m, task, tokens) for m in (step.model, step.teacher.module)]
    smart = resolve(step.config.smart)
    may_move = tokens.key_mask
    if not smart.perturb_special:
        may_move = may_move & ~tokens.is_special.view(may_move.shape)
    theirs = plain_losses(
        *parts, batch.labels.double(), pad(noise), may_move, smart, step.config.bregman.weight
    )
    expected = torch.autograd.grad(
        theirs["total"], list(step.model.parameters()), allow_unused=True
    )

    assert ours.keys() == theirs.keys()
    for term, value in theirs.items():
        assert torch.allclose(ours[term], value, rtol=1e-7), term
    largest = max(g.norm() for g in expected if g is not None)
    for (parameter, _), a, b in zip(step.model.named_parameters(), found, expected, strict=True):
        assert (a is None) == (b is None), parameter
        if b is not None and b.norm() > 1e-8 * largest:  # below it is rounding, as for key biases
            assert (a - b).norm() < 1e-6 * b.norm(), parameter
