"""Runs beside one another on a report's page."""

import pytest

from sbrrt_fast.experiments.run_report.texts import MINUS
from tests.experiments.made_up_run import (
    METRICS,
    TASKS,
    class_rows,
    made_up_run,
)
from tests.experiments.report_pages import report_on, section, text_of


def test_runs_are_compared_with_paired_intervals(comparison):
    part = section(comparison, "comparison")
    rows = [[text_of(cell) for cell in row] for row in part.find(".//tbody")]
    expected = [[n, METRICS[n], s] for n in TASKS for s in ("seed-1", "seed-2")]
    assert [row[:3] for row in rows] == expected
    for *_, difference, interval in rows:
        value, low, high = (
            float(text.replace(MINUS, "-")) for text in (difference, *interval.split()[:3:2])
        )
        assert low <= value <= high
        assert interval.endswith("includes 0" if low <= 0 <= high else "excludes 0")
    first, other = ([r["label"] == r["prediction"] for r in class_rows(5, seed=s)] for s in (0, 1))
    expected = (sum(other) - sum(first)) / 80
    assert float(rows[0][3].replace(MINUS, "-")) == pytest.approx(expected, abs=6e-4)


def test_runs_that_differ_in_their_seed_alone_have_a_mean(comparison):
    table = section(comparison, "scores").find(".//table")
    assert text_of(table.find("./thead/tr")[-1]) == "mean ± sd"
    assert text_of(table.find("./tbody/tr")[-1]) == "0.512 ± 0.000"


def test_runs_of_other_recipes_have_none(tmp_path):
    runs = [made_up_run(tmp_path / n, weight=w, seed=3) for n, w in (("a", 1.0), ("b", 0.0))]
    page = report_on(*runs, output=tmp_path / "page.html")
    assert "mean ± sd" not in text_of(section(page, "scores"))
    recipe = section(page, "recipe").find(".//tbody")
    assert [[text_of(cell) for cell in row] for row in recipe] == [["smart.weight", "1.0", "0.0"]]


def test_runs_of_other_tasks_are_compared_in_what_they_share(tmp_path):
    runs = [
        made_up_run(tmp_path / "both", with_rows=True),
        made_up_run(tmp_path / "one", tasks={"sst": TASKS["sst"]}, dev={"sst": {"accuracy": 0.25}}),
    ]
    page = report_on(*runs, output=tmp_path / "page.html")
    rows = [text_of(row.find("th")) for row in section(page, "comparison").find(".//tbody")]
    assert rows == ["sst"]
    assert "not scored" in text_of(section(page, "scores"))


def test_colours_and_dashes_tell_runs_apart(comparison):
    figure = section(comparison, "curves").find(".//figure")
    assert [g.get("class") for g in figure.iter("g")] == ["run-0", "run-1", "run-2"]
    key = section(comparison, "curves").find("./ul")
    assert [text_of(item) for item in key] == ["seed-0", "seed-1", "seed-2"]
    style = text_of(comparison.find(".//style"))
    for number in range(1, 8):
        assert f"--run-{number}:" in style
        assert f".run-{number} .curve {{ stroke-dasharray:" in style
