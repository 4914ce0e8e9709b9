"""The runner of the GPU check: limits hold, failures stop nothing, results are written at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import files, runner, stages
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.runner import Check, Outcome, Stage
from benchmarks.harness.machine import ROOT
from tests.benchmarks import listed_environment


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def nothing(need: str) -> None:
    return None


def quiet(line: str) -> None:
    pass


def run_all(stages, output: Path, missing, seconds: float = 300.0, tell=quiet) -> list[Outcome]:
    """The stages in their order, with a folder for what they leave beside ``output``."""
    work = output.with_name(f"{output.name}-work")
    return Check(output, work, missing, tell).run(stages, seconds)


def packed(output: Path) -> dict[str, str]:
    """Names and texts of the archive's files."""
    with tarfile.open(output / runner.LOGS) as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}


def recorded(output: Path) -> list[dict]:
    return json.loads((output / runner.RESULT).read_text(encoding="utf-8"))["stages"]


def test_a_failing_stage_does_not_stop_the_next(tmp_path):
    stages = [
        Stage("bad", python("print('before'); raise SystemExit(3)"), 30),
        Stage("absent", ("/no/such/command",), 30),
        Stage("good", python("import os; print('value', os.environ['VALUE'])"), 30, (),
              {"VALUE": "7"}),
    ]  # fmt: skip
    bad, absent, good = run_all(stages, tmp_path, nothing)
    assert (bad.status, bad.reason, bad.tail) == ("failed", "exit status 3", ["before"])
    assert absent.status == "failed"
    assert "/no/such/command" in absent.reason
    assert (good.status, good.tail) == ("passed", ["value 7"])
    logs = {"bad/log.txt": "before\n", "absent/log.txt": "", "good/log.txt": "value 7\n"}
    assert packed(tmp_path) == logs


