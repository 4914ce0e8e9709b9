"""Runs of several processes under torchrun: whole ones, and ones that are killed."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from tests.helpers import read_log, small_sample, tiny_backbone
from tests.training.ranks.processes import (
    TORCHRUN,
    Ended,
    Started,
    Torchrun,
    free_port,
    num_lines,
    own_lines,
)

RUN = (
    *("--round.batch-size", "4", "--seed", "3", "--smart.weight", "1", "--bregman.weight", "0.5"),
    *("--log.every", "1", "--log.evaluate-every", "5", "--log.state-every", "4"),
    "--log.no-tensorboard",
)
FEW, MANY = ("--rounds", "14"), ("--rounds", "5000")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder of data and backbone."""
    folder = tmp_path_factory.mktemp("torchrun")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """A run of one process."""
    assert main(train(place, place / "whole", *FEW)) == 0
    return place / "whole"


def train(place: Path, output: Path, *flags: str) -> list[str]:
    inputs = ["--data-dir", str(place / "data"), "--backbone", str(place / "backbone")]
    return ["train", *inputs, "--output", str(output), *RUN, *flags]


def check_same_run(run: Path, other: Path) -> None:
    """Up to the order in which ranks sum."""
    lines, others = read_log(run), read_log(other)
    assert [line["round"] for line in lines] == [line["round"] for line in others]
    for line, expected in zip(lines, others, strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            if name.endswith(("/loss", "/total")):
                assert math.isclose(line[name], value, rel_tol=1e-4), (line["round"], name)


def test_a_rank_that_is_killed_is_named_by_every_other_one(place, tmp_path):
    run = Torchrun(3, train(place, tmp_path / "run", *MANY))
    run.wait_for(lambda: num_lines(tmp_path / "run") > 2)
    pid, begun = run.pids()[1], time.monotonic()
    run.kill(1)
    ended = run.ended()
    assert time.monotonic() - begun < 60
    lines = own_lines(ended.err)
    assert len(lines) == 2
    for line in lines:
        name = rf"rank 1 \(process {pid} on \S+\)"
        since = r"has given no sign of life since \d\d:\d\d:\d\d, after round \d+"
        go_on = f"go on with `sbrrt-fast train --output {tmp_path / 'run'} --resume`"
        assert re.fullmatch(rf"sbrrt-fast(?: train)?: {name} {since}; {re.escape(go_on)}", line)
    assert statuses(ended) == {0: 1, 1: -9, 2: 1}


def statuses(ended: Ended) -> dict[int, int]:
    """Exit statuses by rank, from torchrun's report."""
    pairs = re.findall(r"rank      : (\d+) .*\n\s*exitcode  : (-?\d+)", ended.err)
    return {int(rank): int(status) for rank, status in pairs}


def test_bad_data_is_one_line(place, tmp_path):
    data = shutil.copytree(place / "data", tmp_path / "data")
    path = next(data.glob("*sst-train*"))
    path.write_text(path.read_text() + "\tno number\n")
    ended = Torchrun(2, [*train(place, tmp_path / "run"), "--data-dir", str(data)]).ended()
    (line,) = own_lines(ended.err)
    assert path.name in line
    assert statuses(ended) in ({0: 2, 1: 2}, {0: 2, 1: -15}, {0: -15, 1: 2}), ended.err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.long
def test_one_and_several_processes_train_the_same_run(place, whole, tmp_path):
    ended = Torchrun(3, train(place, tmp_path / "run", *FEW)).ended()
    assert ended.status == 0, ended.err
    check_same_run(tmp_path / "run", whole)
    for text in ("custom: sst, para, sts", "round 14: dev", "14 rounds, "):
        assert ended.out.count(text) == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["environment"]["ranks"] == 3
    assert json.loads((whole / "metrics.json").read_text())["environment"]["ranks"] == 1


@pytest.mark.long
def test_the_console_script_runs_under_torchrun_too(place, whole, tmp_path):
    script = Path(sys.executable).with_name("sbrrt-fast")
    flags = ("--standalone", "--nproc-per-node", "2", "--no-python", str(script))
    arguments = train(place, tmp_path / "run", *FEW)
    assert Started((*TORCHRUN, *flags, *arguments)).ended(200).status == 0
    check_same_run(tmp_path / "run", whole)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_stopped_is_named(place, tmp_path, rank):
    run = Torchrun(3, train(place, tmp_path / "run", *MANY))
    run.wait_for(lambda: num_lines(tmp_path / "run") > 2)
    begun = time.monotonic()
    run.kill(rank, signal.SIGSTOP)
    ended = run.ended()
    assert time.monotonic() - begun < 60
    lines = own_lines(ended.err)
    assert 1 <= len(lines) <= 2
    assert all(f": rank {rank} (process" in line for line in lines)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_any_rank_may_be_killed_at_any_time(place, whole, tmp_path, seed):
    """While processes come, while the run is built, in rounds, evaluations and saves; the run goes
    on with another number of processes."""
    output, delay, killed = tmp_path / "run", 1.5 * seed + 3, seed % 2
    run = Torchrun(2, train(place, output, *FEW))
    run.wait_for(lambda: len(run.pids()) == 2)
    time.sleep(delay)
    if run.process.poll() is None:
        run.kill(killed)
    begun = time.monotonic()
    ended = run.ended()
    assert time.monotonic() - begun < 60
    if not (output / "metrics.json").exists():
        assert ended.status != 0
        assert all("rank" in line for line in own_lines(ended.err))
        has_state = any(output.glob("state*/checksums.json"))
        flags = [] if not output.exists() else ["--resume" if has_state else "--overwrite"]
        assert Torchrun(3, train(place, output, *FEW, *flags)).ended().status == 0
    check_same_run(output, whole)


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_sigterm_saves_once_and_the_run_goes_on_with_other_ranks(place, whole, tmp_path, num_ranks):
    output = tmp_path / "run"
    run = Torchrun(2, [*train(place, output, *FEW), "--log.state-every", "100"])
    run.wait_for(lambda: num_lines(output) > 2)
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    (line,) = own_lines(ended.err)
    assert "SIGTERM: the state after round" in line and "of 14 is saved" in line
    assert Torchrun(num_ranks, ["train", "--output", str(output), "--resume"]).ended().status == 0
    check_same_run(output, whole)


@pytest.mark.long
def test_a_signal_for_one_rank_stops_all(place, tmp_path):
    run = Torchrun(2, train(place, tmp_path / "run", *MANY))
    run.wait_for(lambda: num_lines(tmp_path / "run") > 2)
    run.kill(1, signal.SIGTERM)
    ended = run.ended()
    assert statuses(ended) == {0: 143, 1: 143}
    assert len(own_lines(ended.err)) == 1
    assert (tmp_path / "run" / "state").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("after", [1, 6])
def test_torchrun_starts_the_ranks_again_and_the_run_goes_on(place, whole, tmp_path, after):
    """From its start before a state is saved, else from the state."""
    output, flags = tmp_path / "run", ("--standalone", "--max-restarts", "1")
    run = Torchrun(2, train(place, output, *FEW), flags)
    run.wait_for(lambda: num_lines(output) >= after)
    run.kill(1)
    ended = run.ended(200)
    assert ended.status == 0, ended.err
    check_same_run(output, whole)


@pytest.mark.long
def test_a_restart_leaves_the_run_of_another_torchrun_alone(place, whole, tmp_path):
    output = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    flags = ("--standalone", "--max-restarts", "1")
    ended = Torchrun(2, train(place, output, *FEW), flags).ended()
    lines = own_lines(ended.err)
    assert len(lines) == 2 and all("holds a run already" in line for line in lines)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.mark.long
def test_two_nodes_train_the_same_run(place, whole, tmp_path):
    port, arguments = str(free_port()), train(place, tmp_path / "run", *FEW)
    shared = ("--nnodes", "2", "--master-addr", "127.0.0.2", "--master-port", port)
    nodes = [
        Torchrun(
            2, arguments, (*shared, "--node-rank", str(node), "--local-addr", f"127.0.0.{node + 2}")
        )
        for node in range(2)
    ]
    for node in nodes:
        ended = node.ended(200)
        assert ended.status == 0, ended.err
    check_same_run(tmp_path / "run", whole)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["environment"]["ranks"] == 4
