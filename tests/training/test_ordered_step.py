"""A captured step whose teacher has a stream of its own, in every order that the streams allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from benchmarks.pretended_gpu import STREAMS, PretendedGpu
from sbrrt_fast.training.step.graph_step import GraphStep
from sbrrt_fast.training.step.head_pass import HeadPass
from tests.training.ordered_graph import OrderedGraph, OrderMatters
from tests.training.steps import CONFIGS, SBRRT, build, state
from tests.training.test_graph_step import assert_same_bits, train
from tests.training.test_streams import side_streams


def ordered(config, device="cpu") -> GraphStep:
    """A step that forks where it is captured, and whose replays are done in every order."""
    step = build(lambda *args: GraphStep(*args, pytest.fail, OrderedGraph), config, device=device)
    if device == "cpu":
        step.streams = side_streams()
    return step


def launched(config) -> GraphStep:
    """The same step on the same filled batches, never captured."""
    step = ordered(config)
    step._ready = lambda *args: None
    return step


WITH_TEACHER = [name for name, config in CONFIGS.items() if config.bregman.weight > 0]


@pytest.mark.parametrize("name", [*WITH_TEACHER, "bf16"])
def test_a_captured_step_is_the_same_in_every_order(name):
    config = replace(SBRRT, precision="bf16") if name == "bf16" else CONFIGS[name]
    ours, theirs = ordered(config), launched(config)
    assert_same_bits(train(ours), train(theirs))
    assert_same_bits(state(ours), state(theirs))
    assert ours.num_replays
    for captured in ours._captured.values():
        main, side = captured.graph.num_calls.values()
        assert main > side > 20  # the teacher's pass


def test_a_step_forks_by_the_names_of_torch_cuda():
    with PretendedGpu() as gpu:
        step = ordered(SBRRT, "cuda")
        found = [{n: gpu.value(x) for n, x in terms.items()} for terms in train(step, 5)]
    assert_same_bits(found, train(launched(SBRRT), 5))
    assert step.num_replays
    assert all(len(one.graph.num_calls) == 2 for one in step._captured.values())


def join_at_the_end(step: GraphStep) -> None:
    """The teacher is joined after the losses."""
    join, differentiate = step.streams.join, step._backward
    step.streams.join = lambda name: None

    def backward(*args) -> None:
        differentiate(*args)
        join("teacher")

    step._backward = backward


def caches_made_in_the_fork(step: GraphStep) -> None:
    """What both passes look at is made on the teacher's stream."""
    teach = step._teach

    def forgetful(heads: HeadPass) -> list[Tensor]:
        heads.__dict__.pop("matrix")
        return teach(heads)

    step._teach = forgetful


def one_workspace(step: GraphStep) -> None:
    """The teacher's pass writes the student's memory."""
    student, momentum = step.student, step.momentum
    momentum.begin = lambda num_rows: setattr(
        momentum, "saved", student.saved[:1] * len(student.saved)
    )


@pytest.mark.parametrize("mistake", [join_at_the_end, caches_made_in_the_fork, one_workspace])
def test_mistakes_in_the_step_are_found(mistake):
    step = ordered(CONFIGS["joint"])
    mistake(step)
    with pytest.raises(OrderMatters):
        train(step)


def never_joined(step: GraphStep) -> None:
    step.streams.join = lambda name: None


def never_waiting(step: GraphStep) -> None:
    step.streams._cuda = Unordered


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
