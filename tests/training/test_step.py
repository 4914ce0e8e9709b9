"""One round: what is summed, what is updated, and that both layouts and precisions agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.smart.presets import PRESETS
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.step import Step
from tests.model.models import TASKS, random_model
from tests.training import steps
from tests.training.steps import PLAIN, SBRRT, autograd, losses, make_round


def padded(batches):
    return [replace(batch, tokens=batch.tokens.padded()) for batch in batches]


def build(config=SBRRT, dtype=torch.float64) -> Step:
    return steps.build(autograd, config, dtype)


def weights(step: Step) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in step.model.parameters()])


@pytest.mark.parametrize("update", ["per_task", "joint"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_packed_and_padded_rounds_are_the_same(update, preset):
    config = replace(
        SBRRT,
        round=replace(SBRRT.round, update=update),
        smart=SmartConfig(weight=2.0, preset=preset),
    )
    batches, runs = make_round(), []
    for layout in (batches, padded(batches)):
        step = build(config)
        runs.append(([step.round(layout, index, report=True) for index in range(2)], step))
    for packed_terms, padded_terms in zip(runs[0][0], runs[1][0], strict=True):
        assert packed_terms.keys() == padded_terms.keys()
        for name, value in packed_terms.items():
            assert torch.allclose(value, padded_terms[name], rtol=1e-8), name
    assert torch.allclose(weights(runs[0][1]), weights(runs[1][1]), rtol=1e-6, atol=1e-8)


def test_the_total_is_the_weighted_sum_of_its_terms():
    tasks = TASKS | {"sts": replace(TASKS["sts"], weight=0.25)}
    step = build(replace(SBRRT, tasks=tasks))
    step.model.tasks["sts"] = tasks["sts"]
    for batch in make_round():
        terms = losses(step, batch, torch.tensor([0, 0]))
        expected = terms["loss"] + 1.0 * terms["smart"] + 0.8 * terms["bregman"]
        expected = tasks[batch.name].weight * expected
        assert torch.allclose(terms["total"], expected, rtol=1e-12)
        assert terms["smart"] > 0
        assert terms["bregman"] == 0  # the teacher starts as the student, with the same masks


def test_the_teacher_lags_behind():
    step = build()
    for index in range(3):
        terms = step.round(make_round(), index)
    assert all(terms[f"{name}/bregman"] > 0 for name in TASKS)
    student, teacher = (
        weights(step),
        torch.cat([t.flatten() for t in step.teacher.state_dict().values()]),
    )
    start = weights(build())
    assert 0 < (teacher - start).norm() < (student - start).norm()


def test_unshared_masks_make_the_divergence_measure_dropout():
    batch, rng = make_round()[0], torch.tensor([0, 0])
    paper = SmartConfig(weight=1.0, preset="paper", branch="forward")
    shared = losses(build(replace(SBRRT, smart=paper)), batch, rng)
    fresh = losses(build(replace(SBRRT, smart=replace(paper, shared_dropout=False))), batch, rng)
    assert shared["smart"] < 1e-6 < 1e-4 < fresh["smart"]
    assert shared["bregman"] == 0 < fresh["bregman"]


def test_joint_takes_one_step_on_the_round_s_summed_loss():
    config = replace(PLAIN, round=replace(PLAIN.round, update="joint"))
    step, batches = build(config), make_round()
    step.round(batches, 0)
    other = build(config)
    rng = torch.tensor([config.seed, 0])
    total = sum(losses(other, batch, rng)["total"] for batch in batches)
    total.backward()
    other._update([], 1)
    assert torch.allclose(weights(step), weights(other), rtol=1e-9, atol=1e-12)
    assert step.num_steps == 10
    assert build(PLAIN).num_steps == 30


def test_per_task_takes_the_steps_in_order():
    step, batches = build(PLAIN), make_round()
    step.round(batches, 0)
    other = build(PLAIN)
    rng = torch.tensor([PLAIN.seed, 0])
    for number, batch in enumerate(batches, 1):
        losses(other, batch, rng)["total"].backward()
        other._update([], number)
    assert torch.equal(weights(step), weights(other))


def test_a_frozen_encoder_does_not_move_and_its_head_does():
    config = replace(SBRRT, mode="pretrain")
    model = random_model()
    model.freeze_encoder()
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    step = autograd(model, Teacher(model, config.bregman), optimizer, config, 10)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step.round([batch for batch in make_round() if batch.name != "sts"], 0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("encoder."), name


@pytest.mark.parametrize("task", list(TASKS))
def test_bf16_losses_are_near_float64_ones(task):
    batch = next(b for b in make_round() if b.name == task)
    rng = torch.tensor([0, 0])
    exact = losses(build(), batch, rng)
    half = losses(build(replace(SBRRT, precision="bf16"), torch.float32), batch, rng)
    assert abs(half["loss"] / exact["loss"] - 1) < 0.05
    assert abs(half["smart"] / exact["smart"] - 1) < 0.25


def test_gradients_of_the_round_against_numerical_ones():
    """The whole loss, R_s and Bregman included, along a random direction of the weights."""
    batch, rng = make_round()[1], torch.tensor([0, 1])
    step = build(replace(SBRRT, smart=SmartConfig(weight=1.0, preset="mtdnn", sigma=1.0)))
    step.round(make_round(), 0)  # so that the teacher differs from the student
    parameters = list(step.model.parameters())
    found = torch.autograd.grad(losses(step, batch, rng)["total"], parameters, allow_unused=True)
    direction = [torch.randn_like(p) * 1e-6 for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True) if g is not None)
    values = []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(sign * d)
        values.append(losses(step, batch, rng)["total"].item())
    # the perturbation itself depends on the weights only through eta g, which sigma dwarfs
    assert abs((values[0] - values[1]) / 2 / slope.item() - 1) < 1e-2
