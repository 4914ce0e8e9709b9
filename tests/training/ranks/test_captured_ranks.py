"""The captured step on ranks: sums on a stream of their own, one shape for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.pretended_gpu import STREAMS
from sbrrt_fast.training.ranks.ranks import OneRank
from sbrrt_fast.training.shares import RoundShares
from sbrrt_fast.training.step import gradient_sums
from sbrrt_fast.training.step.captured_step import CapturedStep
from tests.training.ordered_graph import OrderedGraph, OrderMatters
from tests.training.ranks.test_shares import NUM_EXAMPLES, TASK_ROWS, UPDATES, assert_same
from tests.training.ranks.threads import ThreadRanks
from tests.training.steps import CONFIGS, JOINT, SBRRT, build, captured, state
from tests.training.test_graph_step import assert_same_bits
from tests.training.test_streams import side_streams

NUM_ROUNDS = 6


class AlikeRanks:
    """One of three ranks whose others have its own gradients.

    As NCCL does, a sum runs on a stream of its own, after what the stream had been given that began
    it, and its wait makes the stream at hand wait.
    """

    def __init__(self, rank: int = 0):
        self.rank, self.size, self.is_first = rank, 3, rank == 0
        self.stream, self.sums = STREAMS.Stream(), []

    def start_sum(self, x: Tensor) -> Callable[[], None]:
        assert x.is_contiguous()
        self.sums.append(x)
        if not STREAMS.is_current_stream_capturing():
            x.mul_(self.size)
            return lambda: None
        self.stream.wait_stream(STREAMS.current)
        with STREAMS.stream(self.stream):
            x.mul_(self.size)
        return lambda: STREAMS.current.wait_stream(self.stream)

    def sum(self, x: Tensor) -> Tensor:
        self.start_sum(x)()
        return x


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """A message for every layer of the small model."""
    monkeypatch.setattr(gradient_sums, "BUCKET_BYTES", 1)


def batches_of(index: int):
    """The same examples in every order, so that sizes come often."""
    examples = np.arange(index % 2, 8 + index % 2)
    return [(name, np.random.default_rng(index).permutation(examples)) for name in TASK_ROWS]


def on_rank(config, ranks) -> CapturedStep:
    parts = partial(captured, log=pytest.fail, graph=OrderedGraph)
    step = build(lambda *others: parts(*others, ranks), config)
    step.passes.streams = step.passes.student.streams = side_streams()
    return step


def launched(config, ranks) -> CapturedStep:
    step = on_rank(config, ranks)
    step._ready = lambda *args: None
    return step


def train(step: CapturedStep, config, ranks, num_rounds: int = NUM_ROUNDS) -> list[dict]:
    shares = RoundShares(TASK_ROWS, config, ranks)
    return [
        step.round_of(shares.works(batches_of(index)), index, report=index % 2 == 1)
        for index in range(num_rounds)
    ]


CASES = {
    "per task": SBRRT,
    "joint": JOINT,
    "joint, bf16": replace(JOINT, precision="bf16"),
    "masks of their own": CONFIGS["joint, masks of their own"],
    "surgery": CONFIGS["surgery"],
    "dropout": CONFIGS["joint, dropout in two tasks"],
    "uncertainty": CONFIGS["uncertainty, joint"],
    "surgery, parts": replace(
        CONFIGS["surgery"], round=replace(JOINT.round, accumulate=2), precision="bf16"
    ),
    "parts": replace(JOINT, round=replace(JOINT.round, accumulate=2)),
    "parts, bf16": replace(JOINT, precision="bf16", round=replace(JOINT.round, accumulate=3)),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_are_in_the_right_order_in_a_capture(name):
    """Replays of all orders that the streams allow have the bits of launches."""
    config, ranks = CASES[name], AlikeRanks()
    ours, theirs = on_rank(config, ranks), launched(config, AlikeRanks())
    assert_same_bits(train(ours, config, ranks), train(theirs, config, AlikeRanks()))
    assert_same_bits(state(ours), state(theirs))
    assert ours.num_replays
    for one in ours._captured.values():
        assert ranks.stream in one.graph.num_calls


def test_every_gradient_is_in_one_message():
    ranks = AlikeRanks()
    step = launched(JOINT, ranks)
    ranks.sums.clear()
    train(step, JOINT, ranks, num_rounds=1)
    *buckets, flat, words, terms = ranks.sums
    grads = step.passes.grads
    assert [len(bucket) for bucket in buckets] == [1] * len(grads.layers)
    places = [(bucket.data_ptr() - grads.matrices.data_ptr()) for bucket in buckets]
    assert places == [i * grads.matrices[0].nbytes for i in range(len(buckets))]
    assert flat is grads.flat
    assert words.shape[1] == step.model.config.hidden_size
    assert terms.numel() == 4 * len(TASK_ROWS)


def no_wait(step: CapturedStep, ranks: AlikeRanks) -> None:
    """The update does not wait for the sums."""
    start = ranks.start_sum

    def never(x: Tensor) -> Callable[[], None]:
        wait = start(x)
        late.append(wait)
        return lambda: None

    late: list[Callable[[], None]] = []
    ranks.start_sum = never
    run = step.update.run

    def joined(*args) -> Tensor:
        result = run(*args)
        for wait in late:
            wait()
        return result

    step.update.run = joined


def too_early(step: CapturedStep, ranks: AlikeRanks) -> None:
    """A layer's sum begins before its gradients are there."""
    student = step.passes.student
    for layer in student.layers:
        make = layer.weight_gradients

        def late(*args, make=make) -> None:
            pending.append(partial(make, *args))

        layer.weight_gradients = late
    pending: list[Callable] = []
    on_layer = student.on_layer

    def complete(index: int) -> None:
        on_layer(index)
        pending.pop()()

    student.on_layer = complete


