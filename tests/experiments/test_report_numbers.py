"""What a report computes: intervals, confusion matrices, curves and axes."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.experiments.run_report.charts import line_chart, scatter_chart, thinned
from sbrrt_fast.experiments.run_report.differences import (
    class_order,
    paired_difference,
    score_interval,
)
from sbrrt_fast.experiments.run_report.records import run_names
from sbrrt_fast.experiments.run_report.rows import EvaluatedRow, read_rows
from sbrrt_fast.experiments.run_report.scales import fit_scale
from sbrrt_fast.experiments.run_report.shapes import Curve
from sbrrt_fast.experiments.run_report.tasks import (
    by_length,
    confusion_matrix,
    confusions,
    most_wrong,
)
from sbrrt_fast.experiments.run_report.texts import MINUS, decimal, duration, with_interval
from sbrrt_fast.training.scores.metrics import accuracy, pearson
from tests.experiments.made_up_run import class_rows, value_rows, write_lines

SST, STS = BUILTIN_TASKS["sst"], BUILTIN_TASKS["sts"]


def rows_of(pairs, first_id: int = 0) -> list[EvaluatedRow]:
    """Rows of (label, prediction)."""
    return [
        EvaluatedRow(str(first_id + i), ("text",), label, prediction, None, 1.0, 3)
        for i, (label, prediction) in enumerate(pairs)
    ]


def test_rows_are_read_as_they_were_written(tmp_path):
    records = class_rows(3, num_rows=9) + value_rows(num_rows=4)
    rows = read_rows(write_lines(tmp_path / "dev-x.jsonl", records))
    assert [row.id for row in rows] == [record["id"] for record in records]
    assert [row.label for row in rows] == [record["label"] for record in records]
    assert rows[0].probability == 0.9
    assert rows[-1].probability is None
    assert rows[1].is_wrong == (records[1]["label"] != records[1]["prediction"])


def test_a_class_is_the_same_however_it_was_written_and_rows_without_a_label_are_left_out(tmp_path):
    whole, unlabelled = class_rows(2, num_rows=2)
    whole |= {"label": 1.0, "prediction": 1, "loss": None}
    unlabelled |= {"label": None, "loss": None}
    (row,) = read_rows(write_lines(tmp_path / "x.jsonl", [whole, unlabelled]))
    assert not row.is_wrong
    assert isinstance(row.label, int)
    assert math.isnan(row.loss)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"texts": "one"}, "'texts' must be a list of texts"),
        ({"label": [1]}, "'label' must be a text or a number"),
        ({"prediction": None}, "'prediction' must be a text or a number"),
        ({"num_tokens": "many"}, "invalid literal"),
        ({"probabilities": []}, "empty"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, change, reason):
    records = class_rows(2, num_rows=3)
    records[1] |= change
    path = write_lines(tmp_path / "dev-x.jsonl", records)
    with pytest.raises(DataError, match=rf"dev-x\.jsonl:2: .*{reason}.*sbrrt-fast evaluate"):
        read_rows(path)


@pytest.mark.parametrize("text", ["{", "3", "null", "[" * 100_000, '{"id": 1}', "\udc80"])
def test_a_line_that_is_no_json_object_is_named(tmp_path, text):
    path = tmp_path / "dev-x.jsonl"
    path.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=r"dev-x\.jsonl"):
        read_rows(path)


def test_the_difference_of_equal_predictions_is_zero():
    rows = rows_of([(i % 5, i % 3) for i in range(40)])
    difference = paired_difference(SST, rows, rows)
    assert (difference.value, difference.interval, difference.num_rows) == (0.0, (0.0, 0.0), 40)
    assert not difference.excludes_zero


def test_a_paired_difference_is_that_of_the_scores_and_its_interval_that_of_the_rows():
    labels = [i % 5 for i in range(400)]
    first = rows_of([(label, label if i % 2 else 4 - label) for i, label in enumerate(labels)])
    other = rows_of([(label, label if i % 4 else 4 - label) for i, label in enumerate(labels)])
    correct = [np.array([not row.is_wrong for row in rows]) for rows in (first, other)]
    difference = paired_difference(SST, first, other[::-1])
    gains = correct[1].astype(float) - correct[0]
    assert difference.value == pytest.approx(gains.mean())
    half = 1.96 * gains.std() / math.sqrt(400)
    assert difference.interval == pytest.approx(
        (gains.mean() - half, gains.mean() + half), abs=0.01
    )
    assert difference.excludes_zero


def test_only_rows_of_both_runs_with_the_same_label_are_compared():
    first = rows_of([(0, 0), (1, 1), (2, 2), (3, 0)])
    other = [*rows_of([(0, 1), (1, 1), (4, 4)]), *rows_of([(0, 0)], first_id=90)]
    difference = paired_difference(SST, first, other)
    assert difference.num_rows == 2
    assert difference.value == -0.5
    assert paired_difference(SST, first, rows_of([(0, 0)], first_id=0)) is None


def test_a_difference_of_correlations():
    first, other = (
        [EvaluatedRow(r["id"], ("x",), r["label"], r["prediction"], None, 0, 1) for r in rows]
        for rows in (value_rows(seed=1), value_rows(seed=2))
    )
    labels = torch.tensor([row.label for row in first])
    scores = [pearson(torch.tensor([r.prediction for r in rs]), labels) for rs in (first, other)]
    difference = paired_difference(STS, first, other)
    assert difference.value == pytest.approx(scores[1] - scores[0], abs=1e-6)
    low, high = difference.interval
    assert low < difference.value < high


def test_an_undefined_correlation_has_no_interval():
    constant = rows_of([(1.5, 0.1 * i) for i in range(5)])
    assert score_interval(STS, constant) is None
    assert paired_difference(STS, constant, constant) is None


def test_an_interval_covers_what_another_choice_of_rows_gives():
    """Of a model that is right on every second row, from 100 draws of 200 rows."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        right = generator.random(200) < 0.5
        rows = rows_of([(0, 0 if r else 1) for r in right])
        low, high = score_interval(SST, rows)
        covered += low <= 0.5 <= high
    assert 88 <= covered <= 100


