"""A round dealt to ranks or to parts is the round of one process, up to the order of sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.training.ranks.ranks import OneRank
from sbrrt_fast.training.shares import RoundShares, deal
from tests.model.models import TASKS
from tests.training.ranks.threads import ThreadRanks, on_ranks
from tests.training.steps import CONFIGS, JOINT, autograd, build, state, written_out

NUM_EXAMPLES = 12
_NAMES = "per task", "joint", "surgery", "uncertainty", "joint, dropout in two tasks"
UPDATES = {name: CONFIGS[name] for name in _NAMES}
RESTING = {name: CONFIGS[name] for name in ("frozen layer", "joint, unfreezing")}
KINDS = {"autograd": autograd, "written out": written_out}


def made_up_tasks() -> dict[str, TokenizedTask]:
    """Splits of random tokens of odd lengths; labels fit the heads."""
    draw = np.random.default_rng(0)
    tasks = {}
    for name, config in TASKS.items():
        lengths = draw.integers(3, 17, NUM_EXAMPLES * config.sequences_per_example)
        starts = np.concatenate([[0], lengths.cumsum()])
        special = np.zeros(starts[-1], dtype=bool)
        special[starts[:-1]] = special[starts[1:] - 1] = True
        classes = {"classes": 5, "binary": 2}.get(config.head)
        labels = draw.integers(0, classes or 6, NUM_EXAMPLES).astype(np.float32)
        arrays = {
            "tokens": draw.integers(1, 97, starts[-1]).astype(np.int32),
            "token_types": np.zeros(starts[-1], dtype=np.int8),
            "special": special,
            "starts": starts.astype(np.int64),
            "labels": labels,
        }
        tensors = {key: torch.from_numpy(x) for key, x in arrays.items()}
        ids = [str(i) for i in range(NUM_EXAMPLES)]
        tasks[name] = TokenizedTask(
            name=name, config=config, split="train", ids=ids, num_truncated=0, **tensors
        )
    return tasks


TASK_ROWS = made_up_tasks()


def batches_of(config: RunConfig, index: int, names=tuple(TASKS)):
    """Odd batches, of another size for each task."""
    draw, sizes = np.random.default_rng(index), dict(zip(TASKS, (5, 7, 9), strict=True))
    return [(name, draw.permutation(NUM_EXAMPLES)[: sizes[name]]) for name in names]


def run(kind: Callable, config: RunConfig, ranks=None, num_rounds: int = 4, names=tuple(TASKS)):
    """Loss terms of some rounds and the state after them."""
    ranks = ranks or OneRank()
    shares = RoundShares(TASK_ROWS, config, ranks)
    step = build(lambda *parts: kind(*parts, ranks), config)
    terms = []
    for index in range(num_rounds):
        works = shares.works(batches_of(config, index, names))
        found = step.round_of(works, index, report=index % 2 == 1)
        terms.append({name: value.item() for name, value in found.items()})
    return terms, state(step)


def assert_same(found: list[dict], expected: list[dict], rel: float = 2e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # the gain divides by R_s of a random direction, of which subtraction leaves few digits
            bound = 1e-3 if name.endswith("/gain") else rel
            assert ours[name] == pytest.approx(value, rel=bound, abs=1e-7), name


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8, 20])
def test_every_example_is_dealt_once_and_parts_are_alike(num_parts):
    draw = np.random.default_rng(1)
    lengths = [draw.integers(3, 60, size) for size in (16, 5, 1)]
    parts = deal(lengths, num_parts)
    assert len(parts) == num_parts
    for i, of_batch in enumerate(lengths):
        places = np.concatenate([part[i] for part in parts])
        assert sorted(places) == list(range(len(of_batch)))
        counts = [len(part[i]) for part in parts]
        assert max(counts) - min(counts) <= 1
        assert counts == [len(part[i]) for part in deal([x[::-1] for x in lengths], num_parts)]
        assert all((np.diff(part[i]) > 0).all() for part in parts)
    counts = [sum(len(places) for places in part) for part in parts]
    assert max(counts) - min(counts) <= 1  # who has one more goes round


def test_parts_have_about_as_many_tokens():
    lengths = [np.random.default_rng(2).integers(3, 60, 64)]
    tokens = [lengths[0][part[0]].sum() for part in deal(lengths, 8)]
    assert max(tokens) < 1.05 * min(tokens)


def test_a_share_has_the_rows_of_the_whole_round():
    batches = batches_of(JOINT, 0)
    (whole,) = RoundShares(TASK_ROWS, JOINT, OneRank()).works(batches)
    rows = {name: {} for name in TASKS}
    for batch in whole.batches:
        for row, tokens in sequences(batch):
            rows[batch.name][row] = tokens
    for rank in range(3):
        (work,) = RoundShares(TASK_ROWS, JOINT, ThreadRanks.stub(rank, 3)).works(batches)
        for batch in work.batches:
            for row, tokens in sequences(batch):
                assert torch.equal(rows[batch.name].pop(row), tokens)
    assert not any(rows.values())  # every sequence went to one rank


def sequences(batch):
    tokens = batch.tokens
    for i, row in enumerate(tokens.rows.tolist()):
        yield row, tokens.input_ids[tokens.cu_seqlens[i] : tokens.cu_seqlens[i + 1]]


@pytest.mark.parametrize("kind", ["autograd", "written out"])
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_make_the_run_of_one(name, kind):
    config = CONFIGS[name]
    rel = 1e-4 if name == "finite" else 2e-5  # differences of outputs have fewer digits
    expected, expected_state = run(KINDS[kind], config)
    for found, found_state in on_ranks(3, lambda ranks: run(KINDS[kind], config, ranks)):
        assert_same(found, expected, rel)
        assert_same_state(found_state, expected_state)


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Weights are where they were trained to, up to what Adam makes of rounding."""
    for name, value in expected.items():
        if name.startswith("model.") and not name.endswith("key.bias"):  # whose gradient is zero
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("num_ranks", [2, 8])
@pytest.mark.parametrize("config", UPDATES.values(), ids=UPDATES)
def test_more_ranks_than_examples(num_ranks, config):
    """Batches of 5, 7 and 9 examples on 8 ranks: some have none of a task."""
    expected, _ = run(written_out, config)
    results = on_ranks(num_ranks, lambda ranks: run(written_out, config, ranks))
    for found, _ in results:
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["joint", "surgery"])
def test_ranks_are_bitwise_equal(name):
    results = on_ranks(3, lambda ranks: run(written_out, CONFIGS[name], ranks))
    (first, state_of_first), *others = results
    for terms, tensors in others:
        assert terms == first
        for name, value in state_of_first.items():
            assert torch.equal(value, tensors[name]), name


