"""Which rows a task reads is plain, or an error: paths, patterns, datasets, the built-in sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import portable
from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.sources import (
    check_sources,
    describe_data,
    missing_files,
    split_sources,
    uses_sample,
)
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.training.build import load_splits
from tests.data.written import ENTAILMENT, LABELS, ROWS, write_table
from tests.helpers import tiny_tokenizer

TASK = replace(ENTAILMENT, labels=LABELS, num_classes=3)


def with_files(**files) -> dict:
    return {"mine": replace(TASK, files=files)}


def test_relative_absolute_and_home_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    task = with_files(train=("a.csv", "/data/b.csv", "~/c.csv"))["mine"]
    expected = (tmp_path / "a.csv", Path("/data/b.csv"), tmp_path / "home" / "c.csv")
    assert split_sources("mine", task, "train", tmp_path) == expected
    home = with_files(train="~/c.csv")["mine"]
    assert split_sources("mine", home, "train", None) == (tmp_path / "home" / "c.csv",)
    below_home = with_files(train="c.csv")["mine"]
    assert split_sources("mine", below_home, "train", "~/x") == (tmp_path / "home" / "x" / "c.csv",)


def test_a_recipe_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig(data_dir=Path("~/data"), tasks=with_files(train="~/c.csv", dev=("d.csv",)))
    saved = portable(config)
    assert saved.data_dir == tmp_path / "data"
    assert saved.tasks["mine"].files == {"train": str(tmp_path / "c.csv"), "dev": ("d.csv",)}
    assert portable(RunConfig()).tasks == RunConfig().tasks


def test_patterns(tmp_path):
    for name in ("part-2.csv", "part-10.csv", "part-1.csv", "[x]-1.csv"):
        write_table(tmp_path / name, ROWS[:1])
    names = ["part-1.csv", "part-10.csv", "part-2.csv"]
    task = with_files(train="part-*.csv")["mine"]
    assert [p.name for p in split_sources("mine", task, "train", tmp_path)] == names
    task = with_files(train="[x]-*.csv")["mine"]
    assert [p.name for p in split_sources("mine", task, "train", tmp_path)] == ["[x]-1.csv"]
    task = with_files(train="none-*.csv")["mine"]
    assert missing_files("mine", task, "train", tmp_path) == [tmp_path / "none-*.csv"]
    with pytest.raises(DataError, match=r"none-\*\.csv: no file fits; task 'mine' reads"):
        SplitRows("mine", task, "train", tmp_path).read()


def test_several_files_follow_each_other(tmp_path):
    write_table(tmp_path / "a.csv", ROWS[:5])
    write_table(tmp_path / "b.parquet", ROWS[5:])
    task = with_files(train=("a.csv", "b.parquet"))["mine"]
    examples, report = SplitRows("mine", task, "train", tmp_path).read()
    assert [e.id for e in examples] == [row[0] for row in ROWS]
    assert report.message() == "a.csv and 1 more: 12 rows"

    numbered = tmp_path / "c.csv"
    write_table(numbered, [row[1:] for row in ROWS[:3]], ("premise", "hypothesis", "label"))
    task = with_files(train=(str(numbered), str(numbered)))["mine"]
    examples, _ = SplitRows("mine", task, "train", None).read()
    assert [e.id for e in examples] == ["1", "2", "3", "4", "5", "6"]


def test_an_id_that_is_in_two_files(tmp_path):
    write_table(tmp_path / "a.csv", ROWS[:5])
    write_table(tmp_path / "b.parquet", ROWS[4:])
    files = [tmp_path / "a.csv", tmp_path / "b.parquet"]
    with pytest.raises(DataError, match=r"b\.parquet: row 1: id 'r4' is already in line 6 of a"):
        read_split(files, TASK, "train", "mine")
    write_table(tmp_path / "c.parquet", ROWS[1:2])
    with pytest.raises(DataError, match=r"a\.csv:3: id 'r1' is already in row 1 of c\.parquet; c"):
        read_split([tmp_path / "c.parquet", files[0]], TASK, "train", "m")


RELATIVE = r"tasks\.mine\.files\.train: 'a\.csv' is a relative path; name the folder .* --data-dir"


def test_a_task_of_one_s_own_needs_a_folder():
    """It was told to leave --data-dir out."""
    with pytest.raises(ConfigError, match=RELATIVE):
        check_sources(with_files(train="a.csv", dev="10%"), None)
    with pytest.raises(ConfigError, match=r"tasks\.mine\.files\.dev: 'b\.csv' is a relative path"):
        check_sources(with_files(train="/data/a.csv", dev="b.csv"), None)
    with pytest.raises(ConfigError, match=RELATIVE):
        split_sources("mine", with_files(train="a.csv")["mine"], "train", None)
    check_sources(with_files(train="/data/a.csv", dev="10%"), None)
    check_sources(with_files(train="a.csv"), "/data")


def test_the_sample_is_never_mixed_with_data():
    mine = with_files(train="/data/a.csv", dev="10%")
    tasks = {"sst": BUILTIN_TASKS["sst"]}
    with pytest.raises(ConfigError, match=r"tasks\.sst: without --data-dir .* made up.*'sst' out"):
        check_sources(tasks | mine, None)
    check_sources(tasks, None)
    check_sources(tasks | mine, "/data")
    assert uses_sample(tasks, None) and not uses_sample(tasks, "/data")
    assert not uses_sample(tasks | mine, None)
    changed = replace(BUILTIN_TASKS["sst"], files={"train": "mine.csv", "dev": "ids-sst-dev.csv"})
    assert not uses_sample({"sst": changed}, None)
    with pytest.raises(ConfigError, match=r"tasks\.sst\.files\.train: 'mine\.csv' is a relative"):
        check_sources({"sst": changed}, None)
    share = replace(BUILTIN_TASKS["sst"], files={"train": "ids-sst-train.csv", "dev": "10%"})
    assert uses_sample({"sst": share}, None)


def test_a_folder_that_is_given_and_not_used():
    with pytest.raises(ConfigError, match=r"data_dir: /data is given, but nothing is read from"):
        check_sources(with_files(train="/other/a.csv", dev="10%"), "/data")
    dataset = {"mine": replace(TASK, files={"train": "train"}, dataset="user/name")}
    with pytest.raises(ConfigError, match="data_dir: /data is given, but nothing"):
        check_sources(dataset, "/data")


def test_a_dataset_in_the_data_folder_is_used(tmp_path):
    (tmp_path / "name").mkdir()
    task = replace(TASK, files={"train": "train"}, dataset="name")
    check_sources({"mine": task}, tmp_path)
    (source,) = split_sources("mine", task, "train", tmp_path)
    assert source.dataset == str(tmp_path / "name")
    (source,) = split_sources("mine", task, "train", None)
    assert source.dataset == "name"


def test_data_are_told_as_what_they_are():
    mine = with_files(train="/data/a.csv", dev="/more/b.csv")
    sst = {"sst": BUILTIN_TASKS["sst"]}
    assert describe_data(sst, None) == ""
    assert describe_data(sst, "/course") == "/course"
    assert describe_data(sst | mine, "/course") == "/course; /data for mine; /more for mine"
    hub = {"rte": replace(TASK, files={"train": "train"}, dataset="glue", dataset_config="rte")}
    assert describe_data(hub, None) == "the dataset glue (rte) for rte"


def test_one_task_in_the_folder_and_one_elsewhere(tmp_path):
    write_table(tmp_path / "a.csv", ROWS)
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "b.csv", ROWS[:6])
    files = ({"train": str(tmp_path / "a.csv"), "dev": "1/2"}, {"train": "b.csv", "dev": "1/2"})
    open_labels = replace(TASK, labels=(), num_classes=0)
    tasks = {f"t{i}": replace(open_labels, files=each) for i, each in enumerate(files)}
    tasks = complete_tasks(tasks, tmp_path / "data", lambda line: None)
    counts = [
        len(SplitRows(name, task, "train", tmp_path / "data").read()[0])
        for name, task in tasks.items()
    ]
    assert counts == [6, 3]
    config = RunConfig(tasks={"t0": tasks["t0"]}, data_dir=tmp_path / "data")
    assert load_splits(config, tiny_tokenizer(), "dev", 64)["t0"].num_examples == 6


def test_what_a_missing_file_is_told(tmp_path):
    absolute = with_files(train=str(tmp_path / "a.csv"))["mine"]
    with pytest.raises(DataError, match=r"an absolute path: correct it in tasks\.mine\.files"):
        SplitRows("mine", absolute, "train", None).read()
    relative = with_files(train="a.csv")["mine"]
    with pytest.raises(DataError, match=r"a\.csv: no such file; .* with --data-dir$"):
        SplitRows("mine", relative, "train", tmp_path).read()
    with pytest.raises(DataError, match=r"there is no folder .*, or leave --data-dir out to use"):
        SplitRows("sst", BUILTIN_TASKS["sst"], "train", tmp_path / "none").read()


def test_the_command_says_it_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(
        "tasks: {mine: {files: {train: a.csv, dev: 10%}, text_columns: [t], label_column: l, "
        "head: classes}}"
    )
    run = ["train", "--config", str(tmp_path / "x.yaml"), "--output", str(tmp_path / "run")]
    assert main(run) == 2
    printed, error = capsys.readouterr()
    assert printed == ""  # no heading that names the sample
    assert "tasks.mine.files.train: 'a.csv' is a relative path" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
