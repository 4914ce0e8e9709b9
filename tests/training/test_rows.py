"""The rows of a scored split as JSON lines, and its mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sbrrt_fast.errors import OutputError
from sbrrt_fast.training.scores.rows import row_records, write_errors, write_rows, write_run_rows
from tests.training.scored_tasks import TASKS, random_scored, scored

NAMED = replace(TASKS["classes"], num_classes=3, labels=("entailment", "neutral", "contradiction"))


def test_a_row_has_the_user_s_own_labels():
    outputs = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
    rows = list(row_records(scored(NAMED, outputs, torch.tensor([1, 2]))))
    first = {key: rows[0][key] for key in ("id", "texts", "label", "prediction", "num_tokens")}
    assert first == {
        "id": "r0",
        "texts": ["sentence 0"],
        "label": "neutral",
        "prediction": "entailment",
        "num_tokens": 1,
    }
    assert (rows[1]["label"], rows[1]["prediction"]) == ("contradiction", "contradiction")
    assert rows[0]["probabilities"] == pytest.approx([0.786986, 0.106507, 0.106507], abs=1e-6)
    assert rows[0]["loss"] == pytest.approx(math.log(math.e**2 + 2), rel=1e-6)
    assert list(rows[0]) == [
        *("id", "texts", "label", "prediction", "probabilities", "loss", "num_tokens"),
    ]


def test_numbers_are_numbers_and_binary_classes_have_names():
    outputs, labels = torch.tensor([-1.0, 4.0]), torch.tensor([0, 0])
    row = list(row_records(scored(TASKS["binary"], outputs, labels)))[1]
    assert (row["label"], row["prediction"]) == (0, 1)
    assert row["probabilities"] == pytest.approx([0.0179862, 0.9820138], abs=1e-7)
    assert row["num_tokens"] == 3 + 4  # both sentences
    assert row["texts"] == ["sentence1 1", "sentence2 1"]
    named = replace(TASKS["binary"], labels=("no", "yes"))
    row = list(row_records(scored(named, outputs, labels)))[1]
    assert (row["label"], row["prediction"]) == ("no", "yes")


def test_values_are_the_shortest_decimals():
    one = scored(TASKS["regression"], torch.tensor([3.1, 1e-7]), torch.tensor([3.8, 0.25]))
    rows = list(row_records(one))
    assert [(row["label"], row["prediction"]) for row in rows] == [(3.8, 3.1), (0.25, 1e-7)]
    assert rows[0]["probabilities"] is None
    assert rows[0]["loss"] == pytest.approx(0.49, rel=1e-6)


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_losses_are_those_of_torch(kind):
    one = random_scored(kind, 50)
    outputs, labels = one.outputs.double(), one.labels.double()
    expected = {
        "classes": lambda: F.cross_entropy(outputs, labels.long(), reduction="none"),
        "binary": lambda: F.binary_cross_entropy_with_logits(outputs, labels, reduction="none"),
        "cosine": lambda: F.mse_loss(outputs, labels, reduction="none"),
    }
    heads = {"two classes": "classes", "regression": "cosine"}
    assert torch.allclose(one.losses, expected[heads.get(kind, kind)](), rtol=1e-6, atol=1e-9)
    told = [row["loss"] for row in row_records(one)]
    assert told == pytest.approx(one.losses.tolist(), rel=1e-6)


def test_a_loss_beyond_what_a_probability_can_say_is_finite():
    one = scored(TASKS["binary"], torch.tensor([900.0, -900.0]), torch.tensor([0, 0]))
    assert one.losses.tolist() == [900.0, 0.0]


def test_errors_are_the_wrong_rows_and_the_worst_comes_first(tmp_path):
    outputs = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 5.0, 0.0], [9.0, 0.0, 0.0]])
    one = scored(NAMED, outputs, torch.tensor([1, 2, 0, 0]))
    (path,) = write_errors(tmp_path / "new", [one])
    assert path == tmp_path / "new" / "dev-task.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["r2", "r0", "r1"]
    assert [row["loss"] for row in rows] == sorted((row["loss"] for row in rows), reverse=True)


def test_errors_of_values_leave_out_what_is_met_exactly():
    outputs, labels = torch.tensor([1.0, 2.5, 4.0, 2.5]), torch.tensor([1.0, 2.0, 0.0, 3.0])
    one = scored(TASKS["cosine"], outputs, labels)
    assert one.order_of_errors.tolist() == [2, 1, 3]  # equal losses in the file's order


def test_a_file_has_a_line_per_row_whatever_the_text(tmp_path):
    one = random_scored("binary", 3)
    texts = [("a\u2028b\x85", 'tab\t"quote"\\'), ("\u4e2d\u6587", "\x1c\n"), ("x", "y")]
    one = replace(one, task=replace(one.task, texts=texts))
    write_rows(tmp_path / "rows.jsonl", one)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines()  # splits at every line end that Unicode has
    assert len(lines) == 3 and text.endswith("\n")
    assert [tuple(json.loads(line)["texts"]) for line in lines] == texts
    assert "\u4e2d\u6587" in lines[1]


def test_rows_of_a_limited_evaluation_are_those_that_were_scored():
    one = random_scored("cosine", 9)
    few = replace(one, outputs=one.outputs[:4], predictions=one.predictions[:4])
    assert [row["id"] for row in row_records(few)] == ["r0", "r1", "r2", "r3"]
    assert few.scores()["pearson"] == pytest.approx(
        np.corrcoef(few.predictions, one.labels[:4])[0, 1]
    )


def test_what_was_there_stays_where_rows_cannot_be_written(tmp_path):
    (tmp_path / "evaluation").write_text("mine")
    with pytest.raises(OutputError, match="evaluation is a file"):
        write_run_rows(tmp_path, [random_scored("binary", 3)])
    assert (tmp_path / "evaluation").read_text() == "mine"
