"""A search that is killed, stopped, or started twice: nothing is lost, and nothing done twice."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="the extra `search` is not installed")

from sbrrt_fast.cli import main  # noqa: E402
from sbrrt_fast.experiments.search import results  # noqa: E402
from sbrrt_fast.training.step.step import Step  # noqa: E402
from tests.commands.searches import (  # noqa: E402
    GRID,
    PROGRAM,
    SPACE,
    arguments,
    search_flags,
    table,
)
from tests.helpers import Killed  # noqa: E402


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> list[str]:
    """Flags of every search here."""
    return search_flags(tmp_path_factory.mktemp("search"))


@pytest.mark.parametrize("place", ["round", "tell", "results"])
def test_a_killed_search_goes_on_as_if_it_had_not_been(
    shared, tmp_path, monkeypatch, searched_whole, place
):
    """In the third trial: in a round of it, before it is noted, before tables are written."""
    flags = arguments(shared, tmp_path, *WHOLE)
    with monkeypatch.context() as patch:
        kill_in_third(patch, place)
        with pytest.raises(Killed):
            main(flags)
    assert main(flags) == 0
    assert without_times(table(tmp_path)) == without_times(searched_whole)
    text = (tmp_path / "out" / "trials" / "0003" / "train.log").read_text()
    assert ("goes on" in text) is (place == "round")


WHOLE = ("--trials", "3", "--sampler", "random", "--log.state-every", "1")


@pytest.fixture(scope="module")
def searched_whole(shared, tmp_path_factory) -> dict:
    """The table of the same search that was not killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(shared, folder, *WHOLE)) == 0
    return table(folder)


def kill_in_third(patch: pytest.MonkeyPatch, place: str) -> None:
    """Trial n is marked when it starts and when it ends, with all before it."""
    owner, name, index = {
        "round": (Step, "round_of", 4 + 4 + 3),
        "tell": (optuna.Study, "tell", 3),
        "results": (results, "_mark", 2 * 1 + 2 * 2 + 3 + 1),
    }[place]
    original, calls = getattr(owner, name), []

    def killed(*arguments, **keywords):
        calls.append(1)
        if len(calls) == index:
            raise Killed
        return original(*arguments, **keywords)

    patch.setattr(owner, name, killed)


def without_times(found: dict) -> list[dict]:
    return [{**trial, "seconds": None} for trial in found["trials"]]


def start(shared: list[str], folder: Path, *flags: str, space: str = SPACE) -> subprocess.Popen:
    command = [PROGRAM, *arguments(shared, folder, *flags, space=space)]
    with (folder / "stderr.txt").open("a") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def wait_until(is_so, process: subprocess.Popen) -> None:
    for _ in range(600):
        if is_so():
            return
        assert process.poll() is None
        time.sleep(0.2)
    raise AssertionError("it did not come")


def test_sigterm_and_sigkill_lose_nothing(shared, tmp_path):
    """A state is saved on SIGTERM; after SIGKILL the last one is there."""
    flags = ("--trials", "1", "--rounds", "3000", "--log.evaluate-every", "2000")
    flags = (*flags, "--log.state-every", "5")
    trial = tmp_path / "out" / "trials" / "0001"
    process = start(shared, tmp_path, *flags)
    wait_until((trial / "seed0" / "state").exists, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "trial 1 of 1 starts: " in printed
    message = (tmp_path / "stderr.txt").read_text()
    assert "trial 1: SIGTERM: the state after round " in message
    assert "go on with the same command" in message
    process, log = start(shared, tmp_path, *flags), trial / "train.log"
    wait_until(lambda: "was interrupted, goes on" in log.read_text(), process)
    process.kill()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == -9 and "trial 1 of 1 goes on: " in printed
    assert [t["state"] for t in table(tmp_path)["trials"]] == ["running"]
    assert (trial / "seed0" / "state").is_dir()


@pytest.mark.long
def test_many_kills_change_no_number(shared, tmp_path):
    """Eight of them, at any time, of two processes; then the trials are those of one whole call."""
    flags = ("--trials", "6", "--sampler", "random", "--pruner", "none", "--log.state-every", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    begin = time.monotonic()
    start(shared, whole, *flags).communicate()
    seconds, draw = time.monotonic() - begin, random.Random(0)
    for _ in range(8):
        processes = [start(shared, killed, *flags) for _ in range(2)]
        time.sleep(seconds * draw.uniform(0.2, 0.7))
        for process in processes:
            process.kill()
            process.communicate()
    assert start(shared, killed, *flags).wait() == 0
    assert without_times(table(killed)) == without_times(table(whole))


def test_two_processes_share_the_trials_out(shared, tmp_path):
    flags = ("--sampler", "grid", "--pruner", "none")
    processes = [start(shared, tmp_path, *flags, space=GRID) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    started = [line for text in printed for line in text.splitlines() if " starts: " in line]
    assert len(started) == len(set(started)) == 4
    found = [(t["state"], str(t["settings"])) for t in table(tmp_path)["trials"]]
    assert len(set(found)) == 4 and {state for state, _ in found} == {"finished"}
    assert not any(" goes on" in text for text in printed)
