"""An update whose gradients are not finite is never made, and the device decides it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
    for step in (ours, never):
        step.update.settle()
    found, expected = state(ours), state(never)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert torch.isfinite(value).all(), name
    if kind == "captured":
        assert ours.num_replays > NUM_ROUNDS / 4


@pytest.mark.parametrize("kind", ["written out", "captured"])
def test_settling_in_between_changes_nothing(kind):
    """The host hears of what was left out at any time, or never."""
    told, untold = build(STEPS[kind]), build(STEPS[kind])
    for index in range(NUM_ROUNDS):
        for step in (told, untold):
            step.round([spoilt(batch, index) for batch in make_round(index)], index)
        told.update.settle()
    untold.update.settle()
    found, expected = state(told), state(untold)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    numbers = {name: int(x) for name, x in found.items() if name.endswith(".step")}
    assert numbers["optimizer.heads.sst.classifier.bias.step"] == NUM_ROUNDS
    assert numbers["optimizer.heads.para.classifier.bias.step"] == NUM_ROUNDS - 2
    assert max(numbers.values()) == 3 * NUM_ROUNDS - len(BAD)


def test_parameters_that_part_later_keep_what_they_shared():
    """An update is left out before another one tells its parameters apart."""
    counts, made = UpdateCounts(3, torch.device("cpu")), [0, 0, 0]
    updates = [((0, 1), True), ((0, 1), False), ((1, 2), True), ((0, 2), False), ((1,), True)]
    for places, is_left_out in updates:
        counts.split_histories(places)
        counts.sent[list(places)] += 1
        for i in places:
            number = counts.number(torch.tensor(float(counts.sent[i])), int(counts.histories[i]))
            assert number == made[i] + 1
            made[i] += not is_left_out
        counts.skip(torch.tensor(is_left_out), {int(counts.histories[i]) for i in places})
    counts.settle()
    assert counts.sent.tolist() == made == [2, 1, 1]


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
        terms = step.differentiate(groups, torch.tensor([0, index]))
        with NeverWaits():
            norm = step._update(groups, index + 1)
            interval.add(terms | {"gradient_norm": norm})
        assert not norm.isfinite()
    assert step.update.take_num_skipped() == 2
