"""A captured step whose weights or optimiser are replaced from outside, or that cannot be captured.

On a GPU with CUDA graphs, as ``test_graph_step.py``.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.cuda_graph import error_chain
from tests.training.steps import JOINT, SBRRT, build, state, written_out
from tests.training.test_graph_step import (
    DEVICE,
    GRAPH,
    IS_GPU,
    NUM_ROUNDS,
    Never,
    assert_same_bits,
    captured,
    launched,
    train,
)


def replaced_in_place(step: CapturedStep) -> None:
    """As loading a checkpoint does."""
    with torch.no_grad():
        step.model.load_state_dict({n: 0.9 * x for n, x in step.model.state_dict().items()})
        step.teacher.load_state_dict({n: 1.1 * x for n, x in step.teacher.state_dict().items()})


def replaced_memory(step: CapturedStep) -> None:
    """What stays behind is written over, as its memory may be."""
    for p in [*step.model.parameters(), *step.teacher.module.parameters()]:
        old, p.data = p.data, 0.9 * p.data
        old.fill_(float("nan"))


def replaced_optimizer(step: CapturedStep) -> None:
    state = copy.deepcopy(step.optimizer.state_dict())
    for group in state["param_groups"]:
        group["weight_decay"] = 0.3
    for moments in state["state"].values():
        moments["exp_avg"] *= 0.5
    step.optimizer.load_state_dict(state)


def replaced_moments(step: CapturedStep) -> None:
    for moments in step.optimizer.state.values():
        moments["exp_avg_sq"] = 2 * moments["exp_avg_sq"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "change", [replaced_in_place, replaced_memory, replaced_optimizer, replaced_moments]
)
def test_what_was_replaced_from_outside_is_seen(change, precision):
    """By a replay or a new capture: the bits are those of a step that never captures."""
    config = replace(JOINT, precision=precision)
    ours, theirs, alone = captured(config), launched(config), launched(config)
    assert_same_bits(train(ours), train(theirs))
    train(alone)
    num_replays = ours.num_replays
    for step in (ours, theirs):
        change(step)
    assert_same_bits(train(ours), train(theirs))
    assert_same_bits(state(ours), state(theirs))
    assert ours.num_replays > num_replays + NUM_ROUNDS / 4  # and it is captured again
    train(alone)
    assert any(not torch.equal(x, state(alone)[name]) for name, x in state(ours).items())


@pytest.mark.parametrize("kind", [captured, launched])
def test_an_optimiser_that_has_loaded_its_own_state_goes_on(kind):
    """It has other groups then, which the schedule of the learning rate reaches."""
    ours, theirs = kind(JOINT), launched(JOINT)
    for step in (ours, theirs):
        train(step, 5)
    ours.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
    assert_same_bits(train(ours, 5, first=5), train(theirs, 5, first=5))
    assert_same_bits(state(ours), state(theirs))


def test_where_capturing_fails_it_is_told_once_and_nothing_is_lost():
    lines: list[str] = []
    ours = captured(SBRRT, Never, lines)
    theirs = build(written_out, SBRRT, device=DEVICE)
    found, expected = train(ours), train(theirs)
    (line,) = lines
    assert "launch by launch, which is slower: capture failed (operation not permitted; " in line
    assert "; then capture was invalidated)" in line and "--resume --no-graphs" in line
    assert ours.num_replays == 0
    for ours_, theirs_ in zip(found, expected, strict=True):
        assert torch.allclose(ours_["sst/loss"], theirs_["sst/loss"], rtol=1e-3)


def check_broken_capture() -> None:
    """An op in the middle of the step waits for the device: its reason is told, and it goes on."""
    lines: list[str] = []
    step = captured(JOINT, GRAPH, lines)
    begin = step.passes.begin

    def waiting(group, rng):
        group.tokens.input_ids.sum().item()
        return begin(group, rng)

    step.passes.begin = waiting
    assert all(terms["sst/loss"].isfinite() for terms in train(step))
    assert len(lines) == 1 and step.num_replays == 0
    reason = "not permitted when stream is capturing" if IS_GPU else "makes the host wait"
    assert reason in lines[0], lines


def test_a_capture_that_is_broken_off_tells_what_broke_it():
    """In a process of its own, as on a GPU the allocator keeps traces of it."""
    code = f"from {__name__} import check_broken_capture; check_broken_capture()"
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_a_chain_of_errors_is_told_from_its_first():
    def fail() -> None:
        try:
            raise ValueError("first\nmore of it")
        except ValueError as error:
            raise RuntimeError from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert error_chain(caught.value) == "first; then RuntimeError"
    assert error_chain(OSError("alone")) == "alone"
