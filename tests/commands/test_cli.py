"""``sbrrt-fast`` from end to end: train, evaluate, and what it says of mistakes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sbrrt_fast import _extension
from sbrrt_fast.cli import COMMANDS, main
from sbrrt_fast.data.task import BUILTIN_TASKS
from tests.helpers import small_sample, train_tiny

RUNS = {
    "packed fp32": ("--round.update", "joint", "--log.dev-rows", "7"),
    "padded bf16": ("--layout", "padded", "--precision", "bf16", "--seed", "5"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A trained run per kind."""
    return {name: train_tiny(tmp_path_factory.mktemp("cli"), *RUNS[name]) for name in RUNS}


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of a run that a test may change."""
    return Path(shutil.copytree(runs["packed fp32"], tmp_path / "run"))


def status(argv: list[str]) -> int:
    """The exit status of a command line."""
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code or 0


def refused(argv: list[str], capsys) -> str:
    """What a command line that cannot be used says: one line on stderr, with status 2."""
    capsys.readouterr()
    assert status(argv) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"sbrrt-fast {argv[0]}: ")
    return output.err


def evaluated(tmp_path: Path, *argv: str) -> dict:
    """What ``evaluate --output`` writes."""
    assert main(["evaluate", *argv, "--output", str(tmp_path / "new" / "scores.json")]) == 0
    return json.loads((tmp_path / "new" / "scores.json").read_text())


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def label_share(data: Path, split: str, label: str) -> float:
    """How many of SST's rows have a label."""
    with (data / BUILTIN_TASKS["sst"].files[split]).open(encoding="utf-8", newline="") as file:
        labels = [row["sentiment"] for row in csv.DictReader(file, delimiter="\t")]
    return labels.count(label) / len(labels)