def test_a_stage_that_dies_of_a_signal_costs_itself_and_what_it_left_is_kept(tmp_path):
    code = (
        "import json, os, signal; folder = os.environ['STAGE'];"
        "json.dump({'found': 5}, open(folder + '/result.json', 'w'));"
        "open(folder + '/tests.jsonl', 'w').write("
        "json.dumps({'what': 'started', 'test': 'a'}) + '\\n{\"what\": \"sta');"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    stages = [Stage("dead", python(code), 30), Stage("good", python("pass"), 30)]
    dead, good = run_all(stages, tmp_path, nothing)
    assert (dead.status, dead.reason, good.status) == ("failed", "died of SIGSEGV", "passed")
    assert dead.result["found"] == 5
    assert dead.result["tests"] == {
        "passed": 0, "failed": 0, "skipped": 0, "failures": [], "not ended": ["a"],
    }  # fmt: skip
    assert recorded(tmp_path)[0]["result"] == dead.result


def test_what_a_stage_prints_is_packed_while_it_runs(tmp_path, monkeypatch):
    """The call itself may be killed, and only what is in the archive comes back then."""
    monkeypatch.setattr(runner, "PERIOD", 0.2)
    seen = []
    check = Check(tmp_path / "out", tmp_path / "work", nothing, quiet)
    pack = check._archive

    def look() -> None:
        pack()
        seen.append(packed(tmp_path / "out").get("slow/log.txt"))

    monkeypatch.setattr(check, "_archive", look)
    code = "import time; print('early'); time.sleep(3)"
    check.run([Stage("slow", python(code), 30)], 60.0)
    assert len(seen) > 3
    assert seen[-2] == "early\n"


def test_the_limit_kills_a_stage_and_its_children(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    code = (
        "import subprocess, sys, time; print('begun', flush=True);"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    begin = time.perf_counter()
    (slow,) = run_all([Stage("slow", python(code), 2)], tmp_path, nothing)
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
    lacks, late = run_all(stages, tmp_path, reasons.get, seconds=1.0)
    assert (lacks.status, lacks.reason) == ("skipped", "no a here")
    assert (late.status, late.reason) == ("skipped", "no time is left")
    assert [entry["status"] for entry in recorded(tmp_path)] == ["skipped", "skipped"]


def stage_names(call: int | None) -> list[str]:
    found = stages.stages(Path("out"), False)
    return [stage.name for stage in found if stage.call in (call, None)]


def test_the_calls_share_the_stages_out_and_each_builds_first():
    assert stage_names(1) == [
        "build", "no CUDA", "step", "kernels", "memcheck", "racecheck", "synccheck",
    ]  # fmt: skip
    assert stage_names(2) == [
        "build", "no CUDA", "calls", "values", "tests", "round", "train", "ops", "sweep",
        "transformers",
    ]  # fmt: skip


def seconds_of(call: int) -> float:
    """The limits of a call's stages together."""
    found = stages.stages(Path("out"), False)
    return stages.seconds_of([stage for stage in found if stage.call in (call, None)])


def test_every_stage_of_a_call_has_its_time():
    """Within ten minutes; and both calls, where the second has the first's extension."""
    first, second = seconds_of(1), seconds_of(2)
    assert max(first, second) <= command.MOST_SECONDS < 600
    assert first + second - stages.BUILD_LIMIT <= 15 * 60 - 2 * 60  # and two starts


@pytest.mark.parametrize("call", [1, 2])
def test_a_call_whose_stages_all_take_their_limits_runs_the_last(tmp_path, monkeypatch, call):
    now, limits = [0.0], {}

    def run_to_the_limit(stage, limit, folder, tick) -> Outcome:
        limits[stage.name], now[0] = limit, now[0] + limit
        return Outcome(stage.name, "timed out", "", limit)

    monkeypatch.setattr(stages, "missing", lambda: {"a failed build": "it did not fail"}.get)
    monkeypatch.setattr(runner, "run_stage", run_to_the_limit)
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])
    assert main([str(tmp_path), "--call", str(call)]) == 1
    expected = {s.name: s.limit for s in stages.stages(tmp_path, False) if s.call in (call, None)}
    assert limits == {name: x for name, x in expected.items() if name != "no CUDA"}
    assert now[0] <= command.MOST_SECONDS


@pytest.mark.parametrize("dry_run", [False, True])
def test_stages_end_in_time_and_say_what_they_need(tmp_path, dry_run):
    for stage in stages.stages(tmp_path, dry_run):
        if "--seconds" in stage.command:
            assert float(stage.command[stage.command.index("--seconds") + 1]) < stage.limit
        for need in stage.needs:
            reason = stages.missing()(need)
            assert reason is None or len(reason) > 5


def test_it_compiles_for_the_gpu_that_is_there_on_all_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert stages.build_environment() == {
        "MAX_JOBS": "16", "SBRRT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def listed_python(tmp_path_factory) -> Path:
    """Of an environment with the listed packages alone."""
    return listed_environment.make(tmp_path_factory.mktemp("listed") / "venv")


def run_there(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    kept = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "DATA", "BACKBONE")}
    environment = {**kept, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(python), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", ["tyro", "pydantic", "pytest_benchmark"])
def test_that_environment_lacks_what_is_not_listed(listed_python, name):
    told = run_there(listed_python, "-c", f"import {name}")
    assert f"No module named '{name}'" in told.stderr


def test_every_file_that_it_runs_imports_with_the_listed_packages_alone(listed_python):
    files = [
        *stages.gpu_tests(),
        *stages.STEP_TESTS,
        *stages.VALUE_TESTS,
    ]
    options = ("-q", "--collect-only", "-p", "no:cacheprovider", "-p", "tests.benchmarks.live_log")
    told = run_there(listed_python, "-m", "pytest", *options, *files)
    assert told.returncode == 0, told.stdout[-3000:]
    modules = (
        *("run", "cases.memory", "gpu_check.small_calls", "gpu_check.native_build"),
        *("harness.short_run", "report.floor", "tune.kernel_list", "tune.hf_patch"),
    )
    imports = "; ".join(f"import benchmarks.{module}" for module in modules)
    told = run_there(listed_python, "-c", imports)
    assert told.returncode == 0, told.stderr


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2])
def test_a_dry_run_passes_with_the_listed_packages_alone(listed_python, tmp_path, call):
    output = tmp_path / "out"
    arguments = (str(output), "--dry-run", "--call", str(call))
    told = run_there(listed_python, "-m", "benchmarks.gpu_check", *arguments)
    assert told.returncode == 0, told.stdout[-5000:] + told.stderr[-2000:]
    found = {stage["name"]: stage for stage in recorded(output)}
    assert list(found) == stage_names(call)
    left_out = {name for name, stage in found.items() if stage["status"] != "passed"}
    assert left_out <= {"no CUDA", "racecheck", "synccheck"}, found
    assert files.excess(output) == []
    tests = found["step" if call == 1 else "tests"]["result"]["tests"]
    assert tests["passed"] > 0 and not tests["failures"] and not tests["not ended"]


