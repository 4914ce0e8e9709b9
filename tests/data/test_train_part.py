"""``train_rows`` and ``label_noise``: which training rows are taken, with which labels."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.data.train_part import TrainPart
from sbrrt_fast.errors import ConfigError
from tests.data.kept_tokens import TASK, assert_same, entries, load
from tests.data.written import LABELS, ROWS, write_table

VALUES = TaskConfig(
    files={"train": "rows.csv"}, text_columns=("text",), label_column="label", head="regression"
)
CLASSES = replace(VALUES, head="classes", num_classes=5)
NUM_ROWS = 2000


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    """Classes of very different sizes, and values that all differ."""
    draw = np.random.default_rng(0)
    classes = draw.choice(5, NUM_ROWS, p=[0.5, 0.3, 0.15, 0.04, 0.01]).astype(float)
    return {"classes": classes, "regression": draw.permutation(NUM_ROWS) / NUM_ROWS}


def drawn(labels: dict[str, np.ndarray], task: TaskConfig, name: str = "mine", **fields):
    return TrainPart.draw(name, replace(task, **fields), labels[task.head])


def taken(part: TrainPart) -> set[int]:
    return set(np.flatnonzero(np.isfinite(part.labels)).tolist())


def noisy(part: TrainPart, labels: np.ndarray) -> set[int]:
    return {i for i in taken(part) if part.labels[i] != labels[i]}


@pytest.mark.parametrize("task", [CLASSES, VALUES], ids=lambda task: task.head)
def test_fewer_rows_are_among_more(labels, task):
    parts = {count: drawn(labels, task, train_rows=count) for count in (1, 10, 100, 1000, 2000)}
    for count, part in parts.items():
        assert len(taken(part)) == count
        is_taken = np.isfinite(part.labels)
        np.testing.assert_array_equal(part.labels[is_taken], labels[task.head][is_taken])
    rows = list(map(taken, parts.values()))
    assert all(fewer < more for fewer, more in itertools.pairwise(rows))


def test_each_class_has_its_share(labels):
    sizes = Counter(labels["classes"].tolist())
    for count in (20, 77, 100, 500, 1999):
        part = drawn(labels, CLASSES, train_rows=count)
        counts = Counter(part.labels[np.isfinite(part.labels)].tolist())
        for label, size in sizes.items():
            # Each class is off by half a row at its last one, and so is their sum by half of five.
            assert abs(counts[label] - count * size / NUM_ROWS) <= 0.5 + 2.5 * size / NUM_ROWS


@pytest.mark.parametrize("task", [CLASSES, VALUES], ids=lambda task: task.head)
def test_the_seed_and_the_task_decide_which_rows(labels, task):
    fields = {"train_rows": 100, "label_noise": 0.5}
    one = drawn(labels, task, **fields)
    assert one.labels.tobytes() == drawn(labels, task, **fields).labels.tobytes()
    for other in (
        drawn(labels, task, "other", **fields),
        drawn(labels, task, split_seed=1, **fields),
    ):
        assert len(taken(one) & taken(other)) < 50


def test_the_rows_stay_the_same_from_version_to_version():
    labels = [float(i % 3) for i in range(12)]
    task = replace(CLASSES, num_classes=3, train_rows=5, label_noise=0.4)
    part = TrainPart.draw("mine", task, labels)
    expected = {0: 2.0, 5: 1.0, 8: 2.0, 9: 0.0, 10: 1.0}  # rows 0 and 5 have another label
    assert {i: part.labels[i] for i in taken(part)} == expected
    assert part.num_noisy == 2


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_noisy_classes_are_others_drawn_uniformly(labels, share):
    part, true = drawn(labels, CLASSES, label_noise=share), labels["classes"]
    rows = noisy(part, true)
    assert len(taken(part)) == NUM_ROWS
    assert len(rows) == part.num_noisy == round(share * NUM_ROWS)
    assert set(part.labels.tolist()) <= set(range(5))
    steps = Counter((part.labels[i] - true[i]) % 5 for i in rows)
    for step in range(1, 5):  # binomial, four of its deviations
        deviation = (len(rows) * 3 / 16) ** 0.5
        assert abs(steps[step] - len(rows) / 4) < 4 * deviation
    by_class = Counter(true[i] for i in rows)
    expected = share * Counter(true.tolist())[0.0]
    assert abs(by_class[0.0] - expected) < 4 * (share * (1 - share) * NUM_ROWS / 2) ** 0.5


def test_noisy_values_change_places(labels):
    part, true = drawn(labels, VALUES, label_noise=0.3), labels["regression"]
    rows = noisy(part, true)
    assert len(rows) == part.num_noisy == 600
    assert sorted(part.labels.tolist()) == sorted(true.tolist())


def test_two_classes_of_a_binary_head_change_over(labels):
    task = replace(CLASSES, head="binary", num_classes=0, label_noise=0.2)
    true = labels["classes"] % 2
    part = TrainPart.draw("mine", task, true)
    rows = sorted(noisy(part, true))
    assert len(rows) == 400 and all(part.labels[i] == 1 - true[i] for i in rows)


@pytest.mark.parametrize("task", [CLASSES, VALUES], ids=lambda task: task.head)
def test_noise_is_of_the_rows_that_are_taken(labels, task):
    true = labels[task.head]
    less, more = (drawn(labels, task, label_noise=share) for share in (0.1, 0.2))
    assert noisy(less, true) < noisy(more, true)
    part = drawn(labels, task, train_rows=100, label_noise=0.2)
    assert taken(part) == taken(drawn(labels, task, train_rows=100))
    assert len(noisy(part, true)) == part.num_noisy == 20


def test_one_value_has_none_to_change_places_with(labels):
    assert drawn(labels, VALUES, train_rows=2, label_noise=0.4).num_noisy == 0
    assert drawn(labels, CLASSES, train_rows=2, label_noise=0.4).num_noisy == 1


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("train_rows", 0, "at least 1, got 0"),
        ("label_noise", 1.0, r"at least 0 and below 1, got 1\.0"),
        ("label_noise", -0.1, r"at least 0 and below 1, got -0\.1"),
    ],
)
def test_values_that_make_no_sense(field, value, expected):
    with pytest.raises(ConfigError, match=rf"tasks\.mine\.{field}: must be {expected}"):
        validate_task("mine", replace(CLASSES, **{field: value}))


def test_of_a_share_the_rest_is_drawn_from(tmp_path):
    write_table(tmp_path / "rows.csv", ROWS)
    files = {"train": "rows.csv", "dev": "1/3"}
    task = replace(TASK, files=files, train_rows=6, label_noise=0.5)
    whole = replace(TASK, files=files)

    def rows(task, split):
        return SplitRows("mine", task, split, tmp_path).read()

    (train, report), (dev, _) = rows(task, "train"), rows(task, "dev")
    assert dev == rows(whole, "dev")[0]
    assert {e.id for e in train} < {e.id for e in rows(whole, "train")[0]}
    assert (len(train), report.num_rows, report.num_noisy) == (6, 6, 3)
    assert [e.id for e in train] == sorted((e.id for e in train), key=lambda id: int(id[1:]))
    assert report.note == (
        "mine train: 6 of 8 rows (train_rows), 3 of 6 labels replaced (label_noise 0.5)"
    )
    stream = SplitRows("mine", task, "train", tmp_path).stream()
    assert (list(stream), stream.report) == (train, report)


def test_a_line_says_that_there_are_no_more_rows(data):
    for count in (12, 100):
        task = replace(TASK, train_rows=count)
        examples, report = SplitRows("mine", task, "train", data).read()
        assert len(examples) == 12 and report.num_skipped == 1
        assert report.note == f"mine train: all 12 rows (train_rows is {count})"


def test_dev_and_test_are_left_alone(data):
    task = replace(TASK, files={**TASK.files, "test": "dev.csv"})
    changed = replace(task, train_rows=2, label_noise=0.9)
    for split in ("dev", "test"):
        expected = SplitRows("mine", task, split, data).read()
        assert SplitRows("mine", changed, split, data).read() == expected


def test_the_cache_has_an_entry_for_each(data, tokenizer, store):
    settings = [{}, {"train_rows": 5}, {"train_rows": 5, "label_noise": 0.4}, {"label_noise": 0.4}]
    settings += [{"train_rows": 5, "split_seed": 1}]
    for number, fields in enumerate(settings, 1):
        task = replace(TASK, **fields)
        without = load(data, tokenizer, task=task)
        for _ in range(2):
            said: list[str] = []
            assert_same(load(data, tokenizer, store, task=task, log=said.append), without)
            assert len(entries(store)) == number
            assert (without.report.note in said) == bool(fields)
    assert without.num_examples == 5
    before = len(entries(store))
    for fields in settings:
        load(data, tokenizer, store, task=replace(TASK, **fields), split="dev")
    assert len(entries(store)) == before + 1


def test_classes_are_found_in_all_rows_and_weights_in_those_taken(data, store):
    task = replace(TASK, labels=(), num_classes=0, class_weights="balanced")
    few = replace(task, train_rows=5, label_noise=0.4)
    for cache in (None, store, store):
        found = complete_tasks({"mine": few}, data, lambda line: None, cache)["mine"]
        assert found.labels == LABELS
        examples, _ = SplitRows("mine", found, "train", data).read()
        counts = Counter(int(e.label) for e in examples)
        assert found.class_weights == pytest.approx([5 / (3 * counts[c]) for c in range(3)])
    whole = complete_tasks({"mine": task}, data, lambda line: None, store)["mine"]
    assert whole.class_weights == (1.0, 1.0, 1.0)
