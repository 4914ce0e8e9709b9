"""The runner of the GPU check: limits hold, failures stop nothing, results are written at once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_check_stages
from benchmarks.gpu_check import Outcome, Stage, main, run_all


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
    assert sum(stage.limit for stage in stages) <= 540 * patience
    for stage in stages:
        for need in stage.needs:
            reason = gpu_check_stages.missing()(need)
            assert reason is None or len(reason) > 5


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
