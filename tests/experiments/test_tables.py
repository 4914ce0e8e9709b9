"""The tables' rows, and the numbers of a report: means, differences by seed, speeds."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.experiments.plots import table_figure
from sbrrt_fast.experiments.record import (
    backbone_name,
    read_record,
    record_path,
    save_record,
    settings_of,
)
from sbrrt_fast.experiments.report import Report, RowResult
from sbrrt_fast.experiments.statistics import Spread, paired_difference
from sbrrt_fast.experiments.table_rows import TABLES
from sbrrt_fast.experiments.tables import pick_rows, row_config
from sbrrt_fast.recipe_files import recipes_folder
from tests.experiments.made_up_records import MACHINE, made_up_record

ROWS = [row for table in TABLES.values() for row in table.rows]
LOUD = "THESE NUMBERS MEAN NOTHING"


def settings(name: str) -> dict:
    """All settings of a row's runs."""
    row = next(row for row in ROWS if row.name == name)
    return config_leaves(row_config(row, recipes_folder(), [], "x"))


def report(table: str, scores: dict[str, list], **values) -> Report:
    """A report on rows with a run per entry of their list; an entry has a score per task."""
    chosen = TABLES[table]
    results = [
        RowResult(row, [made_up_record(row.name, i, s, **values) for i, s in enumerate(runs)])
        for row in pick_rows(chosen, list(scores))
        for runs in [scores[row.name]]
    ]
    return Report(chosen, results)


def test_rows_of_one_name_are_the_same_runs():
    for a, b in itertools.combinations(ROWS, 2):
        if a.name == b.name:
            assert (a.recipe, a.overrides) == (b.recipe, b.overrides)


def test_rows_of_one_table_differ():
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        rows = [repr(sorted({"recipe": r.recipe, **r.overrides}.items())) for r in table.rows]
        assert len(set(rows)) == len(rows)


def test_a_base_is_a_row_of_the_same_table():
    for table in TABLES.values():
        names = {row.name for row in table.rows}
        for row in table.rows:
            assert {row.base, row.plain} - {""} <= names - {row.name}


@pytest.mark.parametrize("row", {row.name: row for row in ROWS}.values(), ids=lambda r: r.name)
def test_every_row_can_be_configured(row):
    config = row_config(row, recipes_folder(), [], "x")
    leaves = config_leaves(config)
    assert config.recipe == row.name
    for key, value in row.overrides.items():
        if key.startswith("tasks.") and value == {}:
            assert key.removeprefix("tasks.") in config.tasks
        elif key != "tasks":
            assert leaves[key] == value


def test_paper_rows_have_the_papers_settings():
    for name in ("sst-pretrain-paper", "sst-finetune-paper", "smart-paper"):
        assert settings(name)["round.batch_size"] == 64
    for name in ("cfimdb-pretrain-paper", "cfimdb-finetune-paper", "sbrrt-paper"):
        assert settings(name)["round.batch_size"] == 8
    for row in ROWS:
        if row.name.endswith("-paper"):
            found = settings(row.name)
            assert found["epochs"] == 10 and found["rounds"] is None
            assert found["model.hidden_dropout"] == found["model.attention_dropout"] == 0.1
            is_frozen = "pretrain" in row.name
            assert found["optimizer.learning_rate"] == (1e-3 if is_frozen else 1e-5)
            assert found["mode"] == ("pretrain" if is_frozen else "finetune")
            assert found["smart.weight"] == (
                5.0 if "smart" in row.name or "sbrrt" in row.name else 0
            )
    sbrrt, plain = settings("sbrrt-paper"), settings("round-robin-paper")
    assert (sbrrt["bregman.weight"], sbrrt["bregman.beta"], sbrrt["smart.preset"]) == (
        0.8,
        0.95,
        "paper",
    )
    assert {k for k in sbrrt if sbrrt[k] != plain[k]} == {
        "recipe",
        "smart.weight",
        "bregman.weight",
    }
    fine, smart = settings("sst-finetune-paper"), settings("smart-paper")
    assert {k for k in fine if fine[k] != smart[k]} == {"recipe", "smart.weight", "smart.preset"}


