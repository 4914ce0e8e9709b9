"""Shares and folds of the training rows, ``max_rows``, and test files with and without labels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.splits import SplitRows, share_indices
from sbrrt_fast.data.task_rules import share_of, validate_task
from sbrrt_fast.errors import ConfigError, DataError
from tests.data.written import COLUMNS, ENTAILMENT, LABELS, ROWS, write_table

TASK = replace(ENTAILMENT, labels=LABELS, num_classes=3)


def of(dev: str, **fields):
    task = replace(TASK, files={"train": "rows.csv", "dev": dev}, **fields)
    validate_task("mine", task)
    return task


def ids(task, split, folder) -> list[str]:
    return [e.id for e in SplitRows("mine", task, split, folder).read()[0]]


@pytest.mark.parametrize(("dev", "num_dev"), [("25%", 3), ("50 %", 6), ("1/3", 4), ("12.5%", 2)])
def test_a_share_is_in_dev_and_the_rest_in_train(tmp_path, dev, num_dev):
    write_table(tmp_path / "rows.csv", ROWS)
    parts = {split: ids(of(dev), split, tmp_path) for split in ("train", "dev")}
    assert len(parts["dev"]) == num_dev
    everything = [row[0] for row in ROWS]
    for part in parts.values():
        assert part == sorted(part, key=everything.index)  # the order of the file
    assert sorted(parts["train"] + parts["dev"]) == sorted(everything)
    assert ids(of(dev), "dev", tmp_path) == parts["dev"]


def test_the_seed_decides_the_share_and_nothing_else(tmp_path):
    write_table(tmp_path / "rows.csv", ROWS)
    chosen = {seed: tuple(ids(of("25%", split_seed=seed), "dev", tmp_path)) for seed in range(20)}
    assert len(set(chosen.values())) > 15
    # Fixed: another version must not move rows from dev into train.
    assert sorted(share_indices(12, share_of("25%"), 0)) == [3, 5, 7]
    assert sorted(share_indices(12, share_of("2/4"), 7)) == [1, 3, 11]


@pytest.mark.parametrize("num_rows", [5, 12, 103])
def test_folds_have_every_row_once(num_rows):
    folds = [share_indices(num_rows, share_of(f"{k}/5"), 3) for k in range(1, 6)]
    assert sorted(i for fold in folds for i in fold) == list(range(num_rows))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


@pytest.mark.parametrize("dev", ["0%", "100%", "101%", "0/5", "6/5", "1/1", "1/0"])
def test_shares_that_leave_nothing(dev):
    with pytest.raises(ConfigError, match=r"tasks\.mine\.files\.dev: .* must leave rows to both"):
        of(dev)


def test_shares_of_what_is_not_there():
    with pytest.raises(ConfigError, match=r"files\.test: '10%' is a part .* write './10%'"):
        validate_task("mine", replace(TASK, files={"train": "a.csv", "test": "10%"}))
    with pytest.raises(ConfigError, match=r"files\.dev: '1/5' is a part .* no files\.train"):
        validate_task("mine", replace(TASK, files={"dev": "1/5"}))
    assert share_of("./10%") is None and share_of(("10%",)) is None


def test_a_part_without_rows_is_an_error(tmp_path):
    write_table(tmp_path / "rows.csv", ROWS)
    with pytest.raises(DataError, match=r"rows\.csv: the dev part of its 12 rows is empty"):
        SplitRows("mine", of("1%"), "dev", tmp_path).read()


def test_max_rows_counts_usable_rows_of_all_files(tmp_path):
    rows = [ROWS[0], ("bad", "", "b", "neutral"), *ROWS[1:]]
    write_table(tmp_path / "a.csv", rows[:4])
    write_table(tmp_path / "b.csv", rows[4:])
    task = replace(TASK, files={"train": ("a.csv", "b.csv")}, on_bad_row="skip")
    for count in (1, 2, 3, 5, 12, 100):
        few = replace(task, max_rows=count)
        assert ids(few, "train", tmp_path) == [row[0] for row in ROWS[:count]]
    (tmp_path / "b.csv").write_bytes(b"\0")  # not looked at
    assert len(ids(replace(task, max_rows=3), "train", tmp_path)) == 3
    with pytest.raises(ConfigError, match=r"tasks\.mine\.max_rows: must be at least 1, got 0"):
        validate_task("mine", replace(task, max_rows=0))


def test_max_rows_is_taken_before_the_share(tmp_path):
    write_table(tmp_path / "rows.csv", ROWS)
    task = of("50%", max_rows=6)
    parts = ids(task, "train", tmp_path), ids(task, "dev", tmp_path)
    assert list(map(len, parts)) == [3, 3]
    assert sorted(parts[0] + parts[1]) == [row[0] for row in ROWS[:6]]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_test_split_with_labels_and_without(tmp_path, ending):
    path = write_table(tmp_path / f"rows{ending}", ROWS)
    examples, report = read_split(path, TASK, "test", "mine")
    assert [LABELS[int(e.label)] for e in examples] == [row[3] for row in ROWS]
    assert report.note == ""
    path = write_table(tmp_path / f"rows{ending}", [row[:3] for row in ROWS], COLUMNS[:3])
    examples, report = read_split(path, TASK, "test", "mine")
    assert {e.label for e in examples} == {None} and report.note == ""


@pytest.mark.parametrize("placeholder", ["", "-1", "hidden"])
def test_a_test_split_whose_labels_are_hidden_has_none(tmp_path, placeholder):
    path = write_table(tmp_path / "rows.csv", [(*row[:3], placeholder) for row in ROWS])
    examples, report = read_split(path, TASK, "test", "mine")
    assert {e.label for e in examples} == {None} and len(examples) == 12
    assert report.note.startswith(
        "mine test: taken as a split without labels, since no row has one (rows.csv:2: label "
    )


def test_a_test_split_with_some_labels(tmp_path):
    rows = [(*row[:3], "" if i == 2 else row[3]) for i, row in enumerate(ROWS)]
    path = write_table(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError, match=r"rows\.csv:4: label is empty; correct the row, or set"):
        read_split(path, TASK, "test", "mine")
    examples, report = read_split(path, replace(TASK, on_bad_row="skip"), "test", "mine")
    assert [e.id for e in examples] == [row[0] for row in rows if row[3]]
    assert report.message() == "rows.csv: 11 rows, skipped 1 (first: rows.csv:4: label is empty)"
