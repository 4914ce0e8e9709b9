"""A correlation that does not exist is told as such, from the metric to tables and plots."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.commands.reproduce import write_report
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.experiments.record import RunRecord, record_of
from sbrrt_fast.experiments.report import Report, RowResult
from sbrrt_fast.experiments.statistics import Spread
from sbrrt_fast.experiments.table_rows import TABLES
from sbrrt_fast.experiments.tables import pick_rows, read_run
from sbrrt_fast.training.scores.metrics import is_better, overall, pearson, why_undefined
from sbrrt_fast.training.scores.table import (
    flatten_scores,
    format_scores,
    score_table,
    undefined_notes,
)
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import kill_in_round, read_log, small_sample, train_tiny

STS = BUILTIN_TASKS["sts"]
SCORES = {
    "sst": {"accuracy": 0.5},
    "sts": {"pearson": None, "undefined": "all labels are 3"},
    "overall": None,
}
NOTE = "sts/pearson is undefined: all labels are 3, so there is no overall score"


@pytest.mark.parametrize(
    ("predictions", "labels", "reason"),
    [
        ([0.1, 0.2, 0.3], [3.0, 3.0, 3.0], "all labels are 3"),
        ([2.5, 2.5], [1.0, 3.0], "all predictions are 2.5"),
        ([2.5, 2.5], [1.0, 1.0], "all labels are 1"),
        ([1.0], [1.0], "there is only one row"),
        ([1.0, math.nan], [1.0, 2.0], "some predictions are not finite"),
        ([1.0, -math.inf], [1.0, 2.0], "some predictions are not finite"),
        ([1.0, 2.0], [math.nan, 2.0], "some labels are not finite"),
    ],
)
def test_why_a_correlation_does_not_exist(predictions, labels, reason):
    x, y = torch.tensor(predictions), torch.tensor(labels)
    assert pearson(x, y) is None
    assert why_undefined(x, y) == reason


def test_one_ulp_is_enough_to_be_defined():
    x = torch.tensor([2.5, 2.5, 2.5])
    x[1] = torch.nextafter(x[1], torch.tensor(3.0))
    y = torch.tensor([0.0, 3.0, 0.0])
    assert why_undefined(x, y) is None
    assert pearson(x, y) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"sst": 0.3, "para": 0.6, "sts": None}, None),
        ({"sst": 0.3, "para": 0.6, "sts": {"pearson": None, "undefined": "why"}}, None),
        ({"own": {"pearson": None, "undefined": "why"}, "sst": 0.5}, None),
        ({"sst": 0.3, "para": 0.6, "sts": 0.9, "own": {"pearson": None}}, 0.6),  # not counted
    ],
)
def test_there_is_no_mean_without_a_task_that_counts(scores, expected):
    assert overall(scores) == expected


@pytest.mark.parametrize(
    ("score", "best", "expected"),
    [
        (0.1, None, True),
        (None, None, True),  # nothing is defined: the latest is kept
        (None, -0.5, False),
        (-0.4, -0.5, True),
        (0.5, 0.5, False),
    ],
)
def test_which_evaluation_is_best(score, best, expected):
    assert is_better(score, best) is expected


def test_lines_and_tables_say_it():
    table = score_table(SCORES, {"sst": 4, "sts": 5}).splitlines()
    assert [row.split() for row in table[:4]] == [
        ["task", "metric", "score", "rows"],
        ["sst", "accuracy", "0.5000", "4"],
        ["sts", "pearson", "—", "5"],
        ["overall", "—"],
    ]
    assert table[4:] == [NOTE]
    line = format_scores(SCORES)
    assert line == f"sst/accuracy 0.5000  sts/pearson —  overall —  ({NOTE})"
    flat = flatten_scores(SCORES)
    assert list(flat) == ["sst/accuracy", "sts/pearson", "overall"]
    assert flat["sst/accuracy"] == 0.5 and math.isnan(flat["overall"])


def test_a_task_that_does_not_count_leaves_the_overall_score():
    notes = undefined_notes({"own": {"pearson": None, "undefined": "why"}, "overall": 0.5})
    assert notes == ["own/pearson is undefined: why"]


@pytest.fixture
def data(tmp_path) -> Path:
    """A sample whose sts dev labels are all the same."""
    data = small_sample(tmp_path / "data", num_rows=8)
    set_labels(data, lambda i: "3.0")
    return data


def set_labels(data: Path, label) -> None:
    path = data / STS.files["dev"]
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    column = rows[0].index(STS.label_column)
    for i, row in enumerate(rows[1:]):
        row[column] = label(i)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)


def test_a_run_ends_with_its_last_model_as_best(tmp_path, data, capsys):
    run = train_tiny(tmp_path, "--rounds", "3", "--log.evaluate-every", "1", "--log.tensorboard")
    assert NOTE in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["dev"]["sts"] == {"pearson": None, "undefined": "all labels are 3"}
    assert metrics["dev"]["overall"] is None
    assert metrics["best_round"] == 3
    evaluations = [record for record in read_log(run) if "dev/overall" in record]
    assert [r["dev/overall"] for r in evaluations] == [None, None, None]
    assert all(r["dev/sts/pearson"] is None and r["dev/sst/accuracy"] >= 0 for r in evaluations)
    for name in ("heads.safetensors", "tasks.json"):
        assert (run / "best" / name).read_bytes() == (run / "last" / name).read_bytes()

    scores = tmp_path / "scores.json"
    assert main(["evaluate", str(run), "--output", str(scores)]) == 0
    assert NOTE in capsys.readouterr().out.splitlines()
    assert json.loads(scores.read_text())["dev"] == metrics["dev"]


def test_a_defined_score_beats_later_ones_that_are_not(tmp_path, monkeypatch):
    small_sample(tmp_path / "data", num_rows=8)
    overalls = iter([None, 0.2, None, 0.1])
    original = Trainer._scores

    def scores(self, model, limit):
        return original(self, model, limit) | {"overall": next(overalls)}

    monkeypatch.setattr(Trainer, "_scores", scores)
    run = train_tiny(tmp_path, "--rounds", "4", "--log.evaluate-every", "1")
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["best_round"], metrics["dev"]["overall"]) == (2, 0.2)


def test_an_undefined_best_survives_a_saved_state(tmp_path, data):
    run = train_tiny(tmp_path, "--rounds", "2", "--log.evaluate-every", "1")
    config = load_trainer_config(run, rounds=4, log_state=2)
    trainer = Trainer(dataclasses.replace(config, output=tmp_path / "cut"), log=lambda line: None)
    kill_in_round(trainer, 3)
    again = dataclasses.replace(config, output=tmp_path / "cut", resume=True)
    metrics = Trainer(again, log=lambda line: None).run()
    assert (metrics["best_round"], metrics["dev"]["overall"]) == (4, None)


def load_trainer_config(run: Path, rounds: int, log_state: int):
    from sbrrt_fast.config_io import load_config

    overrides = {"rounds": rounds, "log.state_every": log_state}
    return load_config(run / "config.yaml", overrides)


def record(run: Path) -> RunRecord:
    return record_of(read_run(run), "sbrrt")


def test_reports_and_plots_take_an_undefined_score(tmp_path, data):
    run = train_tiny(tmp_path, "--rounds", "2", "--log.evaluate-every", "1")
    set_labels(data, lambda i: str(i % 5))
    defined = train_tiny(tmp_path, "--rounds", "2", "--output", str(tmp_path / "defined"))
    table = TABLES["2"]
    rows = pick_rows(table, ["smart", "round-robin"])
    results = [
        RowResult(rows[0], [record(run), record(defined.parent / "defined")]),
        RowResult(rows[1], [record(run)]),
    ]
    report = Report(table, results)
    text = report.text()
    assert "sts/pearson is undefined: all labels are 3" in text
    line = next(line for line in text.splitlines() if line.startswith("round-robin"))
    assert line.split().count("undefined") == 2  # sts and overall
    scores = report.to_dict()["rows"][0]["scores"]["sts"]
    assert scores["mean"] is None and scores["values"][0] is None and scores["values"][1]
    for path in write_report(report, tmp_path / "report"):
        assert path.stat().st_size > 0
    json.loads((tmp_path / "report" / "table-2.json").read_text(), parse_constant=pytest.fail)


def test_a_spread_of_an_undefined_value():
    assert f"{Spread((0.5, None)):.3f}" == "undefined"
    assert Spread((0.5, None)).to_dict() == {"mean": None, "sd": None, "values": [0.5, None]}
