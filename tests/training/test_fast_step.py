"""The written-out step against the step under autograd, of which it is the fast form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sbrrt_fast import _extension
from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training.build import build_step
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.step.written_out_pass import layout_why_not
from tests.model.models import TASKS, random_batch
from tests.training.steps import (
    CONFIGS,
    SBRRT,
    autograd,
    build,
    differentiated,
    is_written_out,
    losses,
    make_round,
    smart,
    written_out,
)


def reference(config=SBRRT, **kwargs) -> Step:
    return build(autograd, replace(config, backend="reference"), **kwargs)


def assert_same_weights(ours: Step, theirs: Step, atol: float) -> None:
    expected = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert torch.allclose(parameter, expected[name], rtol=0, atol=atol), name
    if ours.teacher is not None:
        averages = theirs.teacher.state_dict()
        for name, average in ours.teacher.state_dict().items():
            assert torch.allclose(average, averages[name], rtol=0, atol=atol), name


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        *((name, "mean") for name in CONFIGS),
        *(("masks of their own", pooling) for pooling in ("cls", "cls_token")),
        *(("finite", pooling) for pooling in ("cls", "cls_token")),
    ],
)
def test_gradients_equal_the_reference_s(name, pooling):
    config = CONFIGS[name]
    ours, theirs = build(written_out, config, pooling=pooling), reference(config, pooling=pooling)
    rng = torch.tensor([3, 1])
    for batch in make_round():
        found, expected = ours.gradients(batch, rng), theirs.gradients(batch, rng)
        assert found.keys() == expected.keys()
        largest = max((g.norm() for g in expected.values()), default=0.0)  # none trains yet
        for parameter, gradient in expected.items():
            if gradient.norm() > 1e-5 * largest:  # below it is rounding, as for key biases
                distance = (found[parameter] - gradient).norm() / gradient.norm()
                assert distance < 1e-4, (batch.name, parameter)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        *((name, pooling) for name in CONFIGS for pooling in ("mean", "cls")),
        *((name, "cls_token") for name in ("per task", "joint")),
    ],
)
def test_rounds_equal_the_reference_s(name, pooling):
    config = CONFIGS[name]
    ours, theirs = build(written_out, config, pooling=pooling), reference(config, pooling=pooling)
    for index in range(3):
        batches = make_round(index)
        found = ours.round(batches, index, report=index == 2)
        expected = theirs.round(batches, index, report=index == 2)
        assert found.keys() == expected.keys()
        for term, value in expected.items():
            # D_Breg compares nearly equal outputs in the first rounds.
            floor = 1e-7 if term.endswith("bregman") else 1e-12
            close = torch.allclose(found[term].double(), value.double(), rtol=2e-3, atol=floor)
            assert close, (index, term, found[term], value)
    # A weight whose true gradient is zero moves by Adam's step in a random direction.
    assert_same_weights(ours, theirs, atol=9 * 2.1 * config.optimizer.learning_rate)
    assert_distance(ours, theirs, 0.02)


def assert_distance(ours: Step, theirs: Step, bound: float) -> None:
    """Of all weights that a gradient reaches, relative to how far they moved."""
    start = dict(build(autograd, ours.config, pooling=ours.model.encoder.pooling)
                 .model.named_parameters())  # fmt: skip
    expected = dict(theirs.model.named_parameters())
    apart = moved = 0.0
    for name, parameter in ours.model.named_parameters():
        if not name.endswith("key.bias"):
            apart += (parameter - expected[name]).square().sum().item()
            moved += (expected[name] - start[name]).square().sum().item()
    assert apart**0.5 < bound * moved**0.5


def test_a_frozen_encoder_does_not_move_and_its_head_does():
    step = build(written_out, frozen=True)
    theirs = reference(frozen=True)
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    batches = [batch for batch in make_round() if batch.name != "sts"]
    step.round(batches, 0)
    theirs.round(batches, 0)
    for name, parameter in step.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("encoder."), name
    assert_same_weights(step, theirs, atol=1e-6)


def test_repeats_and_threads_give_the_same_bits():
    config, runs = replace(SBRRT, precision="bf16"), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            step = build(written_out, config)
            terms = [step.round(make_round(index), index, report=True) for index in range(2)]
            runs.append((terms, step.model.state_dict()))
    finally:
        torch.set_num_threads(1)
    for terms, state in runs[1:]:
        for ours, first in zip(terms, runs[0][0], strict=True):
            assert all(torch.equal(value, first[name]) for name, value in ours.items())
        assert all(torch.equal(value, runs[0][1][name]) for name, value in state.items())


def test_the_round_does_not_depend_on_what_the_workspace_held():
    step, fresh = build(written_out), build(written_out)
    rng = torch.tensor([0, 5])
    big = TaskBatch("sst", random_batch([40, 33, 2]), torch.tensor([0.0, 1.0, 2.0]))
    step.gradients(big, rng)
    for batch in make_round():
        found, expected = step.gradients(batch, rng), fresh.gradients(batch, rng)
        assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_weight_copies_follow_the_weights():
    config = replace(SBRRT, precision="bf16")
    step = build(written_out, config)
    for index in range(2):
        step.round(make_round(index), index)
    for module, encoder in (
        (step.model, step.passes.student),
        (step.teacher.module, step.passes.momentum),
    ):
        for parameter in module.encoder.encoder.parameters():
            copy = encoder.weights.copies.get(id(parameter))
            assert copy is None or torch.equal(copy, parameter.to(torch.bfloat16))
    assert (
        len(step.passes.student.weights.copies) == 2 * 9
    )  # query, key, value with bias, and 3 matrices
    other = build(written_out, config)
    other.model.load_state_dict(step.model.state_dict())
    other.teacher.load_state_dict(step.teacher.state_dict())
    batch, rng = make_round()[0], torch.tensor([0, 9])
    found, expected = other.gradients(batch, rng), step.gradients(batch, rng)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_bf16_gradients_are_near_the_exact_ones():
    ours, exact = (
        build(written_out, replace(SBRRT, precision="bf16")),
        reference(dtype=torch.float64),
    )
    rng = torch.tensor([3, 1])
    for batch in make_round():
        found, expected = ours.gradients(batch, rng), exact.gradients(batch, rng)
        pairs = [(found[name].double().flatten(), g.flatten()) for name, g in expected.items()]
        a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999, batch.name


def test_a_radius_below_the_precision_is_linearised():
    config = replace(smart(preset="paper", radius=None), precision="bf16")
    ours, exact = build(written_out, config), reference(config, dtype=torch.float64)
    exact.passes.config = replace(exact.config, precision="fp32")
    rng = torch.tensor([3, 1])
    for batch in make_round():
        found = differentiated(ours, batch, rng)["smart"].double()
        value = losses(exact, batch, rng)["smart"].detach()
        assert value < 1e-6
        assert torch.allclose(found, value, rtol=1e-2), batch.name


def test_the_gradient_of_a_linearised_r_s_is_that_of_a_scaled_one():
    task = replace(TASKS["para"], weight=1.0)
    fields = {"preset": "paper", "radius": None, "weight": 1e8}
    config = replace(smart(**fields), bregman=BregmanConfig(), tasks=TASKS | {"para": task})
    batch, rng = make_round()[1], torch.tensor([3, 1])
    ours = build(written_out, replace(config, smart=replace(config.smart, branch="linear")))
    exact = reference(config, dtype=torch.float64)
    found, expected = ours.gradients(batch, rng), exact.gradients(batch, rng)
    pairs = [(found[name].double().flatten(), g.flatten()) for name, g in expected.items()]
    a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert torch.allclose(a.norm(), b.norm(), rtol=0.05)


def test_differences_below_the_precision_are_refused():
    config = replace(smart(gradient="finite", sigma=1e-5), precision="bf16")
    with pytest.raises(ConfigError, match="rounding noise"):
        build(written_out, config)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backend": "reference"}, "asked for"),
        ({"layout": "padded"}, "padding"),
        ({"backend": "cuda"}, "has no written-out passes on cpu"),
    ],
)
def test_the_step_under_autograd_runs_where_the_other_cannot(fields, reason):
    config = replace(SBRRT, **fields)
    assert reason in layout_why_not(config, torch.device("cpu"))
    assert layout_why_not(SBRRT, torch.device("cpu")) is None


def test_what_cannot_be_fast_is_told(monkeypatch):
    lines: list[str] = []
    step = build(lambda *args: build_step(*args, lines.append))
    assert is_written_out(step)
    assert lines == []
    monkeypatch.setattr(_extension, "extension_error", "the C++ ops are not built")
    step = build(lambda *args: build_step(*args, lines.append))
    assert not is_written_out(step)
    assert lines == ["the step runs under autograd, which is slower: the C++ ops are not built"]


@pytest.mark.parametrize("has_products", [True, False])
def test_bf16_that_saves_no_time_is_told(monkeypatch, has_products):
    stand_in = SimpleNamespace(has_bfloat16_products=lambda: has_products)
    monkeypatch.setattr(_extension, "extension", stand_in)
    lines: list[str] = []
    low = replace(SBRRT, precision="bf16")
    step = build(lambda *args: build_step(*args, lines.append), low)
    assert step.config.precision == "bf16"
    assert [("--precision fp32" in line) for line in lines] == [True] * (not has_products)