def always_answer(model: Path, label: int) -> None:
    """Changes a saved model's SST head so that it gives one class whatever the text."""
    heads = load_file(model / "heads.safetensors")
    heads["sst.classifier.weight"].zero_()
    heads["sst.classifier.bias"] = 9.0 * torch.nn.functional.one_hot(torch.tensor(label), 5).float()
    save_file(heads, model / "heads.safetensors")


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_without_a_command_the_commands_are_listed(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: sbrrt-fast COMMAND")
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_an_unknown_command_has_status_2(capsys):
    assert main(["evalute"]) == 2
    output = capsys.readouterr()
    assert output.err == "sbrrt-fast: unknown command 'evalute'; did you mean 'evaluate'?\n"
    assert output.out == ""


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--versoin", "unknown flag '--versoin'; did you mean '--version'?"),
        ("xyzzy", "unknown command 'xyzzy'; `sbrrt-fast help` lists the commands"),
        ("a\x1bb", "unknown command 'a\\x1bb'"),
    ],
)
@pytest.mark.parametrize("before", [[], ["help"]])
def test_an_unknown_word_is_one_line(word, hint, before, capsys):
    assert main([*before, word]) == 2
    output = capsys.readouterr()
    assert hint in output.err and output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_that_of_the_package(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"sbrrt-fast {metadata.version('sbrrt_fast')}\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "sbrrt_fast", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == f"sbrrt-fast {metadata.version('sbrrt_fast')}\n"
    command[-1] = "evalute"
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_help_of_a_command_is_its_help(capsys):
    texts = []
    for argv in (["help", "evaluate"], ["evaluate", "--help"]):
        assert status(argv) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("usage: sbrrt-fast evaluate ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert status([command, "--help"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: sbrrt-fast {command} ")
    assert output.err == ""


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("train", ("--config FILE", "--optimizer.learning-rate FLOAT")),
        ("evaluate", ("RUN", "--data-dir DIR", "--split {train,dev,test}", "--output FILE")),
        (
            "predict",
            ("RUN", "--data-dir DIR", "--model {best,last,round-N}", "(default: dev test)"),
        ),
        ("info", ("--json",)),
    ],
)
def test_help_names_the_arguments(command, wanted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert status([command, "--help"]) == 0
    text = capsys.readouterr().out
    for argument in wanted:
        assert argument in text


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "info"])
def test_an_unknown_flag_is_one_line_with_status_2(command, capsys):
    argv = [command, "--zzz"] if command in ("train", "info") else [command, "run", "--zzz"]
    assert "--zzz" in refused(argv, capsys)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Missing: RUN"),
        (["{run}", "--split", "dve"], "invalid choice 'dve' for argument '--split'"),
        (["{run}", "--model", "first"], "invalid choice 'first'"),
        (["{run}/nowhere"], "run/nowhere: is not the folder of a run, it has no config.yaml"),
        (["{run}/best"], "run/best: is not the folder of a run"),
        (["{run}", "--data-dir", "{run}/no"], "run/no: there is no such folder"),
    ],
)
def test_each_mistake_is_one_line(command, flags, message, run, capsys):
    argv = [command, *(flag.replace("{run}", str(run)) for flag in flags)]
    assert message in refused(argv, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_gpu_that_is_not_there_is_an_error(command, run, capsys):
    message = refused([command, str(run), "--device", "cuda"], capsys)
    assert "device 'cuda' is not available" in message


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_without_a_model_yet_is_an_error(command, run, capsys):
    shutil.rmtree(run / "best")
    assert "best: there is no saved state; train first" in refused([command, str(run)], capsys)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_damaged_configuration_is_an_error(command, run, capsys):
    (run / "config.yaml").write_text("sed: 3\n")
    assert "config.yaml: unknown key 'sed'" in refused([command, str(run)], capsys)


def test_evaluate_needs_a_file_for_every_task(run, tmp_path, capsys):
    data = small_sample(tmp_path / "data", num_rows=3)
    (data / "sts-dev.csv").unlink()
    message = refused(["evaluate", str(run), "--data-dir", str(data)], capsys)
    assert str(data / "sts-dev.csv") in message


@pytest.mark.parametrize("kind", RUNS)
def test_evaluate_repeats_the_dev_scores_of_the_run_exactly(kind, runs, tmp_path, capsys):
    expected = json.loads((runs[kind] / "metrics.json").read_text())
    found = evaluated(tmp_path, str(runs[kind]))
    assert found["dev"] == expected["dev"]
    assert [found[key] for key in ("precision", "layout")] == kind.split()[::-1]
    assert found["num_examples"] == {"sst": 24, "para": 24, "sts": 24}
    lines = capsys.readouterr().out.splitlines()
    assert found["intervals"] == expected["intervals"]
    dev = expected["dev"]
    assert f"best model of {runs[kind]}" in lines[0]
    for line, name, metric in ((2, "sst", "accuracy"), (4, "sts", "pearson")):
        low, high = expected["intervals"][name][metric]
        cells = [name, metric, f"{dev[name][metric]:.4f}", f"{low:.4f}", "to", f"{high:.4f}", "24"]
        assert lines[line].split() == cells
    assert lines[5].split() == ["overall", f"{dev['overall']:.4f}"]


def test_evaluate_says_which_rows_are_not_scored(run, tmp_path, capsys):
    data = small_sample(tmp_path / "data", num_rows=9)
    path = data / "quora-dev.csv"
    path.write_text(path.read_text(encoding="utf-8") + "1\tx\ty\n", encoding="utf-8")
    found = evaluated(tmp_path, str(run), "--data-dir", str(data))
    assert found["num_skipped"] == {"sst": 0, "para": 1, "sts": 0}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("para is scored without some rows: quora-dev.csv: 9 rows, skipped 1 (")
    assert "first: quora-dev.csv:11: 3 fields" in last


@pytest.mark.parametrize("flags", [("--no-rows",), ("--model", "last")])
def test_evaluate_writes_the_best_model_s_rows_alone(flags, run):
    shutil.rmtree(run / "evaluation")
    before = contents(run.parent)
    assert main(["evaluate", str(run), *flags]) == 0
    assert contents(run.parent) == before


@pytest.mark.parametrize("model", ["best", "last"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_evaluate_scores_the_model_and_split_it_is_asked_for(model, split, run, runs, tmp_path):
    always_answer(run / "best", 4)
    always_answer(run / "last", 1)
    found = evaluated(tmp_path, str(run), "--model", model, "--split", split)
    data = runs["packed fp32"].parent / "data"
    expected = label_share(data, split, {"best": "4", "last": "1"}[model])
    assert found[split]["sst"]["accuracy"] == expected
    assert found["model"] == model


def test_evaluate_takes_other_data_and_precision(run, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(_extension, "emulates_bf16", lambda device: False)
    small_sample(tmp_path / "other", num_rows=10)
    flags = ("--data-dir", str(tmp_path / "other"))
    fp32 = evaluated(tmp_path, str(run), *flags)
    bf16 = evaluated(tmp_path, str(run), *flags, "--precision", "bf16")
    assert fp32["num_examples"] == bf16["num_examples"] == {"sst": 10, "para": 10, "sts": 10}
    assert (fp32["precision"], bf16["precision"]) == ("fp32", "bf16")
    assert fp32["dev"]["sts"]["pearson"] != bf16["dev"]["sts"]["pearson"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert fp32["dev"]["sts"] != metrics["dev"]["sts"]


def test_evaluate_finds_a_model_whose_writer_was_killed(run, tmp_path):
    expected = json.loads((run / "metrics.json").read_text())["dev"]
    (run / "best").rename(run / "best.old")
    assert evaluated(tmp_path, str(run))["dev"] == expected


def test_an_output_that_cannot_be_written_is_an_error(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["evaluate", str(run), "--output", str(tmp_path / "file" / "scores.json")]
    message = f"{tmp_path / 'file'}: cannot be made, {tmp_path / 'file'} is a file"
    assert message in refused(argv, capsys)


def test_scores_on_the_builtin_sample_are_called_that(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = (run / "config.yaml").read_text().splitlines()
    lines = ["data_dir: null" if line.startswith("data_dir:") else line for line in config]
    (run / "config.yaml").write_text("\n".join(lines))
    found = evaluated(tmp_path, str(run))
    assert "the built-in sample (made up; no results)" in capsys.readouterr().out
    assert found["data_dir"] is None
    assert found["num_examples"] == {"sst": 120, "para": 120, "sts": 120}


@pytest.mark.parametrize(("backbone", "is_told"), [("minilm", True), ("bert-base-uncased", False)])
def test_minilm_s_exposure_to_quora_is_told(backbone, is_told, run, capsys):
    config = (run / "config.yaml").read_text()
    lines = [
        f"  backbone: {backbone}" if line.startswith("  backbone:") else line
        for line in config.splitlines()
    ]
    (run / "config.yaml").write_text("\n".join(lines))
    assert main(["evaluate", str(run)]) == 0
    assert ("all-MiniLM-L6-v2 saw Quora's duplicate pairs" in capsys.readouterr().out) == is_told


def omp_settings(**environment: str) -> str:
    """What GNU OpenMP says of itself when the command line loads torch."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    told = subprocess.run(
        [sys.executable, "-m", "sbrrt_fast.cli", "info"],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    if "OPENMP DISPLAY ENVIRONMENT" not in told.stderr:
        pytest.skip("this torch does not use GNU OpenMP, whose settings these are")
    return told.stderr


def test_waiting_threads_give_their_core_up_unless_the_user_decided():
    assert "GOMP_SPINCOUNT = '2000'" in omp_settings()
    assert "GOMP_SPINCOUNT = '77'" in omp_settings(GOMP_SPINCOUNT="77")
    assert "GOMP_SPINCOUNT = '2000'" not in omp_settings(OMP_WAIT_POLICY="active")


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (MemoryError(), "out of memory; lower round.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory; lower"),
    ],
)
def test_what_the_system_did_is_one_line(fault, line, monkeypatch, capsys):
    def main_of_info(argv):
        raise fault

    monkeypatch.setattr("sbrrt_fast.commands.info.main", main_of_info)
    assert line in refused(["info"], capsys)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main_of_info(argv):
        raise RuntimeError("a tensor has the wrong shape")

    monkeypatch.setattr("sbrrt_fast.commands.info.main", main_of_info)
    with pytest.raises(RuntimeError, match="wrong shape"):
        main(["info"])