def test_the_interval_is_that_of_the_metric():
    rows = rows_of([(i % 5, i % 5 if i % 4 else (i + 1) % 5) for i in range(200)])
    score = accuracy(
        *(torch.tensor([getattr(r, n) for r in rows]) for n in ("prediction", "label"))
    )
    low, high = score_interval(SST, rows)
    half = 1.96 * math.sqrt(score * (1 - score) / 200)
    assert (low, high) == pytest.approx((score - half, score + half), abs=0.012)


def test_confusion_matrix():
    rows = rows_of([(0, 0), (0, 0), (0, 1), (1, 0), (2, 2)])
    matrix = confusion_matrix(rows, [0, 1, 2, 3])
    assert matrix.classes == ["0", "1", "2", "3"]
    assert [[count for count, _ in row.cells] for row in matrix.rows] == [
        [2, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]
    assert matrix.rows[0].cells[1][1] == pytest.approx(1 / 3)
    assert [row.recall for row in matrix.rows] == [pytest.approx(2 / 3), 0.0, 1.0, None]
    assert matrix.precision == [pytest.approx(2 / 3), 0.0, 1.0, None]
    assert [(c.label, c.prediction, c.count) for c in confusions(rows)] == [
        ("0", "1", 1),
        ("1", "0", 1),
    ]


def test_the_order_of_classes():
    binary = replace(BUILTIN_TASKS["para"])
    assert class_order(SST, rows_of([(4, 1)])) == [0, 1, 2, 3, 4]
    assert class_order(binary, rows_of([(1, 1)])) == [0, 1]
    assert class_order(binary, rows_of([("yes", "no")])) == ["no", "yes"]
    assert class_order(SST, rows_of([(7, 1)])) == [0, 1, 2, 3, 4, 7]


def test_the_most_wrong_rows_come_first_and_right_ones_never():
    rows = [
        EvaluatedRow(str(i), (f"text {i}",), label, prediction, 0.5, loss, 3)
        for i, (label, prediction, loss) in enumerate(
            [(0, 1, 0.9), (1, 1, 9.0), (0, 1, 2.5), (0, 1, math.nan), (1, 0, 1.5)]
        )
    ]
    assert [e.id for e in most_wrong(rows, False, most=2)] == ["2", "4"]
    assert [e.id for e in most_wrong(rows, True, most=2)] == ["1", "2"]


def test_groups_of_length_hold_every_row_once():
    rows = rows_of([(0, i % 2) for i in range(50)])
    lengths = np.array([5] * 20 + list(range(6, 36)))
    is_wrong = np.array([row.is_wrong for row in rows])
    groups = by_length(rows, lengths, is_wrong)
    assert sum(group.num_rows for group in groups) == 50
    assert (groups[0].low, groups[-1].high) == (5, 35)
    assert all(a.high < b.low for a, b in itertools.pairwise(groups))
    right = sum(group.num_rows * group.value for group in groups)
    assert right == pytest.approx(25)
    (one,) = by_length(rows_of([(2.0, 5.0), (1.0, -3.0)]), np.array([7, 7]), None)
    assert one.value == pytest.approx(math.sqrt((9 + 16) / 2))


def test_a_long_curve_keeps_its_means_and_its_end():
    curve = Curve("a", 0, [(i, float(i)) for i in range(1, 1001)])
    short = thinned(curve, most=100)
    assert len(short.points) == 100
    assert short.points[-1] == (1000, pytest.approx(995.5))
    gaps = thinned(Curve("a", 0, [(i, None if i < 500 else 1.0) for i in range(1000)]), most=10)
    assert [y for _, y in gaps.points] == [None] * 5 + [1.0] * 5


def test_a_curve_breaks_where_a_value_is_missing():
    chart = line_chart("x", [Curve("a", 0, [(1, 1.0), (2, 2.0), (3, None), (4, 1.0)])])
    (line,) = chart.lines
    assert len(line.pieces) == 1
    assert len(line.pieces[0].split()) == 2
    assert len(line.dots) == 3
    assert "from 1 at round 1 to 1 at round 4" in chart.description
    assert line_chart("x", [Curve("a", 0, [(1, None), (2, math.nan)])]) is None


def test_zeros_are_left_out_of_a_logarithmic_axis():
    points = [(0, 0.0), *((i, 10.0**-i) for i in range(1, 7))]
    chart = line_chart("x", [Curve("a", 0, points)], is_log=None)
    assert chart.y.title == "log scale"
    assert len(chart.lines[0].dots) == 6
    assert line_chart("x", [Curve("a", 0, [(1, 1.0), (2, 2.0)])], is_log=None).y.title == ""


@pytest.mark.parametrize(
    "values", [[0.5], [-3.0, 4.0], [1e-9, 1e-3], [1e6, 3e6], [0.0], [1e-300, 1e-299], [7.0, 7.0]]
)
@pytest.mark.parametrize("is_log", [False, None])
def test_every_value_and_tick_is_on_the_axis(values, is_log):
    scale = fit_scale(values, 200, 10, is_log=is_log)
    places = [scale(value) for value in (*values, *scale.ticks)]
    assert all(10 <= place <= 200 for place in places)
    assert places[: len(values)] == sorted(places[: len(values)], reverse=True)
    assert scale.ticks


def test_ticks_are_round_numbers():
    assert [text for _, text in fit_scale([0, 1], 0, 1).labels()] == ["0", "0.5", "1"]
    assert [text for _, text in fit_scale([-2e4, 2e4], 0, 1).labels()] == [
        f"{MINUS}20k",
        "0",
        "20k",
    ]
    texts = [text for _, text in fit_scale([1e-6, 1e-3], 0, 1, is_log=True).labels()]
    assert texts == ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³"]


@pytest.mark.parametrize("num_rows", [10, 5000])
def test_a_scatter_of_many_rows_is_shaded(num_rows):
    labels = np.random.default_rng(0).normal(size=num_rows)
    chart = scatter_chart("x", labels, labels + 0.5, 0)
    assert bool(chart.dots) == (num_rows == 10)
    assert bool(chart.cells) == (num_rows == 5000)
    assert len(chart.cells) <= 1600
    assert "is 0.5." in chart.description


def test_names_of_runs():
    assert run_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert run_names([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]
    with pytest.raises(ConfigError, match="given twice"):
        run_names([Path("runs/a"), Path("runs/b/../a")])


def test_numbers_as_text():
    assert decimal(-0.5) == f"{MINUS}0.500"
    assert with_interval(0.5, (-0.25, 1.0)) == f"0.500, 95% interval {MINUS}0.250 to 1.000"
    assert [duration(s) for s in (1.25, 65.2, 7322)] == ["1.2 s", "1 min 5 s", "2 h 2 min"]


def test_rows_keep_unicode(tmp_path):
    record = class_rows(2, num_rows=1)[0] | {"texts": ["naïve\u2028\x07 ☃"]}
    path = tmp_path / "dev-x.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    (row,) = read_rows(path)
    (example,) = most_wrong([replace(row, prediction=1 - row.label)], False)
    assert example.texts == ["naïve \\x07 ☃"]
