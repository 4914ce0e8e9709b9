"""Callbacks of a run, and the services that ``report_to`` names."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast import Callback, LogConfig, ModelConfig, RoundConfig, RunConfig, load, train
from sbrrt_fast.cli import main
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.training.run_folder import is_finished
from tests.helpers import Killed, read_log, small_sample, tiny_backbone, train_tiny

WANDB = '''
"""A stand-in for wandb, which writes down what it is called with."""
import json, math, os

def _write(**record):
    with open(os.environ["WANDB_STANDIN"], "a") as file:
        file.write(json.dumps(record) + "\\n")

class Summary:
    def update(self, values):
        _write(call="summary", values=values)

class Run:
    summary = Summary()

    def log(self, values, step):
        if step == int(os.environ.get("WANDB_FAILS_AT", 0)):
            raise ConnectionError("no way to the service")
        _write(call="log", values=values, step=step)

    def finish(self, exit_code=0):
        _write(call="finish", exit_code=exit_code)

def init(**arguments):
    _write(call="init", **arguments)
    return Run()
'''


class Recorder(Callback):
    """Keeps what it is told; it raises at a hook and round if asked to."""

    def __init__(self, fails: str = "", at: int | None = None):
        self.calls: list[tuple] = []
        self.fails, self.at = fails, at

    def _note(self, hook, *arguments):
        self.calls.append((hook, *arguments))
        if hook == self.fails and self.at in (None, arguments[0]):
            raise LookupError(f"of the callback in {hook}")

    def on_start(self, run):
        self._note("start", run)

    def on_log(self, round, values):
        self._note("log", round, values)

    def on_evaluate(self, round, scores):
        self._note("evaluate", round, scores)

    def on_end(self, metrics):
        self._note("end", metrics)

    def on_stop(self, error):
        self._note("stop", error)

    @property
    def names(self) -> list:
        """Each call's hook, with its round where it has one."""
        return [c[:2] if c[0] in ("log", "evaluate") else c[0] for c in self.calls]


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """Six rounds on two tasks, with an evaluation and a state every three."""
    small_sample(tmp_path / "data")
    return RunConfig(
        data_dir=tmp_path / "data",
        output=tmp_path / "run",
        rounds=6,
        tasks={name: task for name, task in RunConfig().tasks.items() if name != "para"},
        model=ModelConfig(backbone=str(tiny_backbone(tmp_path / "backbone", num_layers=1))),
        round=RoundConfig(batch_size=4),
        log=LogConfig(every=2, evaluate_every=3, state_every=3, tensorboard=False),
    )


def quiet(line: str) -> None:
    """Where the lines of a run go."""


def test_hooks_are_told_what_is_written(config):
    recorder = Recorder()
    result = train(config, [recorder], log=quiet)
    assert recorder.names == [
        "start",
        *(("log", 2), ("log", 3), ("evaluate", 3), ("log", 4), ("log", 6), ("evaluate", 6)),
        "end",
    ]
    run = recorder.calls[0][1]
    assert (run.config, run.num_rounds, run.first_round) == (config, 6, 0)
    assert len(run.id) == 16 and int(run.id, 16) >= 0
    logged = {call[1]: call[2] for call in recorder.calls if call[0] == "log"}
    lines = [line for line in read_log(result.folder) if "epoch" in line]
    assert [line.pop("round") for line in lines] == list(logged)
    for line, values in zip(lines, logged.values(), strict=True):
        assert {k: None if math.isnan(v) else v for k, v in values.items()} == line
    assert recorder.calls[-1][1] == result.metrics
    assert json.loads((result.folder / "metrics.json").read_text()) == result.metrics
    best = [call[2] for call in recorder.calls if call[0] == "evaluate"]
    assert result.metrics["dev"] in best


def test_the_result_gives_the_model(config):
    result = train(config, log=quiet)
    assert result.folder == config.output
    texts = ["a film", "slow"]
    ours, loaded = result.model().predict("sst", texts), load(result.folder).predict("sst", texts)
    assert ours.probabilities.tolist() == loaded.probabilities.tolist()
    assert result.model(which="last").tasks.keys() == {"sst", "sts"}


