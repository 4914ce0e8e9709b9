"""The runner of the GPU check: limits hold, failures stop nothing, results are written at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_check_stages, short_run
from benchmarks.gpu_check import Outcome, Stage, main, run_all
from benchmarks.machine import ROOT


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def nothing(need: str) -> None:
    return None


def quiet(line: str) -> None:
    pass


def recorded(output: Path) -> list[dict]:
    return json.loads((output / gpu_check.RESULT).read_text(encoding="utf-8"))["stages"]


def test_a_failing_stage_does_not_stop_the_next(tmp_path):
    stages = [
        Stage("bad", python("print('before'); raise SystemExit(3)"), 30),
        Stage("absent", ("/no/such/command",), 30),
        Stage("good", python("import os; print('value', os.environ['VALUE'])"), 30, (),
              {"VALUE": "7"}),
    ]  # fmt: skip
    bad, absent, good = run_all(stages, tmp_path, nothing, tell=quiet)
    assert (bad.status, bad.reason, bad.tail) == ("failed", "exit status 3", ["before"])
    assert absent.status == "failed"
    assert "/no/such/command" in absent.reason
    assert (good.status, good.tail) == ("passed", ["value 7"])
    assert (tmp_path / "logs" / "good.log").read_text(encoding="utf-8") == "value 7\n"


def test_the_limit_kills_a_stage_and_its_children(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = (
        "import subprocess, sys, time; print('begun', flush=True);"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    begin = time.perf_counter()
    (slow,) = run_all([Stage("slow", python(code), 2)], tmp_path, nothing, tell=quiet)
    assert (slow.status, slow.reason, slow.tail) == ("timed out", "after 2 s", ["begun"])
    assert time.perf_counter() - begin < 50
    time.sleep(4)
    assert not mark.exists()


def test_results_are_written_after_every_stage(tmp_path):
    seen = []

    def look(line: str) -> None:
        seen.append([entry["name"] for entry in recorded(tmp_path)])

    stages = [Stage(name, python("pass"), 30) for name in ("one", "two")]
    run_all(stages, tmp_path, nothing, tell=look)
    assert seen == [["one"], ["one", "two"]]


def test_what_lacks_something_or_time_is_skipped(tmp_path):
    stages = [
        Stage("lacks", python("pass"), 30, ("a", "b")),
        Stage("late", python("pass"), 30),
    ]
    reasons = {"a": "no a here", "b": None}
    lacks, late = run_all(stages, tmp_path, reasons.get, seconds=1.0, tell=quiet)
    assert (lacks.status, lacks.reason) == ("skipped", "no a here")
    assert (late.status, late.reason) == ("skipped", "no time is left")
    assert [entry["status"] for entry in recorded(tmp_path)] == ["skipped", "skipped"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_stages_fit_into_nine_minutes(tmp_path, dry_run):
    stages = gpu_check_stages.stages(tmp_path, dry_run)
    patience = gpu_check.PATIENCE if dry_run else 1
    assert stages[0].name == "build"
    assert gpu_check.SECONDS < 540
    limits = {stage.name: stage.limit for stage in stages}
    assert sum(limits.values()) - limits["no CUDA"] <= 540 * patience
    for stage in stages:
        if stage.name in gpu_check_stages.BENCHES:
            assert float(stage.command[stage.command.index("--seconds") + 1]) < stage.limit
    for stage in stages:
        for need in stage.needs:
            reason = gpu_check_stages.missing()(need)
            assert reason is None or len(reason) > 5


ABSENT = ("tyro", "pydantic", "tensorboard", "transformers", "pytest_benchmark")
COMMANDS = ("run", "small_calls", "short_run", "memory", "report", "floor")
WITHOUT = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
for name in {COMMANDS}:
    importlib.import_module(f"benchmarks.{{name}}")
"""


def test_its_commands_need_no_library_beside_torchs():
    """Of those that a GPU image may lack."""
    told = subprocess.run(python(WITHOUT), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr


def test_a_short_run_learns_something_and_says_how_fast(tmp_path, monkeypatch, minilm_dir):
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("BACKBONE", str(minilm_dir))
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["short_run", str(tmp_path), "--rounds", "2"])
    short_run.main()
    record = json.loads((tmp_path / short_run.FILE).read_text(encoding="utf-8"))
    assert record["data"] == "the built-in sample"
    assert record["rounds_per_second"] > 0
    assert record["before"].keys() == record["after"].keys() == {"sst", "para", "sts", "overall"}
    assert record["before"] != record["after"]


def test_a_build_without_cuda_takes_the_place_of_one_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check_stages, "ROOT", tmp_path)
    (tmp_path / "sbrrt_fast").mkdir()
    assert gpu_check_stages.missing()("a failed build") is None
    (tmp_path / "sbrrt_fast" / "_C.x.so").touch()
    assert gpu_check_stages.missing()("a failed build") == "the extension was built"
    (stage,) = (s for s in gpu_check_stages.stages(tmp_path, False) if s.name == "no CUDA")
    assert stage.environment == {"SBRRT_CUDA": "0"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_everything_is_skipped_with_its_reason(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert {entry["status"] for entry in recorded(tmp_path)} == {"skipped"}
    assert all("torch sees no GPU" in entry["reason"] for entry in recorded(tmp_path))
    assert "build" in capsys.readouterr().out


def test_a_failure_is_told_with_its_last_lines(tmp_path, capsys, monkeypatch):
    stage = Stage("bad", python("print('the reason'); raise SystemExit(2)"), 30)
    monkeypatch.setattr(gpu_check_stages, "stages", lambda output, dry_run: [stage])
    assert main([str(tmp_path)]) == 1
    assert "bad, last lines:\n  the reason" in capsys.readouterr().out


def test_a_line_of_the_table():
    assert gpu_check.line(Outcome("ops", "timed out", "after 9 s", 9.04)) == (
        "ops         timed out     9.0 s  after 9 s"
    )
