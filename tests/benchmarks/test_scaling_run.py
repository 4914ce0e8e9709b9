"""Measured runs of several processes: what they report, and that it is the same training."""

from __future__ import annotations

import json

import pytest

from benchmarks.tune import scaling_run
from benchmarks.tune.scaling_run import WARM_UPS, largest_difference, row
from tests.helpers import small_sample, tiny_backbone


def made(losses: list[float], waiting: float = 0.25, num_bytes: int = 2_000_000) -> list[dict]:
    """A rank's records; the first ones are not timed."""
    return [
        {
            "seconds": 1.0 if index >= WARM_UPS else 100.0,
            "work": 0.5,
            "waiting": waiting,
            "num_messages": 4,
            "num_bytes": num_bytes,
            "tokens": 10 + index,
            "terms": {"sst/total": loss, "gradient_norm": 3.0},
        }
        for index, loss in enumerate(losses)
    ]


def test_a_row_has_medians_of_each_rank():
    one = made([1.0, 2.0, 4.0, 4.0])
    ranks = [made([1.0, 2.0, 4.0, 4.0]), made([1.0, 2.0, 4.0, 4.0], waiting=0.125)]
    timed = ["2", "1000", "12 12", "500 500", "250 125", "4", "2.0"]
    assert row(ranks, one) == [*timed, "yes", "0.0e+00"]
    assert row([one], one)[-2:] == ["yes", "-"]


def test_ranks_that_differ_and_losses_that_differ_are_told():
    one, other = made([1.0, 2.0, 4.0]), made([1.0, 2.0, 5.0])
    assert row([one, other], one)[-2:] == ["NO", "0.0e+00"]
    assert largest_difference(other, one) == pytest.approx(0.2)


def test_two_processes_train_as_one(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BACKBONE", str(tiny_backbone(tmp_path / "backbone")))
    records = tmp_path / "records.json"
    arguments = ["--data-dir", str(small_sample(tmp_path / "data")), "--update", "per_task"]
    counts = ["--ranks", "2", "--rounds", "2", "--batch", "3", "--records", str(records)]
    scaling_run.main([*arguments, *counts])
    alone, both = capfd.readouterr().out.splitlines()[-2:]
    assert alone.startswith("| 1 |") and both.startswith("| 2 |")
    found = json.loads(records.read_text(encoding="utf-8"))
    (one,), (first, second) = found["1"], found["2"]
    assert scaling_run.terms_of(first) == scaling_run.terms_of(second)
    assert largest_difference(first, one) < 1e-5
    assert all(r["num_bytes"] == 0 for r in one)
    assert all(
        r["num_bytes"] > 0 and r["num_bytes"] == s["num_bytes"]
        for r, s in zip(first, second, strict=True)
    )


def test_processes_that_fail_end_the_command(tmp_path):
    with pytest.raises(SystemExit, match="1 processes ended with"):
        scaling_run.main(["--data-dir", str(tmp_path), "--ranks", "1"])
