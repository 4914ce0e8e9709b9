"""A run of the benchmarks goes on in another process where one has broken."""

from __future__ import annotations

import sys

import pytest

from benchmarks import run, suite
from benchmarks.cases.assemble import Assemble
from benchmarks.harness.machine import ROOT
from benchmarks.harness.progress import FRESH, FreshProcess, Progress
from benchmarks.harness.results import Results

WORK = """
import os, signal, sys, time
from pathlib import Path
from benchmarks.harness.progress import FRESH, Progress

progress, end = Progress(Path(sys.argv[sys.argv.index("--progress") + 1])), sys.argv[1]
if not progress.done:
    progress.end("begun")
    progress.begin("gelu cuda")
    if end == "hang":
        time.sleep(60)
    if end == "fresh":
        progress.break_off("the GPU is lost")
        sys.exit(FRESH)
    if end == "nothing at hand":
        progress.begin("")
    os.kill(os.getpid(), signal.SIGSEGV)
print(progress.broken, flush=True)
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("hang", "{'gelu cuda': 'did not end within 20 s'}"),
        ("fresh", "{'gelu cuda': 'the GPU is lost'}"),
        ("signal", "{'gelu cuda': 'its process ended with SIGSEGV'}"),
        ("nothing at hand", None),
    ],
)
def test_what_breaks_its_process_costs_only_itself(tmp_path, capfd, ending, told):
    """The next process knows what to leave out; one that breaks by itself ends the run."""
    (tmp_path / "work.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{WORK}")
    command = [sys.executable, str(tmp_path / "work.py"), ending]
    assert run.supervise(command, 60.0, patience=20.0) == 1
    out, err = capfd.readouterr()
    assert (told or "") in out and ("come to no end" in err) == (told is None)


def test_a_run_goes_on_where_another_process_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(suite, "BENCHMARKS", {"evaluate": (Fatal, Assemble)})
    path = tmp_path / "progress.json"
    arguments = [str(tmp_path), "--stages", "evaluate", "--no-plots", "--progress", str(path)]
    assert run.main(arguments) == FRESH
    progress = Progress(path)
    progress.broken["fatal any model round data"] = "died"
    progress.save()
    assert run.main(arguments) == 1
    found = Results.load(tmp_path).stages["evaluate"]
    assert {row.benchmark for row in found.rows} == {"assemble"}
    assert found.failures == [{"what": "fatal any model round data", "error": "died"}]


class Fatal(Assemble):
    name = "fatal"

    def _check(self, tasks, examples) -> None:
        raise FreshProcess("the GPU is lost")