def test_the_papers_ratios_of_speed():
    names = ["sst-finetune-paper", "smart-paper", "round-robin-paper", "sbrrt-paper"]
    scores = {"sst": 0.5, "para": 0.6, "sts": 0.7}
    page = report("2", {name: [scores] for name in names})
    rows = {result.row.name: result for result in page.rows}
    assert page.paper_slowdown(rows["smart-paper"]) == pytest.approx(8.09 / 3.36)
    assert page.paper_slowdown(rows["sbrrt-paper"]) == pytest.approx(2.20 / 1.45)
    assert page.paper_slowdown(rows["round-robin-paper"]) is None


def test_speeds_are_those_of_runs_that_were_alone():
    scores, names = {"sst": 0.5, "para": 0.6, "sts": 0.7}, ["round-robin", "sbrrt"]
    page = report("2", {name: [scores] * 2 for name in names})
    plain, sbrrt = page.rows
    busy = made_up_record(
        "sbrrt", 2, scores, rounds_per_second=9.0, machine=MACHINE | {"other_cores": 0.2}
    )
    unknown = made_up_record("sbrrt", 3, scores, rounds_per_second=9.0, machine={})
    slow = RowResult(
        sbrrt.row, [made_up_record("sbrrt", 0, scores, rounds_per_second=1.0), busy, unknown]
    )
    page = Report(page.table, [plain, slow])
    assert slow.rounds_per_second.values == (1.0,)
    assert page.slowdown(slow) == pytest.approx(2.5)
    lines = [line for line in page.text().splitlines() if line.startswith("sbrrt")]
    assert lines[-1].split() == ["sbrrt", "1.00", "±", "—", "1.45", "round-robin", "2.50", "1.52"]
    alone = Report(page.table, [RowResult(sbrrt.row, [busy])])
    assert alone.slowdown(alone.rows[0]) is None and "times slower" not in alone.text()


def test_paired_difference_is_the_paired_t_test():
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.7, 0.01, 5), draw.normal(0.69, 0.01, 5)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    test = stats.ttest_rel(a, b)
    assert found.num_pairs == 5 and found.mean == pytest.approx((a - b).mean())
    assert found.p_value == pytest.approx(test.pvalue)
    half = stats.t.ppf(0.975, 4) * (a - b).std(ddof=1) / np.sqrt(5)
    low, high = found.interval
    assert high - found.mean == pytest.approx(half) == pytest.approx(found.mean - low)
    assert found.is_clear == (found.p_value < 0.05)


def test_paired_differences_without_much_to_go_by():
    assert paired_difference({0: 0.5}, {1: 0.5}) is None
    assert paired_difference({0: None}, {0: 0.5}) is None
    one = paired_difference({0: 0.75, 1: 0.5}, {0: 0.5})
    assert (one.num_pairs, one.mean, one.interval, f"{one:.3f}") == (1, 0.25, None, "+0.250")
    same = paired_difference({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})
    assert (same.interval, same.p_value) == ((0.25, 0.25), None)


def test_the_interval_of_a_spread_is_the_one_sample_t_interval():
    values = (0.5, 0.75, 0.625)
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert Spread(values).interval == pytest.approx(expected)
    assert Spread((0.5,)).interval is None and Spread((0.5, None)).interval is None


def test_pictures_have_the_intervals():
    runs = [{"sst": sst, "para": 0.7, "sts": 0.8} for sst in (0.4, 0.5)]
    page = report("2", {"round-robin": runs, "sbrrt": [r | {"sts": r["sst"]} for r in runs]})
    scores, differences = table_figure(page).axes
    for axes, expected in (
        (scores, [row.scores["sst"].interval for row in page.rows]),
        (differences, [page.difference(page.rows[1], "overall").interval]),
    ):
        (bars,) = axes.containers[0].lines[2]
        drawn = [sorted(x for x, _ in segment) for segment in bars.get_segments()]
        assert drawn == [pytest.approx(bounds) for bounds in expected]


