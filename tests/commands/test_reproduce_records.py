"""``sbrrt-fast reproduce --records``: what was trained elsewhere is shown and not trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from tests.commands.reproduced import metrics_of, quick_flags, report_of, reproduce

ROWS = ("--rows", "smart", "round-robin")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> list[str]:
    return quick_flags(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def first(shared, tmp_path_factory) -> Path:
    """An output with a run of one round of two rows."""
    output = tmp_path_factory.mktemp("first")
    assert main(reproduce(shared, "2", output, *ROWS, "--rounds", "1")) == 0
    return output


def runs_of(output: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(output)) for path in output.glob("*/*/run.json"))


def row_of(output: Path, name: str) -> dict:
    return next(row for row in report_of(output, "2")["rows"] if row["row"] == name)


def test_recorded_runs_are_shown_and_not_trained(shared, first, tmp_path, capsys):
    records, output = tmp_path / "records", tmp_path / "output"
    shutil.copytree(first / "metrics" / "smart", records / "smart")
    flags = ("--records", str(records))
    assert main(reproduce(shared, "2", output, *ROWS, "--rounds", "1", "--seeds", "2", *flags)) == 0
    assert runs_of(output) == ["round-robin/seed0", "round-robin/seed1", "smart/seed1"]
    assert f"smart/seed0: is recorded in {records}, kept" in capsys.readouterr().out
    smart = row_of(output, "smart")
    runs = [metrics_of(first / "smart" / "seed0"), metrics_of(output / "smart" / "seed1")]
    assert smart["seeds"] == [0, 1]
    assert smart["scores"]["overall"]["values"] == [run["dev"]["overall"] for run in runs]
    assert main(reproduce(shared, "2", output, "--report-only", *flags)) == 0
    assert row_of(output, "smart") == smart


def test_records_of_other_settings_are_refused_before_anything_is_trained(
    shared, first, tmp_path, capsys
):
    flags = ("--rounds", "2", "--records", str(first / "metrics"))
    assert main(reproduce(shared, "2", tmp_path, *ROWS, *flags)) == 2
    path = first / "metrics" / "smart" / "seed0.json"
    assert f"{path}: is of a run with rounds 1, not 2" in capsys.readouterr().err
    assert runs_of(tmp_path) == []


def test_records_are_not_mixed_with_runs_of_other_settings(shared, first, tmp_path, capsys):
    flags = ("--rows", "round-robin", "--rounds", "2", "--seeds", "2")
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 0
    shutil.rmtree(tmp_path / "round-robin" / "seed0")
    before = report_of(tmp_path, "2")
    flags = ("--report-only", "--records", str(first / "metrics"))
    assert main(reproduce(shared, "2", tmp_path, *flags)) == 2
    path = first / "metrics" / "round-robin" / "seed0.json"
    assert f"{path}: is of a run with rounds 1, not 2" in capsys.readouterr().err
    assert report_of(tmp_path, "2") == before
