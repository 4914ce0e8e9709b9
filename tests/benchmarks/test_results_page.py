"""docs/results.md is what the committed records give, and nothing else."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jinja2
import pytest

from benchmarks.results_page import __main__ as command
from benchmarks.results_page.figures import data_curves, figures, noise_curves, size_curves
from benchmarks.results_page.page import TEMPLATE, page
from benchmarks.results_page.results import RECORDS, SPEED, Perturbed, Results, shared_settings
from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.experiments.record import save_record
from tests.experiments.made_up_records import MACHINE, made_up_record

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = Path(command.__file__).parent
COMMAND = "sbrrt-fast reproduce --table {} --rows {} --seeds 3 --data-dir DIR --epochs 2"


def made_up(folder: Path, rows: dict[str, list[float]], table: str = "2", **values) -> Results:
    """Records of rows with a run per score of SST, and what they give."""
    for row, scores in rows.items():
        for seed, sst in enumerate(scores):
            each = {"sst": sst, "para": 0.7, "sts": 0.8}
            each = {"command": COMMAND.format(table, row), **values, "scores": each}
            save_record(made_up_record(row, seed, **each), folder / RECORDS)
    return Results(folder)


def perturbed(folder: Path, row: str, scores: list[dict[str, float]]) -> None:
    path = folder / "robustness" / row
    path.mkdir(parents=True)
    for seed, by_change in enumerate(scores):
        record = {"row": row, "run_seed": seed}
        record["scores"] = {change: {"overall": x} for change, x in by_change.items()}
        (path / f"seed{seed}.json").write_text(json.dumps(record))


def test_the_page_is_what_the_records_give():
    results = Results(DOCS / "results")
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert text == page(results), "make results, and commit what it wrote"
    pictures = {path.stem for path in (DOCS / "results").glob("*.png")}
    assert pictures == set(figures(results))
    assert set(re.findall(r"\]\(results/([\w-]+)\.png\)", text)) == pictures


def test_committed_records_are_of_runs_that_belong_together():
    results = Results(DOCS / "results")
    for row, settings in shared_settings(results.runs).items():
        assert len(settings) <= 1, row
    timed = [record for records in results.timed.values() for record in records]
    assert all(record.is_alone for record in timed)
    for record in (*results.records, *timed):
        assert record.command and record.rounds > 0 and not record.is_sample, record.row
        assert not re.search(r"(?<!\w)/\w", record.command), "a folder of somebody's machine"


def test_no_score_stands_in_the_text_itself():
    """Numbers with a decimal point come from records, but for those of measurements that have
    their command beside them."""
    text = (SOURCE / TEMPLATE).read_text(encoding="utf-8")
    prose = re.sub(r"{{.*?}}|{%.*?%}", "", text, flags=re.S)
    assert re.findall(r"\d*\.\d+", prose) == []
    sections = (SOURCE / "measured.md").read_text(encoding="utf-8").split("\n## ")
    assert all("\n    sbrrt-fast " in section for section in sections)


def test_values_are_those_of_the_records(tmp_path):
    rows = {"round-robin": [0.4, 0.5, 0.45], "sbrrt": [0.5, 0.61, 0.55], "sbrrt-paper": [0.3]}
    text = page(made_up(tmp_path, rows))
    lines = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    (row, *_) = [line for line in lines if line[0] == "sbrrt"]
    assert row[1:3] == ["0.553 ± 0.055", "0.505"]
    _, difference, *_ = [line for line in lines if line[0] == "sbrrt"]
    assert difference[:3] == ["sbrrt", "round-robin", "3"]
    assert difference[3].startswith("+0.103 [+0.089, +0.118]")
    assert "- above their base, zero outside the interval: `sbrrt` (+0.034 [" in text
    assert "- below it: none" in text
    assert "sbrrt-paper` (" not in text  # one seed, and no base
    assert "(r = " not in text  # sst-pretrain has no run
    changed = page(made_up(tmp_path, {"sbrrt": [0.4, 0.41, 0.55]}))
    assert changed != text and "- not told apart by these seeds: `sbrrt` (" in changed


def test_every_table_with_runs_of_its_own_has_a_section_and_a_picture(tmp_path):
    shared = {"round-robin": [0.4, 0.5], "sst-pretrain": [0.3, 0.35]}
    assert set(made_up(tmp_path, shared).tables) == {"1", "2"}
    results = made_up(tmp_path, {"sbrrt-lambda-3": [0.5], "best": [0.6]})
    text = page(results)
    assert set(results.tables) == {"1", "2", "radius", "ingredients"}
    for name, table in results.tables.items():
        assert f"## {table.title}\n" in text and f"(results/table-{name}.png)" in text
    assert "(r = 0.800 ± 0.000, the row with a" in text


def test_commands_of_rows_with_the_same_flags_are_one(tmp_path):
    made_up(tmp_path, {"round-robin": [0.4, 0.5], "sbrrt": [0.5] * 3}, table="radius")
    own = {"command": "sbrrt-fast reproduce --table 2 --rows smart --seeds 1 --rounds 9"}
    results = made_up(tmp_path, {"smart": [0.4]}, **own)
    assert results.commands("2") == [
        "sbrrt-fast reproduce --table 2 --rows smart --seeds 1 --rounds 9",
        "sbrrt-fast reproduce --table 2 --rows round-robin sbrrt --seeds 3 --data-dir DIR "
        "--epochs 2",
    ]
    assert results.commands("radius") == [
        "sbrrt-fast reproduce --table radius --seeds 3 --data-dir DIR --epochs 2"
    ]


def test_curves(tmp_path):
    def of(rows, **settings):
        return made_up(
            tmp_path, rows, settings={k.replace("__", "."): v for k, v in settings.items()}
        )

    of({"sbrrt": [0.5]})
    made_up(tmp_path, {"round-robin": [0.4, 0.44]}, means={}, settings={})
    of({"sbrrt-100-rows": [0.3]}, tasks__sts__train_rows=100)
    of({"round-robin-smart-1000-rows": [0.35]}, tasks__sts__train_rows=1000)
    of({"sbrrt-noise-0.4": [0.2]}, tasks__sst__label_noise=0.4)
    for row, size in (
        ("sbrrt-radius-0.2", 8.0),
        ("sbrrt-radius-0.002", 0.01),
        ("sbrrt-lambda-3", 2.0),
    ):
        made_up(tmp_path, {row: [0.5]}, means={"sst/smart": size})
    results = Results(tmp_path)
    places = {name: [x for x, _ in line] for name, line in data_curves(results).items()}
    assert places["sbrrt"] == [100, 10_000] and places["round-robin"] == [10_000]
    assert places["round-robin-smart"] == [1000] and places["round-robin-teacher"] == []
    noise = {name: [x for x, _ in line] for name, line in noise_curves(results).items()}
    assert noise["sbrrt"] == [0.0, 0.4]
    sizes = {name: [x for x, _ in line] for name, line in size_curves(results).items()}
    assert sizes == {"another radius": [0.01, 0.25, 8.0], "another lambda": [0.25, 2.0]}
    drawn = figures(results)
    assert {"radius", "data", "noise"} <= set(drawn)
    band = drawn["radius"].axes[0].patches[0].get_extents()
    plain = next(r for r in results.report("2").rows if r.row.name == "round-robin")
    low, high = plain.scores["overall"].interval
    assert drawn["radius"].axes[0].transData.inverted().transform(band)[:, 1] == pytest.approx(
        [low, high]
    )
    (line,) = [c for c in drawn["data"].axes[0].containers if c.get_label() == "sbrrt"]
    assert list(line.lines[0].get_xdata()) == [100, 10_000]


def test_speeds_may_come_from_runs_of_their_own(tmp_path):
    busy = {"machine": MACHINE | {"other_cores": 1.5}, "rounds_per_second": 9.0}
    made_up(tmp_path, {"round-robin": [0.4], "sbrrt": [0.5]}, **busy)
    assert "times slower" not in page(Results(tmp_path))
    for row, speed in (("round-robin", 4.0), ("sbrrt", 2.5)):
        record = made_up_record(row, 0, {"sst": 0.123}, rounds_per_second=speed, rounds=50)
        save_record(record, tmp_path / SPEED)
    text = page(Results(tmp_path))
    assert "| sbrrt | 2.50 ± — | 1.45 | round-robin | 1.60 | 1.52 |" in text
    assert "    sbrrt-fast reproduce --table 2 --seeds 1\n" in text
    processor, threads = MACHINE["processor"], MACHINE["threads"]
    assert f"had the machine for themselves ({processor}, {threads} thread(s))" in text
    assert "0.123" not in text and "| minilm | fp32 | 10 |  |" in text


def test_robustness(tmp_path):
    made_up(tmp_path, {"sbrrt": [0.4]})
    perturbed(tmp_path, "sbrrt", [{"clean": 0.7, "typos": 0.6}, {"clean": 0.8, "typos": 0.64}])
    results = Results(tmp_path)
    assert results.robustness_table() == [
        ["row", "seeds", "clean", "typos"],
        ["sbrrt", "2", "0.750 ± 0.071", "-0.130 ± 0.042"],
    ]
    assert "(results/robustness.png)" in page(results) and "robustness" in figures(results)
    assert results.robustness_commands() == ["sbrrt-fast robustness runs/reproduce"]


def test_the_command_of_robustness_has_its_dev_rows(tmp_path):
    results = made_up(tmp_path, {"sbrrt": [0.6]})
    results.perturbed = [Perturbed("sbrrt", 0, {"clean": 0.7, "typos": 0.6}, 1000)]
    assert "\n    sbrrt-fast robustness runs/reproduce --dev-rows 1000\n" in page(results)


def test_a_value_without_a_run_is_an_error(tmp_path, monkeypatch):
    results = made_up(tmp_path, {"sbrrt": [0.4]})
    with pytest.raises(KeyError, match="no run of round-robin"):
        results.score("round-robin")
    with pytest.raises(KeyError, match="no seed in common"):
        results.difference("sbrrt", "round-robin")
    assert results.minutes("sbrrt") == "1.5"
    with pytest.raises(KeyError):
        results.minutes("round-robin")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string("{{ results.x }}")
    with pytest.raises(jinja2.UndefinedError):
        template.render(results=results)


def test_a_file_that_is_no_record_is_named(tmp_path):
    path = tmp_path / RECORDS / "sbrrt" / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"row": "sbrrt"}')
    with pytest.raises(SbrrtError, match=r"seed0\.json: is no record of a run"):
        Results(tmp_path)


def test_the_command_takes_records_over_and_makes_the_page(tmp_path, monkeypatch, capsys):
    docs, runs = tmp_path / "docs", tmp_path / "runs"
    (docs / "results").mkdir(parents=True)
    (docs / "results" / "table-old.png").write_bytes(b"")
    made_up(runs, {"sbrrt": [0.4, 0.5], "round-robin": [0.3, 0.35]})
    perturbed(tmp_path, "sbrrt", [{"clean": 0.7, "typos": 0.6}])
    folders = [str(runs), str(tmp_path / "robustness")]
    monkeypatch.setattr(sys, "argv", ["x", *folders, "--docs", str(docs)])
    assert command.main() == 0
    assert f"{runs}: 4 records" in capsys.readouterr().out
    results = Results(docs / "results")
    assert (docs / "results.md").read_text() == page(results)
    assert {path.stem for path in (docs / "results").glob("*.png")} == set(figures(results))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "nothing"), "--docs", str(docs)])
    assert command.main() == 2 and "has no records" in capsys.readouterr().err