def test_numbers_of_a_report():
    runs = [{"sst": sst, "para": 0.7, "sts": 0.8} for sst in (0.4, 0.5)]
    base = [{"sst": sst, "para": 0.7, "sts": 0.7} for sst in (0.3, 0.5)]
    page = report("2", {"round-robin": base, "sbrrt": runs})
    rows = [line.split("  ") for line in page.text().splitlines() if line.startswith("sbrrt")]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0] == [
        *("sbrrt", "0.450 ± 0.071", "0.505", "0.700 ± 0.000", "0.719"),
        *("0.800 ± 0.000", "0.567", "0.650 ± 0.024", "0.597"),
    ]
    assert cells[1][:3] == ["sbrrt", "round-robin", "2"]
    assert cells[1][3].startswith("+0.050 [") and cells[1][4] == "+0.000 [+0.000, +0.000]"
    assert cells[1][5] == "+0.100 [+0.100, +0.100]"
    assert cells[2][1:] == ["2", "minilm", "fp32", "10", "1.5", "0.375", "40"]
    assert "2 seed(s)" in page.text() and LOUD not in page.text()
    row = page.to_dict()["rows"][1]
    assert row["smart"] == {"sst": 0.375, "para": None, "sts": None}
    assert row["differences"]["sts"]["mean"] == pytest.approx(0.1)


def test_table_1_has_the_handouts_values_and_no_overall_score():
    page = report("1", {"sst-finetune": [{"sst": 0.5}], "cfimdb-finetune": [{"cfimdb": 0.9}]})
    header, sst, cfimdb = page.score_table()
    assert header == ["row", "sst", "paper", "handout", "cfimdb", "paper", "handout"]
    assert sst[1:] == ["0.500 ± —", "0.531", "0.515", "", "", ""]
    assert cfimdb[4:] == ["0.900 ± —", "0.963", "0.966"]


def test_notes_are_told_once():
    scores = {"sst": 0.4, "para": 0.7, "sts": 0.8}
    page = report("2", {"round-robin": [scores] * 2}, notes=["MiniLM saw Quora"])
    assert page.text().count("MiniLM saw Quora") == 1
    assert LOUD in report("2", {"round-robin": [scores]}, is_sample=True).text()


@pytest.mark.parametrize(
    ("folder", "name"), [("mine/bert", "bert"), ("mine/last", "mine/last"), (None, "minilm")]
)
def test_a_backbone_is_named_without_its_place(tmp_path, folder, name):
    if folder:
        (tmp_path / folder).mkdir(parents=True)
    backbone = str(tmp_path / folder) if folder else "minilm"
    assert backbone_name(RunConfig(model={"backbone": backbone})) == name


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("runs/pretrained/last", "pretrained/last"), ("org/bert", "org/bert"), ("bert", "bert")],
)
def test_a_folder_that_is_gone_has_its_name_still(tmp_path, monkeypatch, backbone, name):
    monkeypatch.chdir(tmp_path)
    assert backbone_name(RunConfig(model={"backbone": backbone})) == name


def test_a_record_has_the_settings_that_are_not_the_defaults(tmp_path):
    changes = {"smart": {"weight": 2.0}, "data_dir": tmp_path, "seed": 3}
    tasks = {"sst": {}, "para": {"train": False}}
    config = RunConfig(recipe="x", tasks=tasks, output=tmp_path / "run", **changes)
    expected = {"tasks": ["sst", "para"], "smart.weight": 2.0, "tasks.para.train": False}
    assert settings_of(config) == expected


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = made_up_record("sbrrt", 3, {"sst": 0.5, "sts": None}, commit="abc")
    path = save_record(record, tmp_path)
    assert path == record_path(tmp_path, "sbrrt", 3) and read_record(path) == record


@pytest.mark.parametrize(
    ("values", "text"), [((0.5,), "0.500 ± —"), ((0.25, 0.75, 0.5), "0.500 ± 0.250")]
)
def test_spread(values, text):
    assert f"{Spread(values):.3f}" == text
    assert f"{Spread(values):+.3f}" == f"+{text}"  # the deviation has no sign
    assert Spread(values).mean == pytest.approx(statistics.mean(values))
