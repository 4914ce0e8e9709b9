"""What a process does that torchrun has started again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.config import RunConfig
from sbrrt_fast.training.ranks import restart
from sbrrt_fast.training.ranks.launch import Launch
from sbrrt_fast.training.ranks.ranks import OneRank
from sbrrt_fast.training.ranks.restart import restarted
from sbrrt_fast.training.run_folder import launch_of, start_run

AGAIN = Launch(0, 1, 0, 1, "localhost", 1, agent_has_store=True, restarts=1)


@pytest.fixture
def config(tmp_path, monkeypatch) -> RunConfig:
    """Of a run that the launch ``mine`` has started, and of this process, started again."""
    monkeypatch.setattr(restart, "launch_name", lambda launch: "mine")
    start_as(monkeypatch, AGAIN)
    start_run(tmp_path, launch="mine")
    return RunConfig(output=tmp_path, overwrite=True)


def start_as(monkeypatch, launch: Launch | None) -> None:
    monkeypatch.setattr(restart.Launch, "read", classmethod(lambda cls: launch))


def save_a_state(output: Path) -> None:
    (output / "state").mkdir()
    (output / "state" / "checksums.json").write_text("{}")


def test_a_run_without_a_state_starts_anew(config):
    assert restarted(config, OneRank()) == (replace(config, resume=False, overwrite=True), None)


def test_a_run_with_a_state_goes_on_and_is_not_overwritten(config):
    save_a_state(config.output)
    assert restarted(config, OneRank()) == (replace(config, resume=True, overwrite=False), None)


def test_a_finished_run_is_left_as_it_is(config):
    (config.output / "metrics.json").write_text(json.dumps({"rounds": 3}))
    assert restarted(config, OneRank()) == (config, {"rounds": 3})


@pytest.mark.parametrize("launch", ["another", None])
def test_the_run_of_another_launch_is_left_to_the_user(config, launch):
    save_a_state(config.output)
    start_run(config.output, resume=True, launch=launch)
    assert launch_of(config.output) == launch
    assert restarted(config, OneRank()) == (config, None)


@pytest.mark.parametrize("launch", [None, replace(AGAIN, restarts=0)])
def test_a_first_start_is_no_restart(config, monkeypatch, launch):
    start_as(monkeypatch, launch)
    assert restarted(config, OneRank()) == (config, None)


def test_a_store_of_the_first_rank_s_own_has_no_name_for_the_launch(config, monkeypatch):
    start_as(monkeypatch, replace(AGAIN, agent_has_store=False))
    assert restarted(config, OneRank()) == (config, None)
