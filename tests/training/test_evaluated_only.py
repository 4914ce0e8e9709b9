"""Tasks that are only evaluated: no file to train from, no update, a score all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sbrrt_fast.cli import main
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training.scores.metrics import chosen_by
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import config_file, kill_in_round, read_log, small_sample, train_tiny

OTHERS = "tasks: {sst: {}, para: {train: false}, sts: {train: false}}\n"
ALONE = "tasks: [sst]\n"
NOTE = "para, sts: only evaluated, by the heads that the run started with"


def weights(run: Path, name: str) -> dict:
    return load_file(run / name)


def train(folder: Path, text: str, *flags: str) -> Path:
    """A tiny run with SMART and a teacher of the settings in ``text``."""
    flags = ("--smart.weight", "1", "--bregman.weight", "0.5", "--log.evaluate-every", "1", *flags)
    return train_tiny(folder, "--config", str(config_file(folder, text)), *flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With data that have no training rows of para and sts."""
    folder = tmp_path_factory.mktemp("runs")
    small_sample(folder / "data")
    for name in ("quora-train.csv", "sts-train.csv"):
        (folder / "data" / name).unlink()
    return folder


@pytest.fixture(scope="module")
def run(folder) -> Path:
    return train(folder, OTHERS).rename(folder / "others")


@pytest.mark.parametrize("flags", [(), ("--backend", "reference"), ("--mode", "pretrain")])
def test_the_others_change_nothing_for_those_that_train(folder, tmp_path, flags):
    runs = [
        train(folder, text, *flags).rename(tmp_path / name)
        for name, text in (("others", OTHERS), ("alone", ALONE))
    ]
    encoders = [weights(run, "last/model.safetensors") for run in runs]
    heads = [weights(run, "last/heads.safetensors") for run in runs]
    assert all(encoders[0][name].equal(tensor) for name, tensor in encoders[1].items())
    assert all(heads[0][name].equal(tensor) for name, tensor in heads[1].items())
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    assert metrics[0]["dev"]["sst"] == metrics[1]["dev"]["sst"]
    assert metrics[0]["best_round"] == metrics[1]["best_round"]
    assert metrics[0]["means"].keys() == metrics[1]["means"].keys()


def test_they_are_scored_by_fresh_heads(run, folder, capsys):
    metrics = json.loads((run / "metrics.json").read_text())
    scores = [next(iter(metrics["dev"][name].values())) for name in ("sst", "para", "sts")]
    assert metrics["dev"]["overall"] == pytest.approx(sum(scores) / 3)
    fresh = Trainer(load_config(run / "config.yaml"), log=str).model.heads["para"].state_dict()
    last = weights(run, "last/heads.safetensors")
    assert all(last[f"para.{name}"].equal(tensor) for name, tensor in fresh.items())
    assert main(["evaluate", str(run), "--no-rows", "--output", str(folder / "x.json")]) == 0
    assert NOTE in capsys.readouterr().out
    assert json.loads((folder / "x.json").read_text())["dev"] == metrics["dev"]


def test_other_commands_take_such_a_run(run, capsys):
    assert NOTE in (run / "best" / "README.md").read_text()
    assert main(["evaluate", str(run), "--no-rows", "--split", "train"]) == 0
    assert "para " not in capsys.readouterr().out.partition("confusion")[0].replace(NOTE, "")
    assert main(["predict", str(run), "--split", "dev"]) == 0
    assert (run / "predictions" / "para-dev-output.csv").is_file()
    assert main(["report", str(run)]) == 0


def test_a_run_is_resumed(run, folder):
    killed = folder / "killed"
    flags = {"output": str(killed), "log": {"state_every": 2, "evaluate_every": 1}}
    started = load_config(run / "config.yaml")
    config = RunConfig(**{**vars(started), **flags})
    kill_in_round(Trainer(config, log=str), 2)
    assert main(["train", "--output", str(killed), "--resume"]) == 0
    for name in ("last/model.safetensors", "last/heads.safetensors"):
        assert all(weights(killed, name)[n].equal(t) for n, t in weights(run, name).items())


def test_models_are_chosen_by_the_tasks_that_train():
    tasks = {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}
    scores = {"sst": {"accuracy": 0.5}, "para": {"accuracy": 0.7}, "sts": {"pearson": None}}
    assert chosen_by(scores | {"overall": None}, tasks) is None
    record = vars(BUILTIN_TASKS["sts"]) | {"train": False}
    config = RunConfig(tasks={"sst": {}, "para": {}, "sts": record})
    assert chosen_by(scores | {"overall": None}, config.tasks) == pytest.approx(0.6)
    assert chosen_by({"overall": None}, config.tasks) is None


def test_the_best_model_is_the_best_of_the_tasks_that_train(run):
    logged = [line for line in read_log(run) if "dev/overall" in line]
    best = max(logged, key=lambda line: (line["dev/sst/accuracy"], -line["round"]))
    assert json.loads((run / "metrics.json").read_text())["best_round"] == best["round"]


def test_labels_are_found_in_the_dev_rows(folder, tmp_path, capsys):
    lines = "".join(f"{n},word {n},{'no' if n % 3 else 'yes'}\n" for n in range(12))
    (tmp_path / "dev.csv").write_text("id,text,answer\n" + lines)
    own = (
        f"files: {{dev: {tmp_path}/dev.csv}}, text_columns: [text], label_column: answer, "
        "head: classes, class_weights: balanced, train: false"
    )
    run = train(folder, f"tasks: {{sst: {{}}, mine: {{{own}}}}}\n")
    assert "mine: 2 classes, 'no', 'yes', as found in the dev rows" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["dev"]["mine"]["accuracy"] >= 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {sst: {train: false}}", "tasks: must be a task or more with train: true"),
        (
            "tasks: {sst: {}, sts: {train: false}}\nround: {epoch_task: sts}",
            "round.epoch_task: must be in ['sst']",
        ),
    ],
)
def test_some_task_trains(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file(tmp_path, text))
    assert message in str(caught.value)
