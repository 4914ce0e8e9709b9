"""What makes another entry of the token cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

from tokenizers import Tokenizer

from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.token_cache.key import NOT_READ, row_settings, token_settings
from tests.data.kept_tokens import (
    MAX_LENGTH,
    TASK,
    entries,
    load,
)
from tests.data.written import LABELS, ROWS, write_table
from tests.helpers import tiny_tokenizer


def key_parts(data: Path, tokenizer: Tokenizer, **changes) -> dict:
    task = changes.pop("task", TASK)
    name, split = changes.pop("name", "mine"), changes.pop("split", "train")
    max_length = changes.pop("max_length", MAX_LENGTH)
    rows = SplitRows(name, task, split, data)
    return {**row_settings(rows), **token_settings(tokenizer, max_length)}


READ = {
    "text_columns": ("hypothesis", "premise"),
    "label_column": "other",
    "head": "regression",
    "id_column": "id",
    "encoding": "siamese",
    "num_classes": 4,
    "labels": LABELS[::-1],
    "label_range": (0.0, 2.0),
    "format": "csv",
    "dataset": "other",
    "dataset_config": "other",
    "quoting": "none",
    "on_bad_row": "error",
    "max_rows": 5,
}


def test_every_setting_that_reading_depends_on_is_in_the_key(data, tokenizer):
    assert READ.keys() | NOT_READ == {field.name for field in fields(TaskConfig)}
    before = key_parts(data, tokenizer)
    for name, value in READ.items():
        rows = SplitRows("mine", replace(TASK, **{name: value}), "train", data)
        object.__setattr__(rows, "sources", (data / "train.csv",))
        assert {**before, **row_settings(rows)} != before, name
    assert key_parts(data, tokenizer, name="other") != before
    assert key_parts(data, tokenizer, max_length=31) != before
    other = replace(TASK, weight=2.0, metric="f1", class_weights=(1.0, 2.0, 1.0), loss="auto")
    assert key_parts(data, tokenizer, task=other) == before


def test_files_and_shares_are_in_the_key(data, tokenizer):
    def of(files, split="train", split_seed=0):
        task = replace(TASK, files=files, split_seed=split_seed)
        return key_parts(data, tokenizer, task=task, split=split)

    shutil.copy(data / "train.csv", data / "copy.csv")
    (data / "below").mkdir()
    shutil.copy(data / "train.csv", data / "below" / "train.csv")
    parts = [
        of({"train": "train.csv"}),
        of({"train": "copy.csv"}),  # messages name the file
        of({"train": ("train.csv", "copy.csv")}),
        of({"train": ("copy.csv", "train.csv")}),
        of({"train": "train.csv", "dev": "20%"}),
        of({"train": "train.csv", "dev": "20%"}, split_seed=1),
        of({"train": "train.csv", "dev": "30%"}),
        of({"train": "train.csv", "dev": "20%"}, split="dev"),
        of({"train": "train.csv", "dev": "train.csv"}, split="dev"),
    ]
    assert len({json.dumps(part) for part in parts}) == len(parts)
    assert of({"train": "below/train.csv"}) == of({"train": "train.csv", "dev": "copy.csv"})
    assert of({"train": "train.csv"}, split_seed=1) == parts[0]
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("film 3", "film 4", 1))
    assert of({"train": "train.csv"}) != parts[0]


def test_tokenizers_and_versions_are_in_the_key(data, tokenizer, monkeypatch):
    before = key_parts(data, tokenizer)
    other = tiny_tokenizer()
    assert key_parts(data, other) == before
    other.add_tokens(["film"])
    assert key_parts(data, other) != before
    for target, value in (
        ("sbrrt_fast.data.token_cache.key.FORMAT", 99),
        ("tokenizers.__version__", "99"),
        ("unicodedata.unidata_version", "99"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            assert key_parts(data, tokenizer) != before, target


def test_another_entry_for_another_file(data, tokenizer, store):
    load(data, tokenizer, store)
    write_table(data / "train.csv", ROWS[:3])
    assert load(data, tokenizer, store).num_examples == 3
    assert len(entries(store)) == 2


def test_the_key_is_of_the_contents(data):
    rows = SplitRows("mine", TASK, "train", data)
    ((name, checksum),) = row_settings(rows)["files"]
    assert name == "train.csv"
    assert checksum == hashlib.sha256((data / "train.csv").read_bytes()).hexdigest()
