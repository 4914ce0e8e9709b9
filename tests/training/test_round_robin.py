"""Round-robin order: epoch rule, coverage, purity, cursors and drawn schedules."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest

from sbrrt_fast.config import RoundConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training.round_robin import RoundRobin

PAPER_SIZES = {"sst": 8544, "para": 141_506, "sts": 6040}
ODD_SIZES = {"a": 37, "b": 101, "c": 23}


def take(order, num_rounds, cursor=None):
    cursor = cursor or order.start()
    rounds = []
    for _ in range(num_rounds):
        batches, cursor = order.next_round(cursor)
        rounds.append([(name, indices.tolist()) for name, indices in batches])
    return rounds, cursor


def stream(order, name, num_batches):
    return np.concatenate([dict(order.round(r))[name] for r in range(num_batches)])


@pytest.mark.parametrize(
    ("epoch_task", "batch_size", "expected"),
    [(None, 8, 755), ("sts", 8, 755), ("sst", 8, 1068), ("para", 7, 20215), (None, 6040, 1)],
)
def test_epoch_is_the_whole_batches_of_the_named_or_smallest_task(epoch_task, batch_size, expected):
    config = RoundConfig(batch_size=batch_size, epoch_task=epoch_task)
    assert RoundRobin(PAPER_SIZES, config, seed=0).rounds_per_epoch == expected


@pytest.mark.parametrize(
    ("sizes", "config", "message"),
    [
        ({"a": 5}, RoundConfig(batch_size=8), "round.batch_size: 8 is more than the 5 .* 'a'"),
        ({"a": 5, "b": 90}, RoundConfig(batch_size=8, epoch_task="b"), "'a'; lower it"),
    ],
)
def test_impossible_orders_are_refused(sizes, config, message):
    with pytest.raises(ConfigError, match=message):
        RoundRobin(sizes, config, seed=0)


@pytest.mark.parametrize(
    ("sizes", "epoch_task"), [({"a": 50}, "sts"), ({}, None)], ids=["unknown task", "no task"]
)
def test_an_order_takes_a_validated_configuration(sizes, epoch_task):
    with pytest.raises(AssertionError, match="task"):
        RoundRobin(sizes, RoundConfig(epoch_task=epoch_task), seed=0)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 11])
def test_every_pass_holds_every_example_once(batch_size):
    order = RoundRobin(ODD_SIZES, RoundConfig(batch_size=batch_size), seed=3)
    for name, size in ODD_SIZES.items():
        examples = stream(order, name, math.ceil(3 * size / batch_size))
        for number in range(3):
            one_pass = examples[number * size : (number + 1) * size]
            assert sorted(one_pass) == list(range(size))
            assert one_pass.tolist() != list(range(size))


def test_passes_seeds_and_tasks_are_shuffled_differently():
    config = RoundConfig(batch_size=50)
    order = RoundRobin({"a": 50, "b": 50}, config, seed=1)
    other = RoundRobin({"a": 50, "b": 50}, config, seed=2)
    orders = {tuple(i.tolist()) for r in (0, 1) for _, i in order.round(r) + other.round(r)}
    assert len(orders) == 8


def test_a_batch_across_two_passes_holds_no_example_twice():
    for seed in range(30):
        order = RoundRobin({"a": 16, "b": 23}, RoundConfig(batch_size=8), seed=seed)
        for index in range(40):
            for _, indices in order.round(index):
                assert len(set(indices.tolist())) == 8


def test_first_examples_are_uniform():
    """The rearrangement at a pass boundary must not favour any example."""
    batches = [
        dict(RoundRobin({"a": 20}, RoundConfig(batch_size=8), seed=s).round(2))["a"]
        for s in range(2000)
    ]
    counts = np.bincount(np.concatenate(batches), minlength=20)
    expected = 2000 * 8 / 20
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_rounds_are_pure_in_seed_and_index():
    config = RoundConfig(batch_size=8)
    ahead, _ = take(RoundRobin(ODD_SIZES, config, seed=5), 25)
    fresh = RoundRobin(ODD_SIZES, config, seed=5)
    for index in np.random.default_rng(0).permutation(25):
        assert [(n, i.tolist()) for n, i in fresh.round(int(index))] == ahead[index]


def test_another_task_does_not_change_the_order():
    config = RoundConfig(batch_size=8)
    alone = RoundRobin({"c": 23}, config, seed=5)
    together = RoundRobin(ODD_SIZES, config, seed=5)
    np.testing.assert_array_equal(stream(alone, "c", 12), stream(together, "c", 12))


@pytest.mark.parametrize("schedule", ["round_robin", "proportional", "annealed"])
def test_a_saved_cursor_continues_the_same_run(schedule):
    config = RoundConfig(batch_size=8, schedule=schedule)
    whole, end = take(RoundRobin(ODD_SIZES, config, seed=7, num_rounds=30), 30)
    for stop in (0, 1, 11, 29):
        first, cursor = take(RoundRobin(ODD_SIZES, config, seed=7, num_rounds=30), stop)
        resumed = RoundRobin(ODD_SIZES, config, seed=7, num_rounds=30)
        cursor = resumed.cursor(json.loads(json.dumps(cursor.to_dict())))
        rest, last = take(resumed, 30 - stop, cursor)
        assert first + rest == whole
        assert last == end


def test_a_cursor_of_other_tasks_is_refused():
    order = RoundRobin(ODD_SIZES, RoundConfig(), seed=0)
    with pytest.raises(ConfigError, match="resume with the tasks"):
        order.cursor({"round": 3, "taken": {"a": 3, "b": 3}})


@pytest.mark.parametrize("schedule", ["proportional", "annealed"])
def test_drawn_tasks_follow_their_probabilities(schedule):
    sizes = {"a": 400, "b": 100, "c": 8}
    config = RoundConfig(batch_size=8, schedule=schedule)
    order = RoundRobin(sizes, config, seed=11, num_rounds=2000)
    rounds, cursor = take(order, 2000)
    assert all(len(batches) == 3 for batches in rounds)
    drawn = Counter(name for batches in rounds for name, _ in batches)
    assert cursor.taken == {name: drawn[name] for name in sizes}
    chances = [order.probabilities(index) for index in range(2000)]
    for name in sizes:
        mean = 3 * sum(p[name] for p in chances)
        deviation = math.sqrt(3 * sum(p[name] * (1 - p[name]) for p in chances))
        assert abs(drawn[name] - mean) < 4.5 * deviation


def test_probabilities_go_from_size_to_its_fifth_root():
    sizes = {"a": 4096, "b": 64}
    proportional = RoundRobin(sizes, RoundConfig(schedule="proportional"), seed=0)
    assert proportional.probabilities(99)["a"] == pytest.approx(4096 / 4160)
    annealed = RoundRobin(sizes, RoundConfig(schedule="annealed"), seed=0, num_rounds=8 * 5)
    for epoch, alpha in enumerate([1.0, 0.8, 0.6, 0.4, 0.2]):
        for index in (8 * epoch, 8 * epoch + 7):
            assert annealed.probabilities(index)["a"] == pytest.approx(1 / (1 + 64**-alpha))


def test_drawn_tasks_also_give_every_example_once_per_pass():
    config = RoundConfig(batch_size=8, schedule="proportional")
    rounds, _ = take(RoundRobin(ODD_SIZES, config, seed=2), 40)
    examples = [
        i for batches in rounds for name, indices in batches if name == "b" for i in indices
    ]
    assert len(examples) >= 202
    assert sorted(examples[:101]) == sorted(examples[101:202]) == list(range(101))
