"""How many cores other work keeps busy while a run is trained."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from sbrrt_fast.training import environment
from sbrrt_fast.training.environment import OtherWork, run_environment


@pytest.fixture
def clocks(monkeypatch) -> dict[str, float | None]:
    """Seconds that the clocks show: passed, busy of all cores, and of this process."""
    times: dict[str, float | None] = {"passed": 100.0, "busy": 1000.0, "own": 5.0}
    monkeypatch.setattr(environment.time, "monotonic", lambda: times["passed"])
    monkeypatch.setattr(environment.time, "process_time", lambda: times["own"])
    monkeypatch.setattr(environment, "_busy_seconds", lambda: times["busy"])
    return times


def test_others_are_all_work_but_ones_own(clocks):
    work = OtherWork()
    clocks.update({"passed": 110.0, "busy": 1025.0, "own": 24.0})
    assert work.cores() == 0.6  # 25 busy seconds in 10, 19 of them one's own


def test_rounding_makes_nothing_less_than_none(clocks):
    work = OtherWork()
    clocks.update({"passed": 110.0, "busy": 1009.9, "own": 15.0})
    assert work.cores() == 0.0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_system_that_does_not_tell(clocks, when):
    clocks["busy"] = None if when == "before" else 1000.0
    work = OtherWork()
    clocks.update({"passed": 110.0, "busy": 1000.0 if when == "before" else None})
    assert work.cores() is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat is Linux's")
def test_the_systems_own_figure_grows_with_ones_own_work():
    before, own = environment._busy_seconds(), environment.time.process_time()
    while environment.time.process_time() < own + 0.3:
        sum(range(1000))
    grown = environment._busy_seconds() - before
    assert grown >= 0.25


def test_it_is_in_the_record_of_a_run():
    record = run_environment(torch.device("cpu"), other_cores=0.25)
    assert record["other_cores"] == 0.25 and record["cores"] == os.cpu_count()
    assert run_environment(torch.device("cpu"))["other_cores"] is None