def test_a_build_without_cuda_takes_the_place_of_one_that_failed(monkeypatch):
    monkeypatch.setattr(stages, "extension_info", lambda: None)
    missing = stages.missing()
    assert missing("a failed build") is None
    assert missing("extension") == "the extension does not import"
    monkeypatch.setattr(stages, "extension_info", lambda: {"cuda": None})
    assert missing("a failed build") == "the extension imports"
    assert missing("extension") is None


def test_what_is_too_much_to_come_back_is_said(tmp_path):
    for name in "abcdefgh":
        (tmp_path / name).touch()
    assert files.excess(tmp_path) == []
    deep = tmp_path / "1" / "2" / "3" / "file"
    deep.parent.mkdir(parents=True)
    deep.touch()
    with (tmp_path / "a").open("wb") as file:
        file.truncate(17 * 2**20)
    assert files.excess(tmp_path) == [
        "9 files, of 8 at most", "a is larger than 16 MiB",
        "1/2/3/file lies more than 2 folders down",
    ] or len(files.excess(tmp_path)) == 3  # fmt: skip


def test_the_archive_has_the_end_of_a_long_log(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOG_BYTES", 10)
    work = tmp_path / "work" / "ops"
    work.mkdir(parents=True)
    (work / "log.txt").write_text("0123456789the end..")
    files.archive(work.parent, tmp_path / runner.LOGS)
    assert packed(tmp_path) == {"ops/log.txt": "9the end.."}


TESTS = """
import os, signal, time, pytest
def test_passes(): pass
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("a reason")
def test_dies(): os.kill(os.getpid(), signal.SIGKILL)
def test_lost():
    from tests.benchmarks import live_log
    live_log.is_lost = lambda: True
    raise RuntimeError("an illegal memory access")
def test_after(): time.sleep(0.1)
def test_hangs(): time.sleep(600)
"""


def test_tests_are_told_as_they_end_whatever_happens_to_their_process(tmp_path):
    """Also by a run that is killed while a test hangs."""
    file = tmp_path / "test_planted.py"
    file.write_text(TESTS, encoding="utf-8")
    command = [*stages.tests("step", False, str(file)), "--rootdir", str(tmp_path)]
    command[command.index("-n") + 1] = "2"
    told = run_until_hanging(command, tmp_path)
    assert told["passed"] == 2 and told["skipped"] == 1
    texts = {failure["test"].partition("::")[2]: failure["text"] for failure in told["failures"]}
    assert texts.keys() == {"test_fails", "test_dies", "test_lost"}
    assert "assert 1 == 2" in texts["test_fails"]
    assert "crashed" in texts["test_dies"]
    assert "an illegal memory access" in texts["test_lost"]
    assert [name.partition("::")[2] for name in told["not ended"]] == ["test_hangs"]


def run_until_hanging(command: list[str], folder: Path) -> dict:
    """What is told when everything but the test that hangs has ended; the run is killed then."""
    environment = {**os.environ, "STAGE": str(folder)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):
            time.sleep(0.2)
            if not (folder / "tests.jsonl").exists():
                continue
            told = files.summary(folder / "tests.jsonl")
            if sum(told[what] for what in ("passed", "failed", "skipped")) == 6:
                break
        time.sleep(0.5)
        return files.summary(folder / "tests.jsonl")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_everything_is_skipped_with_its_reason(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert {entry["status"] for entry in recorded(tmp_path)} == {"skipped"}
    assert all("torch sees no GPU" in entry["reason"] for entry in recorded(tmp_path))
    assert "build" in capsys.readouterr().out


def test_a_failure_is_told_with_its_last_lines(tmp_path, capsys, monkeypatch):
    stage = Stage("bad", python("print('the reason'); raise SystemExit(2)"), 30)
    monkeypatch.setattr(stages, "stages", lambda output, dry_run: [stage])
    assert main([str(tmp_path)]) == 1
    assert "bad, last lines:\n  the reason" in capsys.readouterr().out


def test_a_line_of_the_table():
    assert runner.line(Outcome("ops", "timed out", "after 9 s", 9.04)) == (
        "ops         timed out     9.0 s  after 9 s"
    )
