"""The captured step against the one that runs launch by launch, and against the reference.

The same tests run on a GPU, with CUDA graphs, and without one, where ``RecordedGraph`` stands for
them: whatever the host had frozen while the step was captured shows in the replays, which train on
other batches.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.data.bucket import bucket_length, bucket_size, fill, num_fillers, words_among
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.training.checkpoint import load_optimizer_tensors
from sbrrt_fast.training.cost.profile import StageClock
from sbrrt_fast.training.step.captured_step import SIGHTS, CapturedStep
from sbrrt_fast.training.step.cuda_graph import CudaGraph
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.step import Step
from tests.model.models import random_batch
from tests.training import steps
from tests.training.recorded_graph import NotCapturable, RecordedGraph
from tests.training.steps import CONFIGS, JOINT, SBRRT, autograd, build, state, written_out

LENGTHS = (
    {"sst": [6, 9, 3], "para": [5, 7, 12, 4], "sts": [8, 8, 3, 11]},
    {"sst": [10, 2, 7], "para": [3, 20, 4, 4], "sts": [2, 2, 9, 15]},
    {"sst": [30, 30, 22], "para": [9, 3, 3, 12], "sts": [20, 31, 40, 2]},  # other buckets
    {"sst": [2, 3, 4], "para": [8, 8, 8, 8], "sts": [32, 20, 20, 20]},  # one filled exactly
)
NUM_ROUNDS = 8
IS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_GPU else "cpu")
GRAPH = CudaGraph if IS_GPU else RecordedGraph


def make_round(index: int) -> list[TaskBatch]:
    return steps.make_round(index, LENGTHS[index % len(LENGTHS)])


class Never(RecordedGraph):
    """What a device says in the middle of a capture, and then at its end."""

    def capture(self, work):
        try:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        except RuntimeError:
            raise RuntimeError("capture was invalidated")  # noqa: B904 - as torch does


def captured(config, graph=GRAPH, lines=None) -> CapturedStep:
    log = print if lines is None else lines.append
    return build(lambda *args: steps.captured(*args, log=log, graph=graph), config, device=DEVICE)


def launched(config) -> CapturedStep:
    """The same step and the same filled batches, every one as the first of its size."""
    step = captured(config, Never, [])
    step._ready = lambda *args: None
    return step


def train(step, num_rounds: int = NUM_ROUNDS, first: int = 0) -> list[dict[str, torch.Tensor]]:
    rounds = range(first, first + num_rounds)
    return [step.round(make_round(i), i, report=i % 2 == 1) for i in rounds]


def assert_same_bits(ours: list | dict, theirs: list | dict) -> None:
    pairs = [(ours, theirs)] if isinstance(ours, dict) else zip(ours, theirs, strict=True)
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value.to(found[name].dtype)), name


CASES = {
    **CONFIGS,
    "bf16": replace(SBRRT, precision="bf16"),
    "joint, bf16": replace(JOINT, precision="bf16"),
    "a momentum that changes": replace(SBRRT, bregman=BregmanConfig(weight=1.0, schedule="paper")),
}


@pytest.mark.parametrize("name", CASES)
def test_replays_do_what_launches_do(name):
    """The same bits: both run the same ops on batches filled up alike."""
    ours, theirs = captured(CASES[name]), launched(CASES[name])
    assert_same_bits(train(ours), train(theirs))
    assert_same_bits(state(ours), state(theirs))
    assert theirs.num_replays == 0
    assert ours.num_replays == num_expected(ours)


def num_expected(step: CapturedStep) -> int:
    """Of the steps of ``train``, those whose size was launched ``SIGHTS - 1`` times before."""
    seen, count = {}, 0
    for index in range(NUM_ROUNDS):
        batches = make_round(index)
        for group in [batches] if step.is_joint else [[batch] for batch in batches]:
            filled = step._part(group)
            beta = step.update.beta_at(index * (1 if step.is_joint else 3) + 1)
            sizes = ((x.names, x.tokens.num_tokens, x.tokens.max_length) for x in filled)
            resting = step.step.unfreezing.at(index).num_heights
            key = *sizes, beta, resting
            seen[key] = seen.get(key, 0) + 1
            count += seen[key] >= SIGHTS
    assert count >= NUM_ROUNDS / 4 or step.config.optimizer.unfreeze_every
    return count


@pytest.mark.parametrize("update", ["joint", "per_task"])
def test_every_part_that_unfreezes_is_captured_anew(update):
    """And the graphs of before are given back."""
    config = steps.with_optimizer(JOINT, unfreeze_every=SIGHTS)
    config = replace(config, round=replace(config.round, update=update))
    ours, theirs, graphs = captured(config), launched(config), []
    for index in range(10):  # of 2 layers and the embeddings
        batches = steps.make_round(index)
        assert_same_bits(ours.round(batches, index), theirs.round(batches, index))
        graphs.append({key.num_resting for key in ours._captured})
    assert_same_bits(state(ours), state(theirs))
    each = 1 if update == "joint" else 3
    assert ours.num_replays == 3 * each
    assert [graphs[i] for i in (2, 5, 8, 9)] == [{3}, {2}, {1}, set()]


@pytest.mark.parametrize("name", ["per task", "paper", "masks of their own", "no teacher"])
def test_gradients_of_replays_are_the_reference_s(name):
    """Of every parameter, on another batch each time, at the weights that training has reached."""
    config = CONFIGS[name]
    ours = captured(config)
    theirs = build(autograd, replace(config, backend="reference"), device=DEVICE)
    found, run = {}, ours.update.run

    def noted(plan, numbers, gradients, *rest):
        found.update(gradients)  # of the graph's memory, which a replay writes again
        return run(plan, numbers, gradients, *rest)

    ours.update.run = noted
    indices = [i for i in range(11) if i % len(LENGTHS) != 3]  # those of one size
    for index in indices:
        batch = next(b for b in make_round(index) if b.name == "para")
        follow(theirs, ours)
        expected = theirs.gradients(batch, torch.tensor([config.seed, index], device=DEVICE))
        ours.round([batch], index)
        assert_same_gradients(ours, found, expected)
    assert ours.num_replays == len(indices) - SIGHTS + 1


def follow(theirs: Step, ours: Step) -> None:
    theirs.model.load_state_dict(ours.model.state_dict())
    if ours.teacher is not None:
        theirs.teacher.load_state_dict(ours.teacher.state_dict())


def assert_same_gradients(step: CapturedStep, found: dict, expected: dict) -> None:
    named = {n: (p, found.get(id(p))) for n, p in step.model.named_parameters()}
    dense = {n: g.dense(p) if isinstance(g, RowGradient) else g for n, (p, g) in named.items()}
    assert {n for n, g in dense.items() if g is not None} == expected.keys()
    largest = max(g.norm() for g in expected.values())
    for name, gradient in expected.items():
        if gradient.norm() > 1e-5 * largest:  # below it is rounding, as for key biases
            distance = (dense[name] - gradient).norm() / gradient.norm()
            assert distance < 1e-4, name


@pytest.mark.parametrize("name", ["per task", "joint", "special tokens too", "paper", "no SMART"])
def test_filling_up_changes_nothing(name):
    ours, theirs = captured(CONFIGS[name]), build(written_out, CONFIGS[name], device=DEVICE)
    for found, expected in zip(train(ours, 4), train(theirs, 4), strict=True):
        assert found.keys() == expected.keys()
        for term, value in expected.items():
            floor = 1e-7 if term.endswith("bregman") else 1e-12
            # The gain's divisor, R_s of a random direction, has few digits in float32.
            digits = 1e-2 if term.endswith("gain") else 2e-3
            close = torch.allclose(found[term].double(), value.double(), rtol=digits, atol=floor)
            assert close, (term, found[term], value)


def test_a_run_goes_on_from_saved_state():
    whole, first, second = (captured(SBRRT) for _ in range(3))
    train(whole)
    train(first, 5)
    saved = {name: x.clone() for name, x in state(first).items()}
    for module, prefix in ((second.model, "model."), (second.teacher, "teacher.")):
        module.load_state_dict(
            {n.removeprefix(prefix): x for n, x in saved.items() if n.startswith(prefix)}
        )
    load_optimizer_tensors(second.optimizer, list(second.model.named_parameters()), saved)
    train(second, NUM_ROUNDS - 5, first=5)
    assert_same_bits(state(second), state(whole))


def test_larger_batches_drop_what_was_captured_before():
    """Their workspace lies elsewhere."""
    ours, theirs = captured(JOINT), launched(JOINT)
    big = [TaskBatch("sst", random_batch([60] * 9), torch.zeros(9))]
    for step in (ours, theirs):
        step.terms = train(step, 5)
        step.terms.append(step.round(big, 5))
        step.terms += train(step, 4, first=6)
    assert_same_bits(ours.terms, theirs.terms)
    assert ours.num_replays > 1


def test_a_profile_runs_launch_by_launch():
    step = captured(SBRRT)
    step.clock = StageClock(step.device)
    train(step, 4)
    assert step.num_replays == 0


def test_the_summary_counts():
    step = captured(SBRRT)
    train(step)
    (line,) = step.summary()
    assert f"{len(step._captured)} graphs" in line
    assert f"did {step.num_replays} of {3 * NUM_ROUNDS} optimiser steps" in line
    assert "graphs" in step.memory()


def test_recording_refuses_what_a_cuda_graph_cannot_hold():
    x = torch.arange(4.0)
    for work in (lambda: x[x > 1], lambda: x.sum().item(), lambda: x.nonzero(), lambda: x.unique(),
                 lambda: torch.tensor([2.0])):  # fmt: skip
        with pytest.raises(NotCapturable):
            RecordedGraph().capture(work)


def test_recording_repeats_what_was_frozen():
    """A number that the host read stays what it was: the tests above would see it."""
    x, rate = torch.ones(3), [2.0]
    graph = RecordedGraph()
    result = graph.capture(lambda: x.add_(1) * rate[0])
    assert x.tolist() == [1.0] * 3
    rate[0] = 100.0
    x.fill_(5.0)
    graph.replay()
    assert result.tolist() == [12.0] * 3
    assert x.tolist() == [6.0] * 3


@pytest.mark.parametrize("limit", [64, 512])
def test_buckets_bound_what_they_add_and_their_number(limit):
    sizes = [bucket_size(n, limit) for n in range(1, 4097)]
    assert all(n <= size for n, size in enumerate(sizes, 1))
    assert all(size - n < max(64, n / 8) for n, size in enumerate(sizes, 1))
    if limit == 512:
        assert len(set(sizes)) <= 8 * 4
    assert [bucket_length(n, limit) for n in (1, 32, 33, 64)] == [32, 32, 64, 64]
    assert max(bucket_length(n, limit) for n in range(1, limit + 1)) == limit


@pytest.mark.parametrize("lengths", [[5, 9, 3], [32], [31, 2], [1], [60] * 20, [50] * 41])
def test_a_filled_batch_is_the_batch_and_padding(lengths):
    batch = random_batch(lengths)
    filled = fill(batch, 64)
    filled = filled.with_words(words_among(filled.input_ids, filled.num_tokens, 97))
    num_tokens, count = batch.num_tokens, batch.num_sequences
    assert filled.num_tokens % 32 == 0
    assert filled.num_sequences == count + num_fillers(filled.num_tokens, 64)
    for name in ("input_ids", "token_types", "positions", "sequence", "is_real", "is_special"):
        assert torch.equal(getattr(filled, name)[:num_tokens], getattr(batch, name)), name
    assert not filled.is_real[num_tokens:].any() and not filled.is_special[num_tokens:].any()
    assert torch.equal(filled.cu_seqlens[: count + 1], batch.cu_seqlens)
    assert filled.cu_seqlens[-1] == filled.num_tokens
    starts = filled.cu_seqlens[filled.sequence]
    assert torch.equal(filled.positions, torch.arange(filled.num_tokens) - starts)
    assert len(filled.rows.unique()) == filled.num_sequences
    assert torch.equal(filled.words[filled.word_index], filled.input_ids)
    assert torch.equal(filled.words, filled.words.unique()) and len(filled.words) == min(
        filled.num_tokens, 97
    )
    indices = filled.word_index, filled.positions, filled.token_types
    for order, index in zip(filled.token_order.view(3, -1), indices, strict=True):
        assert torch.equal(order, index.argsort(stable=True))


@pytest.mark.parametrize("limit", [16, 64, 512])
def test_fillers_are_short_and_their_number_follows_from_the_size(limit):
    """Work captured for a size holds for every batch of that size, and padding is no long row."""
    length = min(32, limit)
    for num_tokens in range(1, 4097):
        size = bucket_size(num_tokens, limit)
        assert size - num_tokens <= num_fillers(size, limit) * length
        assert bucket_size(size, limit) == size
    for num_tokens in (1025, 2049, 2300):
        lengths = [16] * (num_tokens // 16) + [num_tokens % 16]
        filled = fill(random_batch(lengths), limit)
        assert (filled.cu_seqlens.diff() <= length).all()
        assert filled.max_length == min(32, limit)
