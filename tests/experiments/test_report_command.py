"""``sbrrt-fast report`` as it is called, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from tests.experiments.made_up_run import (
    made_up_run,
    write_lines,
)
from tests.experiments.report_pages import refused, report_on, section, text_of
from tests.helpers import train_tiny


def test_a_trained_run_from_start_to_page(tmp_path, capsys):
    folder = train_tiny(tmp_path, "--profile", "--smart.weight", "1")
    capsys.readouterr()
    page = report_on(folder)
    assert capsys.readouterr().out == f"{folder / 'report.html'}: open it in a browser\n"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['dev']['overall']:.3f}" in text_of(page.find(".//header"))
    assert "Stages of a round" not in text_of(section(page, "time"))
    # The page goes when the run is replaced.
    train_tiny(tmp_path, "--overwrite")
    assert not (folder / "report.html").exists()


def test_several_runs_have_their_page_where_one_is(tmp_path, monkeypatch):
    runs = [made_up_run(tmp_path / name) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "report.html").exists()
    assert not any((run / "report.html").exists() for run in runs)


def test_what_cannot_be_used_is_one_line(tmp_path, capsys):
    run = made_up_run(tmp_path / "run")
    assert "is not the folder of a run" in refused([str(tmp_path)], capsys)
    assert "is not the folder of a run" in refused([str(tmp_path / "none")], capsys)
    assert "given twice" in refused([str(run), str(run)], capsys)
    assert "at most 8" in refused([f"{run}{i}" for i in range(9)], capsys)
    assert "name the folder of a run" in refused([], capsys)
    assert "see `sbrrt-fast report --help`" in refused(["--colour", "red"], capsys)
    assert "cannot be written" in refused([str(run), "--output", str(tmp_path)], capsys)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.json", "[]", "is not what training wrote"),
        ("metrics.json", "{", "is not what training wrote"),
        ("metrics.json", "{}", "is not what training wrote (dev: Field required)"),
        ("metrics.json", '{"dev": {}, "rounds": "x"}', "is not what training wrote (rounds: "),
        ("metrics.jsonl", "{}\n", "metrics.jsonl:1: is not a line that training wrote"),
        ("metrics.jsonl", '{"round": 1}\n{\n', "metrics.jsonl:2: "),
        ("config.yaml", "nonsense: 1\n", "unknown key 'nonsense'"),
        ("evaluation/dev-sst.jsonl", "{}\n", "dev-sst.jsonl:1: is no row of an evaluation"),
    ],
)
def test_a_damaged_file_is_named_and_the_old_page_stays(run, tmp_path, capsys, name, text, reason):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "report.html").write_text("old")
    (folder / name).write_text(text)
    assert reason in refused([str(folder)], capsys)
    assert (folder / "report.html").read_text() == "old"


def test_a_log_of_a_long_run_stays_a_small_page(tmp_path):
    folder = made_up_run(tmp_path / "run", with_rows=False)
    lines = [{"round": i, "sst/loss": 1 / i, "rounds_per_second": 1.0} for i in range(1, 20_001)]
    write_lines(folder / "metrics.jsonl", lines)
    report_on(folder)
    assert (folder / "report.html").stat().st_size < 200_000
