"""Confusion matrices, as scikit-learn counts them and as people read them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.training.scores.confusion import (
    confusion_matrix,
    confusion_record,
    confusion_text,
)
from tests.training.scored_tasks import TASKS, random_scored, scored


@pytest.mark.parametrize("kind", ["classes", "two classes", "binary"])
def test_a_matrix_is_that_of_scikit_learn(kind):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    one = random_scored(kind, 80)
    expected = metrics.confusion_matrix(one.labels, one.predictions)
    assert confusion_matrix(one).tolist() == expected.tolist()
    record = confusion_record({"task": one})["task"]
    assert record["matrix"] == expected.tolist()
    assert record["classes"] == list(range(one.config.num_labels))


def test_a_class_without_rows_has_its_row_and_column():
    one = scored(TASKS["classes"], torch.eye(4)[[0, 2]], torch.tensor([0, 0]))
    assert confusion_matrix(one).tolist() == [[1, 0, 1, 0], *[[0, 0, 0, 0]] * 3]


def test_text_has_names_with_columns_under_them():
    config = replace(TASKS["binary"], labels=("no", "certainly"))
    outputs, labels = torch.tensor([1.0] * 1200 + [-1.0]), torch.tensor([0] * 1201)
    assert confusion_text(scored(config, outputs, labels)).splitlines() == [
        "task: rows by label (downwards) and prediction (across)",
        "             no  certainly",
        "  no          1      1,200",
        "  certainly   0          0",
    ]


def test_a_long_name_is_cut_and_does_not_reach_the_terminal_raw():
    config = replace(TASKS["binary"], labels=("x" * 50, "\x1b[31m"))
    text = confusion_text(scored(config, torch.tensor([1.0]), torch.tensor([0])))
    assert "x" * 16 + "…" in text and "x" * 17 not in text and "\x1b" not in text


def test_of_many_classes_the_commonest_mistakes_are_told():
    config = replace(TASKS["classes"], num_classes=13)
    labels = torch.tensor([0, 0, 0, 5, 5, 7, 1])
    predictions = torch.tensor([4, 4, 0, 6, 6, 8, 1])
    outputs = torch.nn.functional.one_hot(predictions, 13).float()
    assert confusion_text(scored(config, outputs, labels)).splitlines() == [
        "task: the commonest mistakes, label and prediction",
        "        2  0 -> 4",
        "        2  5 -> 6",
        "        1  7 -> 8",
    ]


def test_values_have_no_matrix_and_json_none_of_very_many_classes():
    cosine = random_scored("cosine", 5)
    assert confusion_text(cosine) == ""
    config = replace(TASKS["classes"], num_classes=101)
    many = scored(config, torch.randn(3, 101), torch.tensor([0, 50, 100]))
    assert confusion_record({"sts": cosine, "many": many}) == {}
