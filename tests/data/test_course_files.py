"""The course's files as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import DataError

PARA = BUILTIN_TASKS["para"]


@pytest.mark.parametrize(
    ("name", "split", "num_rows", "num_skipped"),
    [
        ("sst", "train", 8544, 0),
        ("sst", "dev", 1101, 0),
        ("sst", "test", 2210, 0),
        ("cfimdb", "train", 1707, 0),
        ("cfimdb", "dev", 245, 0),
        ("cfimdb", "test", 488, 0),
        ("para", "train", 12007, 0),
        ("para", "dev", 20212, 2),
        ("sts", "train", 6040, 0),
        ("sts", "dev", 863, 0),
        ("sts", "test", 1725, 0),
    ],
)
def test_rows_are_counted(data_dir, name, split, num_rows, num_skipped):
    task = BUILTIN_TASKS[name]
    examples, report = read_split(data_dir / task.files[split], task, split, name)
    assert (len(examples), report.num_rows, report.num_skipped) == (num_rows, num_rows, num_skipped)
    assert len({e.id for e in examples}) == num_rows


def test_a_row_without_a_label(data_dir):
    path = data_dir / "quora-dev.csv"
    _, report = read_split(path, PARA, "dev", "para")
    assert report.message() == (
        "quora-dev.csv: 20,212 rows, skipped 2 (first: quora-dev.csv:2577: is_duplicate is empty)"
    )
    strict = replace(PARA, on_bad_row="error")
    with pytest.raises(DataError) as error:
        read_split(path, strict, "dev", "para")
    assert str(error.value).startswith(f"{path}:2577: is_duplicate is empty")
