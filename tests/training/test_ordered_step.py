"""A captured step with side streams, in every order that the streams allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from torch import Tensor

from benchmarks.pretended_gpu import STREAMS, PretendedGpu
from sbrrt_fast.model.packed.encoder import WEIGHTS
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.written_out import TEACHER, WrittenOutPass
from tests.training.ordered_graph import OrderedGraph, OrderMatters
from tests.training.steps import CONFIGS, SBRRT, build, captured, state
from tests.training.test_graph_step import assert_same_bits, train
from tests.training.test_streams import side_streams


def ordered(config, device="cpu") -> CapturedStep:
    """A step that forks where it is captured, and whose replays are done in every order."""
    parts = partial(captured, log=pytest.fail, graph=OrderedGraph)
    step = build(parts, config, device=device)
    if device == "cpu":
        step.passes.streams = step.passes.student.streams = side_streams()
    return step


def launched(config) -> CapturedStep:
    """The same step on the same filled batches, never captured."""
    step = ordered(config)
    step._ready = lambda *args: None
    return step


@pytest.mark.parametrize("name", [*(n for n in CONFIGS if "unfreezing" not in n), "bf16"])
def test_a_captured_step_is_the_same_in_every_order(name):
    config = replace(SBRRT, precision="bf16") if name == "bf16" else CONFIGS[name]
    ours, theirs = ordered(config), launched(config)
    assert_same_bits(train(ours), train(theirs))
    assert_same_bits(state(ours), state(theirs))
    assert ours.num_replays
    for one in ours._captured.values():
        main, *sides = one.graph.num_calls.values()
        assert len(sides) == 1 + (config.bregman.weight > 0)
        least = 4 * (2 - config.optimizer.frozen_layers)
        # The weights' products, the teacher's pass.
        assert all(main > side >= least for side in sides)


def test_a_step_forks_by_the_names_of_torch_cuda():
    with PretendedGpu() as gpu:
        step = ordered(SBRRT, "cuda")
        found = [{n: gpu.value(x) for n, x in terms.items()} for terms in train(step, 5)]
    assert_same_bits(found, train(launched(SBRRT), 5))
    assert step.num_replays
    assert all(len(one.graph.num_calls) == 3 for one in step._captured.values())


def join_at_the_end(name: str) -> Callable[[CapturedStep], None]:
    """A side stream is joined after the round."""

    def mistake(step: CapturedStep) -> None:
        streams, update = step.passes.streams, step.update.run
        join = streams.join
        streams.join = lambda other: None if other == name else join(other)

        def late(*args) -> Tensor:
            result = update(*args)
            join(name)
            return result

        step.update.run = late

    return mistake


def caches_made_in_the_fork(step: CapturedStep) -> None:
    """What both passes look at is made on the teacher's stream."""
    begin = step.passes.begin

    def forgetful(*args) -> WrittenOutPass:
        this = begin(*args)
        teach = this._teacher_outputs
        this._teacher_outputs = lambda: this.heads.__dict__.pop("matrix") is not None and teach()
        return this

    step.passes.begin = forgetful


def one_cotangent(step: CapturedStep) -> None:
    """All layers' backwards write one cotangent, which the weights' products still read."""
    student = step.passes.student
    begin = student.begin

    def shared(*args) -> None:
        begin(*args)
        student.d = student.d[:1] * len(student.d)

    student.begin = shared


def one_workspace(step: CapturedStep) -> None:
    """The teacher's pass writes the student's memory."""
    student, momentum = step.passes.student, step.passes.momentum
    momentum.begin = lambda *sizes: setattr(
        momentum, "saved", student.saved[:1] * len(student.saved)
    )


MISTAKES = {
    "a late teacher": join_at_the_end(TEACHER),
    "late weights": join_at_the_end(WEIGHTS),
    "caches made in the fork": caches_made_in_the_fork,
    "one workspace": one_workspace,
    "one cotangent": one_cotangent,
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_step_are_found(mistake):
    step = ordered(CONFIGS["joint"])
    mistake(step)
    with pytest.raises(OrderMatters):
        train(step)


def never_joined(step: CapturedStep) -> None:
    step.passes.streams.join = lambda name: None


def never_waiting(step: CapturedStep) -> None:
    step.passes.streams._cuda = Unordered


class Unordered:
    """Streams that wait for nothing."""

    class Stream(STREAMS.Stream):
        def wait_stream(self, other) -> None:
            pass

    current_stream, stream = STREAMS.current_stream, STREAMS.stream
    is_current_stream_capturing = STREAMS.is_current_stream_capturing


@pytest.mark.parametrize(
    ("mistake", "message"),
    [(never_joined, "not joined"), (never_waiting, "waits for no captured work")],
)
def test_a_join_or_a_wait_that_a_step_leaves_out_is_refused(mistake, message):
    step = ordered(CONFIGS["joint"])
    mistake(step)
    with pytest.raises(pytest.fail.Exception, match=message):
        train(step)
