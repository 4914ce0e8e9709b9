"""Splits that are tokenised once: the same rows, whoever wrote them and whatever went wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.token_cache.cache import TokenCache
from sbrrt_fast.errors import DataError
from tests.data.kept_tokens import (
    TASK,
    assert_same,
    entries,
    flip_byte,
    load,
    refuse,
)
from tests.data.written import ENTAILMENT, LABELS, ROWS, write_table


@pytest.mark.parametrize("encoding", ["cross", "siamese"])
@pytest.mark.parametrize(
    ("split", "files"),
    [
        ("train", {"train": "train.csv"}),
        ("dev", {"train": "train.csv", "dev": "dev.csv"}),
        ("train", {"train": ("train.csv", "more.csv"), "dev": "40%"}),
        ("dev", {"train": ("train.csv", "more.csv"), "dev": "2/3"}),
        ("test", {"train": "train.csv", "test": "labelled.csv"}),
        ("test", {"train": "train.csv", "test": "mixed.csv"}),
        ("test", {"train": "train.csv", "test": "blank.csv"}),
        ("test", {"train": "train.csv", "test": "bare.csv"}),
    ],
)
def test_a_split_from_the_store_is_the_split(
    tmp_path, data, tokenizer, store, monkeypatch, encoding, split, files
):
    write_table(data / "more.csv", [(f"more {row[0]}", *row[1:]) for row in ROWS])
    write_table(data / "labelled.csv", ROWS)
    write_table(data / "mixed.csv", [(*row[:3], row[3] * (i % 3)) for i, row in enumerate(ROWS)])
    write_table(data / "blank.csv", [(*row[:3], "") for row in ROWS])
    write_table(data / "bare.csv", [row[:3] for row in ROWS], ("id", "premise", "hypothesis"))
    monkeypatch.setattr("sbrrt_fast.data.tokens.ROWS_PER_CHUNK", 5)
    task = replace(TASK, files=files, encoding=encoding)
    said: list[list[str]] = [[], [], []]
    plain = load(data, tokenizer, task=task, split=split, max_length=8, log=said[0].append)
    first = load(data, tokenizer, store, task=task, split=split, max_length=8, log=said[1].append)
    monkeypatch.setattr("sbrrt_fast.data.token_cache.cache.tokenised", refuse)
    again = load(data, tokenizer, store, task=task, split=split, max_length=8, log=said[2].append)
    assert_same(plain, first)
    assert_same(plain, again)
    assert said[0] == said[1] == said[2] and any("cut" in line for line in said[0])
    assert plain.num_truncated > 0


@pytest.mark.parametrize("ending", [".jsonl", ".csv.gz", ".tsv"])
def test_files_of_other_formats_are_kept_too(data, tokenizer, store, monkeypatch, ending):
    write_table(data / f"rows{ending}", ROWS)
    task = replace(TASK, files={"train": f"rows{ending}"})
    plain = load(data, tokenizer, task=task)
    load(data, tokenizer, store, task=task)
    monkeypatch.setattr("sbrrt_fast.data.token_cache.cache.tokenised", refuse)
    assert_same(plain, load(data, tokenizer, store, task=task))


def test_a_run_sees_the_batches_that_it_would_see(data, tokenizer, store):
    plain, stored = load(data, tokenizer), load(data, tokenizer, store)
    chosen = torch.tensor([7, 0, 3])
    ours, theirs = assemble(plain, chosen), assemble(stored, chosen)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert ours.input_ids.is_contiguous() and torch.equal(ours.cu_seqlens, theirs.cu_seqlens)


def test_ids_and_texts_are_made_when_they_are_asked_for(data, tokenizer, store, monkeypatch):
    monkeypatch.setattr("sbrrt_fast.data.token_cache.strings._PER_PIECE", 5)
    plain, stored = load(data, tokenizer), load(data, tokenizer, store)
    for lazy, whole in ((stored.ids, plain.ids), (stored.texts, plain.texts)):
        assert not isinstance(lazy, list) and len(lazy) == len(whole) == 12
        assert list(lazy) == [lazy[i] for i in range(12)] == whole
        assert lazy[-1] == whole[-1] and lazy[torch.tensor(3)] == whole[3]
        for part in (slice(2, 7), slice(None), slice(-3, None), slice(9, 1, -2), slice(5, 5)):
            assert lazy[part] == whole[part]
        assert whole[4] in lazy and "no such" not in lazy
        for beyond in (12, -13):
            with pytest.raises(IndexError, match="of 12"):
                lazy[beyond]


def test_bad_rows_are_the_errors_that_they_are(data, tokenizer, store):
    strict = replace(TASK, on_bad_row="error")
    with pytest.raises(DataError) as plain:
        load(data, tokenizer, task=strict)
    with pytest.raises(DataError) as stored:
        load(data, tokenizer, store, task=strict)
    assert str(plain.value) == str(stored.value) and "train.csv:7" in str(plain.value)
    absent = replace(TASK, files={"train": "absent.csv"})
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        load(data, tokenizer, store, task=absent)
    assert entries(store) == [] and not list(store.folder.glob("*.tmp-*"))


# What the training rows say of a task


def completed(data: Path, store: TokenCache | None, **changes) -> tuple[TaskConfig, list[str]]:
    task = replace(ENTAILMENT, on_bad_row="skip", **changes)
    said: list[str] = []
    return complete_tasks({"mine": task}, data, said.append, store)["mine"], said


@pytest.mark.parametrize("weights", [None, "balanced", (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("files", [{"train": "train.csv"}, {"train": "train.csv", "dev": "25%"}])
def test_classes_are_looked_for_once(data, store, monkeypatch, weights, files):
    plain = completed(data, None, class_weights=weights, files=files)
    assert completed(data, store, class_weights=weights, files=files) == plain
    with monkeypatch.context() as patch:
        patch.setattr("sbrrt_fast.data.labels.open_table", refuse)
        patch.setattr("sbrrt_fast.data.reader.open_table", refuse)
        assert completed(data, store, class_weights=weights, files=files) == plain
    assert plain[0].labels == LABELS and "3 classes" in plain[1][0]
    assert len(plain[1]) == 1 + (weights == "balanced")


def test_classes_of_other_rows_or_weights_are_looked_for_again(data, store):
    assert completed(data, store)[0].class_weights is None
    one = completed(data, store, class_weights="balanced", files={"train": "train.csv"})[0]
    other = completed(data, store, class_weights="balanced", max_rows=5)[0]
    assert one.class_weights == (1.0, 1.0, 1.0) != other.class_weights
    write_table(data / "train.csv", [row for row in ROWS if row[3] != LABELS[0]])
    assert completed(data, store)[0].labels == LABELS[1:]
    assert len(entries(store)) == 4
    flip_byte(entries(store)[0] / "entry.json")
    for changes in ({}, {"class_weights": "balanced"}):
        assert completed(data, store, **changes)[0].labels == LABELS[1:]


def test_rows_without_classes_are_the_errors_that_they_are(data, store):
    write_table(data / "train.csv", [(*row[:3], "") for row in ROWS])
    for kept in (None, store):
        with pytest.raises(DataError, match="no row has a label"):
            completed(data, kept)
    assert entries(store) == []