@pytest.mark.parametrize("mistake", [no_wait, too_early])
def test_a_sum_at_the_wrong_time_is_found(mistake):
    ranks = AlikeRanks()
    step = on_rank(JOINT, ranks)
    mistake(step, ranks)
    theirs = train(launched(JOINT, AlikeRanks()), JOINT, AlikeRanks())
    with pytest.raises((OrderMatters, AssertionError)):
        assert_same_bits(train(step, JOINT, ranks), theirs)


@pytest.mark.parametrize("config", UPDATES.values(), ids=UPDATES)
def test_accumulation_in_a_capture_is_the_round_of_one_part(config):
    parts = replace(config, round=replace(config.round, accumulate=3))
    ours, whole = on_rank(parts, OneRank()), on_rank(config, OneRank())
    found = [{n: v.item() for n, v in x.items()} for x in train(ours, parts, OneRank())]
    expected = [{n: v.item() for n, v in x.items()} for x in train(whole, config, OneRank())]
    assert_same(found, expected)
    assert ours.num_replays


@pytest.mark.parametrize("config", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_ranks_have_one_shape(config, num_ranks):
    """Without asking each other: so they capture in the same rounds, and sums are of one size."""
    steps = [on_rank(config, ThreadRanks.stub(rank, num_ranks)) for rank in range(num_ranks)]
    draw = np.random.default_rng(0)
    for _ in range(4):
        batches = [(name, draw.permutation(NUM_EXAMPLES)[:7]) for name in TASK_ROWS]
        first, *others = (list(shapes_of(step, batches)) for step in steps)
        for found in others:
            for (ours, words), (theirs, their_words) in zip(found, first, strict=True):
                assert ours == theirs
                assert torch.equal(words, their_words)


def shapes_of(step: CapturedStep, batches):
    """Sizes of a rank's filled groups, and their words."""
    for work in RoundShares(TASK_ROWS, step.config, step.ranks).works(batches):
        (part,) = work.parts
        for group in step._part(part, work.common):
            tokens = group.tokens
            padding = tokens.num_sequences - sum(group.counts)
            sizes = group.names, group.num_row_tokens, tokens.num_tokens, tokens.max_length, padding
            yield sizes, tokens.words
