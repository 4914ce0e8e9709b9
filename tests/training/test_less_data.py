"""Runs with ``train_rows`` and ``label_noise``: their lengths, records, resumption and models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import kill_in_round, train_tiny

LESS = ["--tasks.sst.train-rows", "12", "--tasks.para.train-rows", "1000"]
LESS += ["--tasks.sts.train-rows", "8", "--tasks.sts.label-noise", "0.5"]
LESS += ["--tasks.sst.label-noise", "0.25", "--tasks.sst.class-weights", "balanced"]
TRAIN_DATA = {
    "sst": {"rows": 12, "noisy_labels": 3},
    "para": {"rows": 24, "noisy_labels": 0},
    "sts": {"rows": 8, "noisy_labels": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("less"), *LESS)


def quiet(config, **fields) -> Trainer:
    return Trainer(replace(config, **fields), log=lambda line: None)


def test_a_run_says_what_it_was_trained_on(tmp_path, capsys):
    run = train_tiny(tmp_path, *LESS)
    said = capsys.readouterr().out.splitlines()
    lines = [
        "sst train: 12 of 24 rows (train_rows), 3 of 12 labels replaced (label_noise 0.25)",
        "para train: all 24 rows (train_rows is 1,000)",
        "sts train: 8 of 24 rows (train_rows), 4 of 8 labels replaced (label_noise 0.5)",
    ]
    assert [line for line in said if line in lines] == lines
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["train_data"] == TRAIN_DATA
    card = (run / "best" / "README.md").read_text()
    assert all(f"- {line}\n" in card for line in lines)
    assert "| sst | train | ids-sst-train.csv | 12 | 0 | 0 |" in card
    record = json.loads((run / "best" / "tasks.json").read_text())["tasks"]["sst"]
    assert (record["train_rows"], record["label_noise"]) == (12, 0.25)


def test_epochs_units_and_weights_are_of_the_rows_taken(run):
    config = load_config(run / "config.yaml")
    trainer = quiet(config, rounds=None, epochs=3)
    assert trainer.rounds_per_epoch == 2 and trainer.num_rounds == 6  # sts: 8 rows of 4 a round
    labels = trainer.train_tasks["sst"].labels.long()
    counts = torch.bincount(labels, minlength=5).tolist()
    weights = [12 / (5 * count) for count in counts]
    assert trainer.config.tasks["sst"].class_weights == pytest.approx(weights)
    head = replace(config.tasks["sts"], head="regression")
    trainer = quiet(config, tasks={"sts": head})
    units, labels = trainer.model.label_units("sts"), trainer.train_tasks["sts"].labels
    torch.testing.assert_close(units.mean, labels.double().mean())
    assert len(labels) == 8 and trainer.dev_tasks["sts"].num_examples == 24


def test_the_runs_seed_changes_no_row(run):
    config = load_config(run / "config.yaml")
    one, other = quiet(config), quiet(config, seed=7)
    for name in TRAIN_DATA:
        a, b = one.train_tasks[name], other.train_tasks[name]
        assert list(a.ids) == list(b.ids) and torch.equal(a.labels, b.labels)


def test_a_killed_run_goes_on_with_the_same_rows(run, tmp_path):
    config = load_config(run / "config.yaml")
    log = replace(config.log, state_every=1)
    config = replace(config, output=tmp_path / "run", log=log)
    kill_in_round(Trainer(config, log=lambda line: None), 2)
    for field, value in (("train_rows", 11), ("label_noise", 0.3)):
        changed = replace(config.tasks["sst"], **{field: value})
        tasks = config.tasks | {"sst": changed}
        with pytest.raises(SbrrtError, match=rf"tasks\.sst\.{field}"):
            quiet(config, resume=True, tasks=tasks).run()
    metrics = quiet(config, resume=True).run()
    whole = json.loads((run / "metrics.json").read_text())
    assert metrics["dev"] == whole["dev"] and metrics["train_data"] == TRAIN_DATA
    for name in ("heads.safetensors", "model.safetensors"):
        paths = [folder / "last" / name for folder in (run, tmp_path / "run")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_train_split_of_a_run_is_what_it_was_trained_on(run, tmp_path):
    output = tmp_path / "train.json"
    assert main(["evaluate", str(run), "--split", "train", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["num_examples"] == {name: x["rows"] for name, x in TRAIN_DATA.items()}
    task = quiet(load_config(run / "config.yaml")).train_tasks["sst"]
    rows = [json.loads(line) for line in (run / "evaluation" / "train-sst.jsonl").open()]
    assert [row["id"] for row in rows] == list(task.ids)
    assert [row["label"] for row in rows] == task.labels.tolist()


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--tasks.sst.train-rows", "0", "tasks.sst.train_rows: must be at least 1, got 0"),
        ("--tasks.sst.label-noise", "1", "tasks.sst.label_noise: must be at least 0 and below 1"),
    ],
)
def test_values_that_make_no_sense(run, flag, value, expected, capsys):
    assert main(["train", "--config", str(run / "config.yaml"), flag, value]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
