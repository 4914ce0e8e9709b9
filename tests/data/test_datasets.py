"""Datasets of the ``datasets`` library, from folders; nothing here needs a network."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.errors import DataError
from tests.data.written import COLUMNS, ENTAILMENT, LABELS, ROWS, optional, write_table

ORDER = ("neutral", "entailment", "contradiction")  # as this dataset has its classes
TASK = replace(ENTAILMENT, files={"train": "train", "dev": "dev"}, dataset="nli")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch) -> None:
    """Nothing is asked of the hub, and what the library keeps is kept here."""
    datasets = optional("datasets")
    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(optional("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with a dataset that ``save_to_disk`` wrote; its labels are a ClassLabel."""
    datasets = optional("datasets")
    texts = {name: datasets.Value("string") for name in COLUMNS[:3]}
    features = datasets.Features(texts | {"label": datasets.ClassLabel(names=list(ORDER))})

    def split(rows) -> datasets.Dataset:
        columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        columns["label"] = [ORDER.index(x) if x else -1 for x in columns["label"]]
        return datasets.Dataset.from_dict(columns, features=features)

    hidden = [(*row[:3], "") for row in ROWS]
    splits = {"train": split(ROWS[:9]), "dev": split(ROWS[9:]), "hidden": split(hidden)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "nli")
    return tmp_path


def test_a_saved_dataset_has_its_classes_in_its_own_order(saved):
    task = complete_tasks({"mine": TASK}, saved, lambda line: None)["mine"]
    assert (task.labels, task.num_classes) == (ORDER, 3)
    for split, rows in (("train", ROWS[:9]), ("dev", ROWS[9:])):
        examples, report = SplitRows("mine", task, split, saved).read()
        assert [(e.id, *e.texts, ORDER[int(e.label)]) for e in examples] == rows
        assert report.message() == f"dataset {saved / 'nli'}, split {split}: {len(rows)} rows"


def test_labels_may_be_named_in_another_order(saved):
    task = replace(TASK, labels=LABELS, num_classes=3)
    examples, _ = SplitRows("mine", task, "train", saved).read()
    assert [LABELS[int(e.label)] for e in examples] == [row[3] for row in ROWS[:9]]


def test_hidden_labels_of_a_test_split(saved):
    task = replace(TASK, labels=LABELS, num_classes=3, files={"test": "hidden"})
    examples, report = SplitRows("mine", task, "test", saved).read()
    assert {e.label for e in examples} == {None}
    assert "taken as a split without labels, since no row has one" in report.note
    with pytest.raises(DataError, match=r"split hidden: row 1: label is empty; correct the row"):
        SplitRows("mine", replace(task, files={"train": "hidden"}), "train", saved).read()


def test_a_folder_of_files_with_the_library_s_own_slices(tmp_path):
    (tmp_path / "nli").mkdir()
    write_table(tmp_path / "nli" / "train.csv", ROWS)
    task = replace(TASK, files={"train": "train[:9]", "dev": "train[9:]"})
    task = complete_tasks({"mine": task}, tmp_path, lambda line: None)["mine"]
    assert task.labels == LABELS
    examples, _ = SplitRows("mine", task, "dev", tmp_path).read()
    assert [(e.id, *e.texts) for e in examples] == [row[:3] for row in ROWS[9:]]
    share = replace(task, files={"train": "train", "dev": "1/4"})
    assert len(SplitRows("mine", share, "dev", tmp_path).read()[0]) == 3


def test_what_is_not_there_is_named(saved):
    def error_of(**fields) -> str:
        with pytest.raises(DataError) as raised:
            SplitRows("mine", replace(TASK, labels=LABELS, **fields), "train", saved).read()
        message = str(raised.value)
        assert message.isprintable() and "tasks.mine." in message
        return message

    place = f"dataset {saved / 'nli'}, split none"
    message = error_of(files={"train": "none"})
    assert message.startswith(f"{place}: cannot be loaded (its splits are train, dev, hidden); ")
    message = error_of(dataset="/no/folder")
    assert message.startswith("dataset /no/folder, split train: cannot be loaded (")
    message = error_of(dataset="nobody/nothing")
    assert message.startswith("dataset nobody/nothing, split train: cannot be loaded (")
    message = error_of(label_column="gold")
    assert (
        "no column named 'gold' in the header ('id', 'premise', 'hypothesis', 'label')" in message
    )


def test_the_library_is_named_where_it_is_absent(saved, monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] == "datasets":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        DataError, match=r"cannot be read without datasets .*sbrrt_fast\[datasets\]"
    ):
        SplitRows("mine", TASK, "train", saved).read()
