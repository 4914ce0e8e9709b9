"""``sbrrt-fast predict``: files in the course's format, whole, complete and in order."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.commands.predict import format_predictions, prediction_files
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError
from tests.helpers import small_sample, train_tiny

TASKS = ("sst", "para", "sts")
HEADERS = {
    "sst": "id \t Predicted_Sentiment \n",
    "para": "id \t Predicted_Is_Paraphrase \n",
    "sts": "id \t Predicted_Similiary \n",
}
VALUES = {"sst": r"[0-4]", "para": r"[01]\.0", "sts": r"-?\d+(\.\d+)?(e-\d+)?"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run trained on ``data`` beside it, where Quora's test file is missing."""
    folder = tmp_path_factory.mktemp("predict")
    small_sample(folder / "data", num_rows=31)
    (folder / "data" / BUILTIN_TASKS["para"].files["test"]).unlink()
    return train_tiny(folder, "--round.epoch-task", "sts")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may change; the data stay where they are."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def data(trained) -> Path:
    return trained.parent / "data"


def rows_of(data: Path, name: str, split: str) -> list[dict[str, str]]:
    path = data / BUILTIN_TASKS[name].files[split]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def predicted(path: Path) -> list[tuple[str, str]]:
    """The (id, value) pairs of a prediction file."""
    lines = path.read_text().splitlines()[1:]
    return [tuple(line.removesuffix(" ").split(" , ")) for line in lines]


def test_rows_are_written_in_the_course_s_format():
    ids = ["a1", "b2", "c3"]
    values = torch.tensor([0.0, 4.0, 1.0])
    text = format_predictions(BUILTIN_TASKS["sst"], ids, values)
    assert text == "id \t Predicted_Sentiment \na1 , 0 \nb2 , 4 \nc3 , 1 \n"
    text = format_predictions(BUILTIN_TASKS["para"], ids[:2], torch.tensor([1.0, 0.0]))
    assert text == "id \t Predicted_Is_Paraphrase \na1 , 1.0 \nb2 , 0.0 \n"
    text = format_predictions(BUILTIN_TASKS["sts"], ids, torch.tensor([0.1, 4.987654, -0.25]))
    assert text == "id \t Predicted_Similiary \na1 , 0.1 \nb2 , 4.987654 \nc3 , -0.25 \n"


def test_a_task_without_a_header_has_rows_alone():
    task = dataclasses.replace(BUILTIN_TASKS["sst"], prediction_header="")
    assert format_predictions(task, ["x"], torch.tensor([2.0])) == "x , 2 \n"


def test_values_come_back_as_the_same_float32():
    values = torch.randn(1000) * torch.logspace(-6, 2, 1000)
    ids = [str(i) for i in range(1000)]
    lines = format_predictions(BUILTIN_TASKS["sts"], ids, values).splitlines()[1:]
    assert [np.float32(line.split(" , ")[1]) for line in lines] == values.tolist()


def test_files_have_every_row_in_order_and_a_missing_split_is_said(run, data, capsys):
    assert main(["predict", str(run)]) == 0
    folder = run / "predictions"
    assert sorted(os.listdir(folder)) == sorted(
        f"{name}-{split}-output.csv"
        for name in TASKS
        for split in ("dev", "test")
        if (name, split) != ("para", "test")
    )
    for path in folder.iterdir():
        name, split, _ = path.name.split("-")
        text = path.read_text()
        assert text.startswith(HEADERS[name])
        body = text.removeprefix(HEADERS[name])
        assert re.fullmatch(rf"(?:[0-9a-f]{{25}} , (?:{VALUES[name]}) \n){{31}}", body), path
        assert [row_id for row_id, _ in predicted(path)] == [
            row["id"] for row in rows_of(data, name, split)
        ]
    lines = capsys.readouterr().out.splitlines()
    missing = data / "quora-test-student.csv"
    assert lines.count(f"para test: passed over, {missing} is not there") == 1
    assert f"{folder / 'sst-test-output.csv'}: 31 rows" in lines
    assert len(lines) == 1 + len(TASKS) * 2


def test_predictions_score_what_the_run_s_metrics_say(run, data):
    assert main(["predict", str(run), "--split", "dev"]) == 0
    dev = json.loads((run / "metrics.json").read_text())["dev"]
    found = {}
    for name in TASKS:
        column = BUILTIN_TASKS[name].label_column
        labels = [float(row[column]) for row in rows_of(data, name, "dev")]
        rows = predicted(run / "predictions" / f"{name}-dev-output.csv")
        values = np.array([value for _, value in rows], np.float32).astype(np.float64)
        found[name] = values, np.array(labels, np.float32).astype(np.float64)
    for name in ("sst", "para"):
        values, labels = found[name]
        assert dev[name]["accuracy"] == (values == labels).mean()
    assert dev["sts"]["pearson"] == pytest.approx(np.corrcoef(*found["sts"])[0, 1], rel=1e-9)


def test_only_the_splits_asked_for_are_written(run):
    assert main(["predict", str(run), "--split", "test", "test"]) == 0
    names = sorted(os.listdir(run / "predictions"))
    assert names == ["sst-test-output.csv", "sts-test-output.csv"]


