"""An update whose gradients are not finite is never made, and the device decides it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sbrrt_fast.training.checkpoint import optimizer_tensors
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.step.update_counts import UpdateCounts
from tests.training.steps import JOINT, SBRRT, autograd, build, captured, state, written_out
from tests.training.test_graph_step import make_round

NUM_ROUNDS = 10
BAD = {(1, "para"), (6, "sts"), (7, "para"), (7, "sts")}  # round, task; captured from 4 on


def graph_step(*args) -> CapturedStep:
    return captured(*args, log=lambda line: None)


def reference_step(model, teacher, optimizer, config, num_rounds) -> Step:
    return autograd(model, teacher, optimizer, replace(config, backend="reference"), num_rounds)


STEPS = {"reference": reference_step, "written out": written_out, "captured": graph_step}


def is_bad(index: int, name: str) -> bool:
    return (index, name) in BAD


def spoilt(batch, index: int):
    """The batch with an infinite label where it is to be left out."""
    bad = is_bad(index, batch.name)
    return replace(batch, labels=torch.full_like(batch.labels, math.inf)) if bad else batch


def train(step, is_joint: bool, omits: bool):
    """Some rounds in which some updates have infinite gradients, or are not made at all."""
    for index in range(NUM_ROUNDS):
        batches = make_round(index)
        groups = [batches] if is_joint else [[batch] for batch in batches]
        for position, group in enumerate(groups):
            if omits and any(is_bad(index, batch.name) for batch in group):
                continue
            group = [spoilt(batch, index) for batch in group]
            step.train(group, index, index * len(groups) + position + 1, False)
    return step


@pytest.mark.parametrize("config", [SBRRT, JOINT, replace(SBRRT, precision="bf16")])
@pytest.mark.parametrize("kind", STEPS)
def test_an_update_that_is_left_out_was_never_made(kind, config):
    """The same bits of weights, moments, numbers of updates and teacher."""
    is_joint = config.round.update == "joint"
    ours, never = (
        train(build(STEPS[kind], config), is_joint, omits=omits) for omits in (False, True)
    )
    assert ours.update.take_num_skipped() == (3 if is_joint else 4)
    assert ours.update.take_num_skipped() == never.update.take_num_skipped() == 0
    found, expected = state(ours), state(never)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert torch.isfinite(value).all(), name
    if kind == "captured":
        assert ours.num_replays > NUM_ROUNDS / 4


@pytest.mark.parametrize("kind", ["written out", "captured"])
def test_the_optimiser_has_the_numbers_of_updates_made_at_any_time(kind):
    """And saving them changes nothing."""
    saved, untouched = build(STEPS[kind]), build(STEPS[kind])
    for index in range(NUM_ROUNDS):
        for step in (saved, untouched):
            step.round([spoilt(batch, index) for batch in make_round(index)], index)
        numbers = numbers_of_updates(saved)
        left_out = [sum(is_bad(i, name) for i in range(index + 1)) for name in ("para", "sts")]
        assert numbers["heads.sst.classifier.bias"] == index + 1
        assert numbers["heads.para.classifier.bias"] == index + 1 - left_out[0]
        assert max(numbers.values()) == 3 * (index + 1) - sum(left_out)
    found, expected = state(saved), state(untouched)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def numbers_of_updates(step) -> dict[str, int]:
    """By name of the parameter."""
    tensors = optimizer_tensors(step.optimizer, step.model.named_parameters())
    begin, end = "optimizer.", ".step"
    found = {n: int(x) for n, x in tensors.items() if n.endswith(end)}
    return {name.removeprefix(begin).removesuffix(end): x for name, x in found.items()}


@pytest.mark.parametrize("kind", ["written out", "captured"])
def test_numbers_of_updates_that_are_loaded_go_on(kind):
    """From the optimiser's own state, the first of which says how often it was updated."""
    step = build(STEPS[kind])
    for index in range(3):
        step.round([spoilt(batch, index) for batch in make_round(index)], index)
    loaded = copy.deepcopy(step.optimizer.state_dict())
    before = numbers_of_updates(step)
    loaded["state"][0]["step"] += 40
    step.optimizer.load_state_dict(loaded)
    after = numbers_of_updates(step)
    name = next(n for n, count in after.items() if count == before[n] + 40)
    for index in range(3, 6):
        step.round(make_round(index), index)
    added = {n: count - before[n] for n, count in numbers_of_updates(step).items()}
    assert added.pop(name) in (43, 49)  # of a head or of what all tasks share
    assert set(added.values()) == {3, 9}


def test_numbers_of_updates_are_counted_where_they_are_made():
    counts, made = UpdateCounts(3, torch.device("cpu")), [0, 0, 0]
    updates = [((0, 1), True), ((0, 1), False), ((1, 2), True), ((0, 2), False), ((1,), True)]
    for indices, is_left_out in updates:
        counts.send()
        counts.add(counts.ones_of(indices), torch.tensor(0.0 if is_left_out else 1.0))
        for i in indices:
            made[i] += not is_left_out
        assert counts.of_parameters.tolist() == [view.item() for view in counts.views] == made
    assert made == [2, 1, 1]
    assert counts.take_num_skipped() == 3
    assert counts.take_num_skipped() == 0


class NeverWaits(TorchDispatchMode):
    """Raises where the host would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name != "aten::_local_scalar_dense", "the host waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["reference", "written out"])
def test_the_host_does_not_wait_for_the_decision(kind):
    step, interval = build(STEPS[kind]), IntervalMeans()
    step.round(make_round(0), 0)
    for index in (1, 6):
        groups = step.passes.groups([spoilt(b, index) for b in make_round(index)])
        terms = step.differentiate([groups], torch.tensor([0, index]))
        with NeverWaits():
            norm = step._update(groups, index + 1)
            interval.add(terms | {"gradient_norm": norm})
        assert not norm.isfinite()
    assert step.update.take_num_skipped() == 2
