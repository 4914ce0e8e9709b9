"""Classes found in the training rows, and what becomes of them in a run."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.config_cli import parse_run_config
from sbrrt_fast.config_io import load_config
from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.model.io import load_model
from sbrrt_fast.training.trainer import Trainer
from tests.data.written import ENTAILMENT, LABELS, write_table
from tests.helpers import kill_in_round, sample_words, tiny_backbone

ONE = TaskConfig({"train": "rows.csv"}, ("text",), "label", "classes")


def complete(folder: Path, task: TaskConfig, labels: list, ending: str = ".csv") -> TaskConfig:
    """The task as it is found in rows that have these labels."""
    rows = [(f"text {i}", label) for i, label in enumerate(labels)]
    path = write_table(folder / f"rows{ending}", rows, ("text", "label"))
    said: list[str] = []
    task = replace(task, files={"train": path.name})
    found = complete_tasks({"mine": task}, folder, said.append)["mine"]
    is_open = not task.labels and not task.num_classes
    assert said or not (is_open and found.num_classes)
    assert found.is_complete
    return found


@pytest.mark.parametrize(
    ("labels", "names", "num_classes"),
    [
        (["b", "c", "a", "b"], ("a", "b", "c"), 3),
        (["0", "2", "1"], (), 3),
        (["0.0", "1", "1.0"], (), 2),
        (["3", "1", "2", "10"], ("1", "2", "3", "10"), 4),
        (["-1", "1", "1.0"], ("-1", "1"), 2),
        (["1", "b", "0"], ("0", "1", "b"), 3),
        ([" a ", "\u00e4 b"], ("a", "\u00e4 b"), 2),
    ],
)
def test_classes_are_found_in_order(tmp_path, labels, names, num_classes):
    found = complete(tmp_path, ONE, labels)
    assert (found.labels, found.num_classes) == (names, num_classes)
    examples, _ = read_split(tmp_path / "rows.csv", found, "train", "mine")
    written = [str(found.label_name(e.label)) for e in examples]
    assert written == [str(int(float(x))) if names == () else x.strip().removesuffix(".0")
                       for x in labels]  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_labels_that_are_no_text(tmp_path, ending):
    assert complete(tmp_path, ONE, [2, 0, 1], ending).num_classes == 3
    assert complete(tmp_path, ONE, [2.0, 0.0, 1.0], ending).labels == ()
    assert complete(tmp_path, ONE, [5, 7], ending).labels == ("5", "7")
    assert complete(tmp_path, ONE, [True, False], ending).labels == ("false", "true")


def test_two_classes_of_a_binary_head(tmp_path):
    binary = replace(ONE, head="binary")
    assert complete(tmp_path, binary, ["spam", "ham", "ham"]).labels == ("ham", "spam")
    assert complete(tmp_path, binary, ["1", "0"]) == replace(binary, files={"train": "rows.csv"})
    with pytest.raises(DataError, match=r"3 different labels \('a', 'b', 'c'\) for task 'mine' wi"):
        complete(tmp_path, binary, ["a", "b", "c"])
    # Numbers are 0 and 1 unless the record says otherwise.
    path = write_table(tmp_path / "rows.csv", [("a", "1"), ("b", "2")], ("text", "label"))
    with pytest.raises(DataError, match=r":3: label 2 is outside 0 to 1; .* in tasks\.mine\.label"):
        read_split(path, binary, "train", "mine")
    examples, _ = read_split(path, replace(binary, labels=("2", "1")), "train", "mine")
    assert [e.label for e in examples] == [1.0, 0.0]


def test_a_known_number_of_classes(tmp_path):
    three = replace(ONE, num_classes=3)
    assert complete(tmp_path, three, ["b", "c", "a"]).labels == ("a", "b", "c")
    assert complete(tmp_path, three, ["0", "1"]).labels == ()
    with pytest.raises(DataError, match=r"2 different labels .* with 3 classes; correct them, or"):
        complete(tmp_path, three, ["b", "a"])


def test_labels_of_the_record_are_taken_as_they_are(tmp_path):
    named = replace(ONE, labels=("yes", "no", "unused"))
    assert complete(tmp_path, named, ["no", "yes"]).num_classes == 3
    with pytest.raises(DataError, match=r"rows\.csv:3: label 'Yes' is none of 'yes', 'no'"):
        read_split(
            write_table(tmp_path / "rows.csv", [("a", "no"), ("b", "Yes")], ("text", "label")),
            named,
            "train",
            "mine",
        )


def test_columns_that_hold_no_classes(tmp_path):
    with pytest.raises(DataError, match=r"more than 1,000 different labels in column 'label'; is"):
        complete(tmp_path, ONE, [f"{i}.5" for i in range(1002)])
    with pytest.raises(
        DataError, match=r"labels as long as 'x{40}… \(60,000 characters\)'; is col"
    ):
        complete(tmp_path, ONE, ["a", "x" * 60_000])
    with pytest.raises(
        DataError, match=r"rows\.csv:3: label 'a\\nb' holds a line break or another"
    ):
        read_split(
            write_table(tmp_path / "rows.csv", [("a", "a"), ("b", "a\nb")], ("text", "label")),
            replace(ONE, labels=("a", "b")),
            "train",
            "mine",
        )
    with pytest.raises(DataError, match=r"1 different labels \('a'\) for task 'mine' with 2 class"):
        complete(tmp_path, ONE, ["a", "a"])
    with pytest.raises(DataError, match=r"no row has a label in column 'label' \(tasks\.mine\.la"):
        complete(tmp_path, ONE, ["", " "])
    with pytest.raises(DataError, match=r":1: no column named 'y' .* tasks\.mine\.label_column"):
        complete(tmp_path, replace(ONE, label_column="y"), ["a", "b"])
    with pytest.raises(DataError, match=r"task 'mine' has no train split"):
        complete_tasks({"mine": replace(ONE, files={"dev": "rows.csv"})}, tmp_path)


def test_balanced_weights_are_those_of_the_rows_that_train(tmp_path):
    balanced = replace(ONE, class_weights="balanced")
    found = complete(tmp_path, balanced, ["a"] * 6 + ["b"] * 3 + ["c"])
    assert found.class_weights == pytest.approx((10 / 18, 10 / 9, 10 / 3))
    complete(tmp_path, ONE, ["a"] * 6 + ["b"] * 5 + ["c"] * 5)
    share = replace(balanced, files={"train": "rows.csv", "dev": "50%"}, split_seed=1)
    found = complete_tasks({"mine": share}, tmp_path, lambda line: None)["mine"]
    labels = [e.label for e in read_split(tmp_path / "rows.csv", found, "train", "mine")[0]]
    kept = [e.label for e in SplitRows("mine", found, "train", tmp_path).read()[0]]
    assert len(kept) == 8 < len(labels)
    expected = [8 / (3 * kept.count(c)) for c in range(3)]
    assert found.class_weights == pytest.approx(expected)
    with pytest.raises(
        DataError, match=r"no training row .* has the label 'd', so there is no bal"
    ):
        complete(tmp_path, replace(balanced, labels=("a", "d")), ["a", "a"])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"labels": ("a", "a")}, "labels: needs different names"),
        ({"labels": ("a", "")}, "labels: needs different names"),
        ({"labels": ("a", " b")}, "labels: needs different names"),
        ({"labels": ("a", "b"), "num_classes": 3}, "labels: 2 names for head 'classes' with 3"),
        ({"labels": ("a",)}, "labels: 1 names for head 'classes' with 2 classes"),
        ({"labels": ("a", "b", "c"), "head": "binary"}, "labels: 3 names for head 'binary' with 2"),
        ({"labels": ("a", "b"), "head": "regression"}, "labels: head 'regression' predicts val"),
        ({"class_weights": (1.0, 2.0), "num_classes": 3}, "class_weights: 2 weights for 3 classes"),
        ({"class_weights": (1.0, -2.0)}, "class_weights: must be at least 0, got"),
        ({"class_weights": (0.0, 0.0)}, "class_weights: must be above 0 for a class or more"),
        ({"class_weights": (1.0, 1e-40)}, "class_weights: must be of a size from"),
        ({"class_weights": "balanced", "head": "regression"}, "class_weights: head 'regression'"),
        ({"label_smoothing": 1.0}, "label_smoothing: must be at least 0 and below 1"),
        ({"label_smoothing": 0.1, "head": "regression"}, "label_smoothing: head 'regression' pr"),
        ({"num_classes": -1}, "num_classes: head 'classes' got -1"),
        ({"num_classes": 1}, "num_classes: head 'classes' got 1"),
        ({"files": {"train": ()}}, "files.train: names no file"),
        ({"files": {"train": ("a", "")}}, "files.train: names no file"),
        ({"format": "dataset"}, "dataset: format 'dataset' needs its name"),
        ({"format": "csv", "dataset": "x"}, "format: a dataset is not read as 'csv'"),
        ({"dataset_config": "x"}, "dataset_config: there is no dataset"),
    ],
)
def test_records_that_do_not_fit(fields, problem):
    with pytest.raises(ConfigError) as caught:
        validate_task("mine", replace(ONE, **fields))
    assert str(caught.value).startswith(f"tasks.mine.{problem}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    tiny_backbone(folder / "backbone")
    words = sample_words()
    rows = [(f"r{i}", f"{words[i]} film", words[-i], LABELS[i % 3]) for i in range(30)]
    (folder / "data").mkdir()
    write_table(folder / "data" / "train.csv", rows)
    write_table(folder / "data" / "test.jsonl", rows[:9])
    (folder / "x.yaml").write_text(
        """
        tasks:
          nli:
            files: {train: train.csv, dev: 20%, test: test.jsonl}
            text_columns: [premise, hypothesis]
            label_column: label
            encoding: cross
            head: classes
            class_weights: balanced
            label_smoothing: 0.1
            prediction_file: "nli-{split}.csv"
        """
    )
    return folder


def flags(folder: Path, run: Path) -> list[str]:
    return ["--config", str(folder / "x.yaml"), "--data-dir", str(folder / "data"), "--backbone",
            str(folder / "backbone"), "--output", str(run), "--rounds", "2", "--log.every", "1",
            "--round.batch-size", "4", "--log.no-tensorboard"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder) -> tuple[Path, str]:
    """A run's folder, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["train", *flags(folder, folder / "run")]) == 0
    return folder / "run", printed.getvalue()


