"""Cases under pytest-benchmark: its clock, its statistics, its comparison of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_cases
from benchmarks.cases.gelu import BiasGelu
from benchmarks.harness.machine import ROOT
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case

CASE = "bias_gelu minilm round fp32 forward"
TIMED = ("cpu", "eager", "eager folded", "copy")
SELECTED = "bias_gelu and round and fp32 and forward"
PLANTED = """
from dataclasses import replace
from benchmarks.cases.gelu import BiasGelu

ours = BiasGelu.ours

def off(self, case, backend):
    way = ours(self, case, backend)
    return replace(way, run=lambda inputs, p: 1.01 * way.run(inputs, p))

BiasGelu.ours = off
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """The case's entries, briefly, on a CPU."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-k", SELECTED]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--benchmark-storage={folder}"]
    command += ["--benchmark-max-time=0.02", "--benchmark-min-rounds=3", *options]
    kept = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    environment = kept | {"QUICK": "1", "DEVICE": "cpu", "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, str, dict]:
    """A saved run: its folder, what it printed, its JSON."""
    folder = tmp_path_factory.mktemp("first")
    path = folder / "run.json"
    timer = "--benchmark-timer=time.process_time"
    process = run(folder, f"--benchmark-json={path}", "--benchmark-save=first", timer)
    assert process.returncode == 0, process.stdout
    return folder, process.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_entries_have_the_clock_and_the_statistics_of_pytest_benchmark(first):
    _, _, record = first
    entries = {entry["extra_info"]["variant"]: entry for entry in record["benchmarks"]}
    assert entries.keys() == set(TIMED)
    for entry in entries.values():
        stats = entry["stats"]
        assert entry["group"] == CASE
        assert entry["options"]["timer"] == "process_time"
        assert stats["rounds"] >= 3 and stats["iterations"] >= 1
        assert 0 < stats["min"] <= stats["median"] <= stats["max"]
        assert stats["total"] == pytest.approx(stats["rounds"] * stats["mean"])
    cpu = entries["cpu"]["extra_info"]
    assert cpu["bytes"] == 8 * 1536 * cpu["tokens"]


def test_a_variant_that_cannot_run_here_is_skipped_with_its_reason(first):
    _, output, _ = first
    assert "runs on a GPU alone" in output
    assert "a quick run compiles nothing" in output


def test_runs_are_compared(first):
    folder, _, _ = first
    process = run(folder, "--benchmark-compare")
    assert process.returncode == 0, process.stdout
    for name in ("NOW", "0001_first"):
        assert f"[{CASE} cpu] ({name})" in process.stdout


def test_a_wrong_variant_fails_alone(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED, encoding="utf-8")
    process = run(tmp_path, "-p", "planted")
    assert process.returncode == 1
    assert f"WrongResult: {CASE} cpu, result 0: off by 0.01 of its size" in process.stdout
    assert "1 failed, 3 passed" in process.stdout


@pytest.mark.parametrize(
    ("variant", "error", "outcome"),
    [
        ("eager", RuntimeError("no memory"), pytest.skip.Exception),
        ("eager", AssertionError("other numbers"), AssertionError),
        ("cpu", RuntimeError("no memory"), RuntimeError),
    ],
)
def test_a_peer_that_stops_is_skipped_and_ours_fails(variant, error, outcome):
    class Broken(BiasGelu):
        def variant(self, case, name):
            raise error

    benchmark = Broken(Settings(torch.device("cpu"), quick=True))
    with pytest.raises(outcome, match=str(error)):
        bench_cases.watch_or_skip(benchmark, Case("minilm", "task"), variant)
