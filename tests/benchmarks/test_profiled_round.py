"""The round that NVIDIA's profilers record, which is all replays, and the commands for them."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import torch

from benchmarks.tune import profiled_round
from tests.cuda_on_cpu.build import ROOT
from tests.training.steps import SBRRT
from tests.training.test_graph_step import Never, captured, make_round


def test_a_round_is_repeated_until_all_of_it_is_replayed():
    step = captured(SBRRT)
    profiled_round.repeat_until_captured(step, make_round(0), 0)
    assert profiled_round.is_replayed(step, make_round(0), 0)
    assert not profiled_round.is_replayed(step, make_round(2), 0)  # of other sizes


def test_a_round_that_is_never_captured_is_not_profiled():
    step = captured(SBRRT, Never, [])
    with pytest.raises(SystemExit, match="still runs launch by launch"):
        profiled_round.repeat_until_captured(step, make_round(0), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["profiled_round"])
    with pytest.raises(SystemExit, match="there is none"):
        profiled_round.main()


def test_make_prints_a_command_for_each_profiler():
    command = ["make", "-s", "gpu-profile", "OUT=runs/there", "PYTHON=python3.12"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    systems, compute = (shlex.split(line) for line in told.splitlines() if line[:1] != "#")
    assert systems[:2] == ["nsys", "profile"] and compute[0] == "ncu"
    for words in (systems, compute):
        assert words[-3:] == ["python3.12", "-m", "benchmarks.tune.profiled_round"]
        assert any(word.startswith("runs/there/") for word in words)
    assert "--cuda-graph-trace=node" in systems
    assert "--capture-range=cudaProfilerApi" in systems
    assert "--graph-profiling=node" in compute
    assert "--profile-from-start=off" in compute