def test_what_a_callback_changes_is_its_own(config):
    class Vandal(Callback):
        def on_log(self, round, values):
            values.clear()

        def on_evaluate(self, round, scores):
            scores["overall"] = 99.0
            scores["sst"].clear()

        def on_end(self, metrics):
            metrics.clear()

    recorder = Recorder()
    metrics = train(config, [Vandal(), recorder], log=quiet).metrics
    assert metrics["dev"]["overall"] <= 1 and metrics["dev"]["sst"]
    assert all(call[2] for call in recorder.calls if call[0] in ("log", "evaluate"))
    assert recorder.calls[-1][1] == metrics


def without_times(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "rounds_per_second"} for line in read_log(run)]


def test_a_hook_that_raises_ends_the_run_which_goes_on_as_the_same(config, tmp_path):
    train(replace(config, output=tmp_path / "whole"), log=quiet)
    failing, other = Recorder("log", 4), Recorder()
    with pytest.raises(LookupError, match="of the callback in log") as caught:
        train(config, [failing, other], log=quiet)
    assert failing.calls[-1] == other.calls[-1] == ("stop", caught.value)
    assert not is_finished(config.output)
    again = Recorder()
    train(replace(config, resume=True), [again], log=quiet)
    assert again.names == ["start", ("log", 4), ("log", 6), ("evaluate", 6), "end"]
    assert again.calls[0][1].first_round == 3
    assert again.calls[0][1].id == failing.calls[0][1].id
    assert without_times(config.output) == without_times(tmp_path / "whole")
    files = [folder / "best/heads.safetensors" for folder in (config.output, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("hook", ["start", "evaluate", "end"])
def test_whatever_hook_raises_all_are_told(config, hook):
    failing, other = Recorder(hook), Recorder("stop")  # whose own error is not the one that is told
    with pytest.raises(LookupError, match=f"of the callback in {hook}"):
        train(config, [other, failing], log=quiet)
    assert failing.names[-1] == other.names[-1] == "stop"
    assert is_finished(config.output) == (hook == "end")


def test_a_run_that_fails_tells_its_callbacks(config, monkeypatch):
    def killed(*_):
        raise Killed

    recorder = Recorder()
    monkeypatch.setattr("sbrrt_fast.training.trainer.Trainer._round", killed)
    with pytest.raises(Killed):
        train(config, [recorder], log=quiet)
    assert recorder.names == ["start", "stop"] and isinstance(recorder.calls[1][1], Killed)


def test_a_run_has_an_id_of_its_own(config):
    first, second = Recorder(), Recorder()
    train(config, [first], log=quiet)
    train(replace(config, overwrite=True), [second], log=quiet)
    assert first.calls[0][1].id != second.calls[0][1].id


@pytest.mark.parametrize("callback", [Recorder, "wandb", object()])
def test_what_is_no_callback_is_refused_before_training(config, callback):
    with pytest.raises(ConfigError, match="is no callback; give an instance of a subclass"):
        train(config, [callback], log=quiet)
    assert not config.output.exists()


def test_a_folder_in_use_is_refused_before_anything_is_built(config):
    config.output.mkdir()
    (config.output / "mine.txt").write_text("mine")
    with pytest.raises(SbrrtError, match=r"is not empty and not the folder of a run"):
        train(replace(config, model=ModelConfig(backbone="/none")), log=quiet)


# report_to


@pytest.fixture
def wandb(tmp_path, monkeypatch) -> Path:
    """A stand-in for the module ``wandb``; returns the file that it writes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_STANDIN", str(tmp_path / "calls.jsonl"))
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "calls.jsonl"
    sys.modules.pop("wandb", None)


def calls_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_wandb_gets_settings_values_scores_and_summary(config, wandb):
    result = train(replace(config, report_to=("wandb",)), log=quiet)
    first, *logs, summary, finish = calls_in(wandb)
    assert (first["call"], first["project"], first["name"]) == ("init", "sbrrt_fast", "run")
    assert first["config"]["model"]["backbone"] == config.model.backbone
    assert first["resume"] == "allow" and len(first["id"]) == 16
    assert [log["step"] for log in logs] == [2, 3, 3, 4, 6, 6]
    for line in read_log(result.folder):
        told = {}
        for log in logs:
            told |= log["values"] if log["step"] == line["round"] else {}
        assert line.items() - {("round", line["round"])} <= told.items()
    assert summary["values"]["best/dev/overall"] == result.metrics["dev"]["overall"]
    assert summary["values"]["best/round"] == result.metrics["best_round"]
    assert finish == {"call": "finish", "exit_code": 0}


def test_wandb_goes_on_with_a_resumed_run(config, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_FAILS_AT", "4")
    config = replace(config, report_to=("wandb",))
    with pytest.raises(SbrrtError) as caught:
        train(config, log=quiet)
    assert str(caught.value) == (
        "report_to wandb: on_log failed (ConnectionError: no way to the service); mend it and go "
        "on with --resume, or leave it out"
    )
    assert calls_in(wandb)[-1] == {"call": "finish", "exit_code": 1}
    monkeypatch.delenv("WANDB_FAILS_AT")
    train(replace(config, resume=True), log=quiet)
    starts = [call for call in calls_in(wandb) if call["call"] == "init"]
    assert len(starts) == 2 and starts[0]["id"] == starts[1]["id"]
    assert starts[0]["project"] == "mine"


def test_a_run_may_be_resumed_without_its_reports(config, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_FAILS_AT", "4")
    with pytest.raises(SbrrtError, match="report_to wandb"):
        train(replace(config, report_to=("wandb",)), log=quiet)
    train(replace(config, resume=True), log=quiet)
    assert is_finished(config.output)


def test_the_command_line_and_a_recipe_name_reports(tmp_path, wandb):
    run = train_tiny(tmp_path, "--report-to", "wandb", "--tasks.sst.weight", "2")
    assert load_config(run / "config.yaml").report_to == ("wandb",)
    assert calls_in(wandb)[-1]["call"] == "finish"


def test_a_class_of_one_s_own_follows_a_run(config, tmp_path, monkeypatch):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "my_reports.py").write_text(
        "from sbrrt_fast import Callback\n"
        "ends = []\n"
        "class Mine(Callback):\n"
        "    def on_end(self, metrics):\n"
        "        ends.append(metrics)\n"
        "class Bad(Callback):\n"
        "    def __init__(self, key):\n"
        "        pass\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "place")
    result = train(replace(config, report_to=("my_reports:Mine",)), log=quiet)
    assert sys.modules["my_reports"].ends == [result.metrics]
    for name, message in {
        "my_reports:Bad": "my_reports:Bad cannot be made without arguments (TypeError: ",
        "my_reports:number": "my_reports:number is no subclass of sbrrt_fast.Callback",
        "my_reports:None_": "my_reports:None_ is no subclass of sbrrt_fast.Callback",
        "os:system": "os:system is no subclass of sbrrt_fast.Callback",
        "no_such_reports:X": "no_such_reports cannot be imported (No module named",
    }.items():
        with pytest.raises(ConfigError) as caught:
            train(replace(config, overwrite=True, report_to=(name,)), log=quiet)
        assert f"report_to: {message}" in str(caught.value)


def test_wandb_that_is_not_installed_is_one_line(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = ["--backbone", config.model.backbone, "--output", str(tmp_path / "x")]
    assert main(["train", *flags, "--report-to", "wandb"]) == 2
    message = "report_to: wandb is not installed; `pip install wandb`, or leave it out of report_to"
    assert capsys.readouterr().err == f"sbrrt-fast train: {message}\n"
    assert not (tmp_path / "x").exists()


def test_a_folder_that_wandb_left_is_not_wandb(config, tmp_path, monkeypatch):
    (tmp_path / "here" / "wandb").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "here")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if getattr(__import__("wandb"), "init", None):
        pytest.skip("wandb itself is installed, and found first")
    with pytest.raises(ConfigError, match="wandb is not installed"):
        train(replace(config, report_to=("wandb",)), log=quiet)
    sys.modules.pop("wandb")


@pytest.mark.parametrize("names", [("tensorboard",), ("a:",), ("a b:C",), ("wandb", "wandb")])
def test_names_of_another_form_are_refused(names):
    with pytest.raises(ConfigError, match=r"^report_to: must be "):
        RunConfig(report_to=names)