def test_a_run_keeps_what_it_found(trained):
    run, out = trained
    assert "nli: 3 classes, 'contradiction', 'entailment', 'neutral', as found in the train" in out
    assert "nli: class weights " in out

    stored = json.loads((run / "best" / "tasks.json").read_text())["tasks"]["nli"]
    assert stored["labels"] == list(LABELS) and stored["num_classes"] == 3
    task = load_config(run / "config.yaml").tasks["nli"]
    assert (task.labels, task.num_classes) == (LABELS, 3)
    assert list(task.class_weights) == stored["class_weights"] and len(task.class_weights) == 3
    model, _ = load_model(run / "best")
    assert model.tasks["nli"] == task

    assert main(["predict", str(run), "--split", "dev", "test"]) == 0
    lines = (run / "predictions" / "nli-test.csv").read_text().splitlines()
    assert [line.split(" , ")[0] for line in lines] == [f"r{i}" for i in range(9)]
    assert {line.split(" , ")[1].strip() for line in lines} <= set(LABELS)
    assert len((run / "predictions" / "nli-dev.csv").read_text().splitlines()) == 6


def test_the_same_recipe_again_is_the_same_run(folder, trained, capsys):
    """What was found is in config.yaml."""
    first, _ = trained
    again = folder / "again"
    same = [*flags(folder, again)[:1], str(first / "config.yaml"), *flags(folder, again)[2:]]
    assert main(["train", *same]) == 0
    assert "as found in" not in capsys.readouterr().out
    heads = [(run / "best" / "heads.safetensors").read_bytes() for run in (first, again)]
    assert heads[0] == heads[1]


def test_a_run_is_resumed_by_its_recipe_which_leaves_the_classes_open(folder, trained):
    arguments = [*flags(folder, folder / "killed"), "--log.state-every", "1"]
    config = parse_run_config(arguments, "sbrrt-fast train")
    assert config.tasks["nli"].labels == ()
    kill_in_round(Trainer(config), 1)
    metrics = Trainer(replace(config, resume=True)).run()
    assert metrics["rounds"] == 2
    heads = [
        (folder / run / "best" / "heads.safetensors").read_bytes() for run in ("run", "killed")
    ]
    assert heads[0] == heads[1]


def test_built_in_tasks_are_left_as_they_are(tmp_path):
    found = complete_tasks({"sts": BUILTIN_TASKS["sts"]}, tmp_path, lambda line: pytest.fail(line))
    assert found == {"sts": BUILTIN_TASKS["sts"]}
    named = replace(ENTAILMENT, labels=LABELS)
    assert complete_tasks({"nli": named}, tmp_path)["nli"].num_classes == 3