@pytest.mark.parametrize("kind", ["autograd", "written out"])
@pytest.mark.parametrize("config", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("count", [2, 7])
def test_accumulation_is_the_same_thing_in_time(kind, config, count):
    parts = replace(config, round=replace(config.round, accumulate=count))
    found, expected = run(KINDS[kind], parts), run(KINDS[kind], config)
    assert_same(found[0], expected[0])
    assert_same_state(found[1], expected[1])


@pytest.mark.parametrize("config", [*UPDATES.values(), *RESTING.values()], ids=UPDATES | RESTING)
def test_accumulation_on_ranks(config):
    parts = replace(config, round=replace(config.round, accumulate=2))
    expected, _ = run(written_out, config)
    for found, _ in on_ranks(2, lambda ranks: run(written_out, parts, ranks)):
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["joint", "surgery", "joint, dropout in two tasks"])
@pytest.mark.parametrize("kind", [autograd, written_out])
def test_a_task_that_is_drawn_twice(name, kind):
    names, config = ("sst", "para", "sst"), CONFIGS[name]
    expected, _ = run(kind, config, names=names)
    for found, _ in on_ranks(4, lambda ranks: run(kind, config, ranks, names=names)):
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["joint", "surgery"])
def test_padded_layout(name):
    config = replace(CONFIGS[name], layout="padded")
    expected, _ = run(autograd, config)
    for found, _ in on_ranks(2, lambda ranks: run(autograd, config, ranks)):
        assert_same(found, expected)


def test_a_share_that_is_left_out_changes_the_loss():
    """The other tests would see it."""
    expected, _ = run(written_out, JOINT, num_rounds=1)
    silent = ThreadRanks.stub(0, 3)  # its sums are its own part alone
    found, _ = run(written_out, JOINT, silent, num_rounds=1)
    assert found[0]["sst/loss"] != pytest.approx(expected[0]["sst/loss"], rel=0.1)


def test_finite_differences_climb_the_mean_over_all_examples():
    """mtdnn's step is as long as the gradient, so the number of examples counts."""
    smart = SmartConfig(weight=1.0, preset="mtdnn", gradient="finite", sigma=1e-2)
    config = replace(JOINT, smart=smart)
    for kind in (autograd, written_out):
        expected, _ = run(kind, config, num_rounds=2)
        for found, _ in on_ranks(2, lambda r, kind=kind: run(kind, config, r, num_rounds=2)):
            assert_same(found, expected, rel=1e-4)