def test_the_last_model_predicts_when_asked(run):
    shutil.rmtree(run / "best")
    assert main(["predict", str(run), "--split", "dev", "--model", "last"]) == 0
    assert len(predicted(run / "predictions" / "sts-dev-output.csv")) == 31


def test_skipped_rows_are_said_and_not_predicted(run, tmp_path, capsys):
    data = small_sample(tmp_path / "data", num_rows=9)
    path = data / BUILTIN_TASKS["para"].files["dev"]
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].rpartition("\t")[0] + "\t"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["predict", str(run), "--data-dir", str(data)]) == 1
    said, last = capsys.readouterr()
    path = run / "predictions" / "para-dev-output.csv"
    assert last.splitlines()[-1] == (
        f"sbrrt-fast predict: {path}: lacks 1 row that could not be used, the first is "
        "quora-dev.csv:4: is_duplicate is empty; correct the file and predict again"
    )
    assert (
        "quora-dev.csv: 8 rows, skipped 1 (first: quora-dev.csv:4: is_duplicate is empty)" in said
    )
    assert "para-dev-output.csv: 8 rows" in said
    kept = [row["id"] for row in rows_of(data, "para", "dev") if row["is_duplicate"]]
    found = predicted(run / "predictions" / "para-dev-output.csv")
    assert len(kept) == 8
    assert [row_id for row_id, _ in found] == kept


def test_every_file_that_lacks_rows_is_named_last(run, tmp_path):
    data = small_sample(tmp_path / "data", num_rows=9)
    for split in ("dev", "test"):
        path = data / BUILTIN_TASKS["para"].files[split]
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[5:8] = ["1\tx\x1b\ttext", "2\ty\ttext", ""]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sbrrt_fast.cli", "predict", str(run), "--data-dir", str(data)]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert told.returncode == 1
    for line, split in zip(told.stdout.splitlines()[-2:], ("dev", "test"), strict=True):
        file = BUILTIN_TASKS["para"].files[split]
        assert f"para-{split}-output.csv: lacks 2 rows that could not be used" in line
        assert f"the first is {file}:6: 3 fields where the header has " in line
        assert len(predicted(run / "predictions" / f"para-{split}-output.csv")) == 6


def test_nothing_to_predict_is_an_error(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(run), "--data-dir", str(tmp_path / "empty")]) == 2
    output = capsys.readouterr()
    assert output.out.count("passed over") == 6
    assert f"{tmp_path / 'empty'}: nothing to predict" in output.err
    assert not (run / "predictions").exists()


def test_no_split_is_an_error(run, capsys):
    assert main(["predict", str(run), "--split"]) == 2
    assert "--split: name at least one of train, dev and test" in capsys.readouterr().err


def test_a_file_that_cannot_be_replaced_stays_whole(run, monkeypatch, capsys):
    assert main(["predict", str(run), "--split", "dev"]) == 0
    path = run / "predictions" / "sst-dev-output.csv"
    path.write_text("as it was")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["predict", str(run), "--split", "dev"]) == 2
    assert f"{path}: cannot be written (No space left on device)" in capsys.readouterr().err
    assert path.read_text() == "as it was"
    assert sorted(os.listdir(path.parent)) == [f"{n}-dev-output.csv" for n in sorted(TASKS)]


@pytest.mark.parametrize(
    ("file", "splits", "message"),
    [
        ("fixed.csv", ("dev", "test"), "'fixed.csv' is also another prediction's file"),
        ("para-{split}-output.csv", ("dev",), "is also another prediction's file"),
        ("PARA-{split}-Output.CSV", ("dev",), "that differs not only in case"),
        ("..", ("dev",), "must be the name of a file, without a folder"),
        ("../{split}.csv", ("dev",), "must be the name of a file, without a folder"),
        ("/{split}.csv", ("dev",), "must be the name of a file, without a folder"),
    ],
)
def test_names_of_prediction_files_have_to_differ_and_stay_inside(file, splits, message):
    task = dataclasses.replace(BUILTIN_TASKS["sst"], prediction_file=file)
    with pytest.raises(ConfigError, match=re.escape("prediction_file: ")) as caught:
        prediction_files({"para": BUILTIN_TASKS["para"], "mine": task}, splits)
    assert str(caught.value).startswith("tasks.mine.prediction_file: ")
    assert message in str(caught.value)


def test_a_task_without_a_prediction_file_is_passed_over(run, capsys):
    path = run / "best" / "tasks.json"
    record = json.loads(path.read_text())
    record["tasks"]["sst"]["prediction_file"] = ""
    del record["tasks"]["para"]["files"]["dev"]
    path.write_text(json.dumps(record))
    assert main(["predict", str(run), "--split", "dev"]) == 0
    said = capsys.readouterr().out
    assert "sst dev: passed over, it has no prediction file (tasks.sst.prediction_file)" in said
    assert "para dev: passed over, it has no dev file (tasks.para.files.dev)" in said
    assert os.listdir(run / "predictions") == ["sts-dev-output.csv"]
