"""``sbrrt-fast evaluate``: metrics asked for, rows and errors as files, labelled test sets."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sbrrt_fast.cli import main
from sbrrt_fast.commands.trained_run import TrainedRun
from sbrrt_fast.config_io import load_config
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import kill_in_round, train_tiny

TASKS = ("sst", "para", "sts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def without_libraries(monkeypatch):
    """As if neither scikit-learn nor SciPy were installed."""
    for module in ("sklearn", "sklearn.metrics", "scipy", "scipy.stats"):
        monkeypatch.setitem(sys.modules, module, None)


def refused(argv: list[str], capsys) -> str:
    """The one line on stderr of a command that ends with status 2 and prints nothing else."""
    capsys.readouterr()
    assert main(argv) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    return output.err


def rows_of(folder: Path, name: str, split: str = "dev") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}-{name}.jsonl").open(encoding="utf-8")]


def evaluated(run: Path, output: Path, *flags: str) -> dict:
    assert main(["evaluate", str(run), "--output", str(output), *flags]) == 0
    return json.loads(output.read_text())


def test_a_run_leaves_the_rows_of_its_best_model(run, tmp_path):
    before = {name: (run / "evaluation" / f"dev-{name}.jsonl").read_bytes() for name in TASKS}
    record = evaluated(run, tmp_path / "scores.json")
    after = {name: (run / "evaluation" / f"dev-{name}.jsonl").read_bytes() for name in TASKS}
    assert before == after
    assert sorted(p.name for p in (run / "evaluation").iterdir()) == sorted(
        f"dev-{name}.jsonl" for name in TASKS
    )
    for name in ("sst", "para"):
        rows = rows_of(run / "evaluation", name)
        share = np.mean([row["label"] == row["prediction"] for row in rows])
        assert share == record["dev"][name]["accuracy"]
        classes = record["confusion"][name]["classes"]
        for i, label in enumerate(classes):
            counted = [
                sum((r["label"], r["prediction"]) == (label, prediction) for r in rows)
                for prediction in classes
            ]
            assert record["confusion"][name]["matrix"][i] == counted
    values = [(row["label"], row["prediction"]) for row in rows_of(run / "evaluation", "sts")]
    expected = np.corrcoef(np.array(values, np.float32).astype(float).T)[0, 1]
    assert record["dev"]["sts"]["pearson"] == pytest.approx(expected, rel=1e-6)
    assert "sts" not in record["confusion"]


def test_metrics_are_added_where_they_fit(run, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    flags = ("--metrics", "f1", "mse")
    record = evaluated(run, tmp_path / "scores.json", *flags)
    assert [list(record["dev"][name]) for name in TASKS] == [
        ["accuracy", "f1"],
        ["accuracy", "f1"],
        ["pearson", "mse"],
    ]
    assert {n: list(v) for n, v in record["intervals"].items()} == {
        name: list(record["dev"][name]) for name in TASKS
    }
    assert (
        record["dev"]["overall"] == json.loads((run / "metrics.json").read_text())["dev"]["overall"]
    )
    assert "  sts      mse" in capsys.readouterr().out


def test_a_metric_that_fits_no_task_is_refused(tmp_path, capsys):
    run = train_tiny(tmp_path, "--config", str(only_sst(tmp_path)))
    message = refused(["evaluate", str(run), "--metrics", "mse"], capsys)
    assert "--metrics: 'mse' fits the head of no task (sst: classes)" in message


def only_sst(folder: Path) -> Path:
    path = folder / "sst.yaml"
    path.write_text("tasks: [sst]\n")
    return path


def test_errors_are_written_the_worst_first(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--errors", str(tmp_path / "errors")]) == 0
    for name in TASKS:
        rows, whole = rows_of(tmp_path / "errors", name), rows_of(run / "evaluation", name)
        losses = [row["loss"] for row in rows]
        assert losses == sorted(losses, reverse=True) and losses
        wrong = [row["id"] for row in whole if row["label"] != row["prediction"]]
        assert sorted(row["id"] for row in rows) == sorted(wrong)
    assert f"errors: {tmp_path / 'errors' / 'dev-sst.jsonl'}" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(run, capsys):
    shutil.rmtree(run / "evaluation")
    (run / "evaluation").write_text("mine")
    message = refused(["evaluate", str(run)], capsys)
    assert "evaluation is a file" in message and "--no-rows leaves that folder alone" in message
    assert main(["evaluate", str(run), "--no-rows"]) == 0
    assert (run / "evaluation").read_text() == "mine"


def test_test_files_without_labels_cannot_be_scored(run, capsys):
    message = refused(["evaluate", str(run), "--split", "test"], capsys)
    assert "--split test: " in message and "has no labels to score there" in message


def test_labelled_test_files_are_scored_and_the_others_named(run, tmp_path, monkeypatch, capsys):
    original = TrainedRun.load

    def load(self, split, names=None):
        """Dev rows as a test split, that of para without labels."""
        tasks = {n: replace(t, split="test") for n, t in original(self, "dev", names).items()}
        return tasks | {"para": replace(tasks["para"], labels=None)}

    monkeypatch.setattr(TrainedRun, "load", load)
    record = evaluated(run, tmp_path / "scores.json", "--split", "test")
    assert set(record["test"]) == {"sst", "sts", "overall"}
    dev = json.loads((run / "metrics.json").read_text())["dev"]
    assert record["test"]["sst"] == dev["sst"] and record["test"]["sts"] == dev["sts"]
    assert (run / "evaluation" / "test-sst.jsonl").exists()
    assert not (run / "evaluation" / "test-para.jsonl").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("para is not scored: its rows have no labels") == 1


def test_rows_go_with_the_run_they_are_of(tmp_path):
    run = train_tiny(tmp_path)
    assert main(["evaluate", str(run), "--split", "train"]) == 0
    (run / "evaluation" / "mine.txt").write_text("x")
    train_tiny(tmp_path, "--overwrite", "--config", str(only_sst(tmp_path)))
    names = sorted(path.name for path in (run / "evaluation").iterdir())
    assert names == ["dev-sst.jsonl", "mine.txt"]


@pytest.mark.parametrize("best_round", [2, 5])
def test_a_resumed_run_leaves_the_same_rows(best_round, tmp_path, monkeypatch):
    original = Trainer._scores

    def scores(self, model, limit):
        is_best = self.progress.cursor.round == best_round
        return original(self, model, limit) | {"overall": 0.9 if is_best else 0.1}

    monkeypatch.setattr(Trainer, "_scores", scores)
    flags = ("--rounds", "5", "--log.evaluate-every", "1", "--log.state-every", "4")
    whole = train_tiny(tmp_path, *flags)
    config = replace(load_config(whole / "config.yaml"), output=tmp_path / "cut")
    kill_in_round(Trainer(config, log=lambda line: None), 4)
    assert not (tmp_path / "cut" / "evaluation").exists()
    metrics = Trainer(replace(config, resume=True), log=lambda line: None).run()
    expected = json.loads((whole / "metrics.json").read_text())
    assert metrics["best_round"] == expected["best_round"] == best_round
    assert metrics["intervals"] == expected["intervals"]
    for name in TASKS:
        assert metrics["dev"][name] == expected["dev"][name]
        assert rows_of(whole / "evaluation", name) == rows_of(tmp_path / "cut/evaluation", name)


@pytest.mark.usefixtures("without_libraries")
def test_a_run_needs_no_library_for_its_own_metrics(tmp_path, capsys):
    run = train_tiny(tmp_path)
    assert main(["evaluate", str(run), "--metrics", "mse", "pearson"]) == 0
    message = refused(["evaluate", str(run), "--metrics", "spearman"], capsys)
    assert "tasks.sts: metric 'spearman' needs scipy" in message and "pip install scipy" in message


@pytest.mark.usefixtures("without_libraries")
def test_a_run_that_asks_for_one_stops_before_it_starts(tmp_path, capsys):
    train_tiny(tmp_path)
    capsys.readouterr()
    arguments = ["train", "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "new")]
    arguments += ["--backbone", str(tmp_path / "backbone"), "--tasks.sst.metric", "f1"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "tasks.sst: metric 'f1' needs scikit-learn" in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
