"""What is not finite: told, never saved, never resumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sbrrt_fast.cli import main
from sbrrt_fast.config import ModelConfig, RunConfig
from sbrrt_fast.config_rules import validate
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError, SbrrtError, WeightsError
from sbrrt_fast.training.checkpoint import load_state, save_state
from sbrrt_fast.training.finite import check_terms, nonfinite_names
from sbrrt_fast.training.log_summary import run_means
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import kill_in_round, read_log, small_sample, tiny_backbone, train_tiny


def test_the_mean_of_an_interval_is_of_what_is_finite():
    interval = IntervalMeans()
    for value, gain in ((1.0, None), (math.nan, 4.0), (3.0, math.inf), (-math.inf, math.nan)):
        terms = {"a/loss": torch.tensor(value), "b/gain": torch.tensor(math.nan).double()}
        if gain is not None:
            terms |= {"a/gain": torch.tensor(gain)}
        interval.add(terms)
    means = interval.read()
    assert (means["a/loss"], means["a/gain"]) == (2.0, 4.0)
    assert math.isnan(means["b/gain"])
    assert interval.num_values == {"a/loss": 4, "b/gain": 4, "a/gain": 3}
    assert interval.num_nonfinite == {"a/loss": 2, "b/gain": 4, "a/gain": 2}
    assert IntervalMeans().read() == {}


def test_names_are_found_in_order_and_whole_numbers_passed_over():
    tensors = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, math.inf]),
        "c": torch.tensor(2),
        "d": torch.tensor(math.nan).double(),
        "e": torch.empty(0),
    }
    assert nonfinite_names(tensors) == ["b", "d"]


def test_a_diagnostic_does_not_stop_a_run_and_a_loss_does():
    check_terms({"sst/gain": math.nan, "sst/perturbation": math.inf, "sst/loss": 1.0}, 4)
    for name in ("sst/loss", "sst/smart", "sst/bregman", "sst/total", "gradient_norm"):
        with pytest.raises(SbrrtError, match=rf"round 40: {name} is inf.*lower optimizer.learning"):
            check_terms({"sts/loss": 1.0, name: math.inf}, 40)


# Runs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nonfinite")
    small_sample(folder / "data")
    tiny_backbone(folder / "backbone")
    return folder


def model_of(place: Path) -> ModelConfig:
    return ModelConfig(backbone=str(place / "backbone"))


def command(place: Path, output: Path, *flags: str) -> list[str]:
    folders = ["--data-dir", str(place / "data"), "--backbone", str(place / "backbone")]
    return [
        "train", *folders, "--output", str(output), "--round.batch-size", "4",
        "--log.no-tensorboard", "--rounds", "6", "--log.every", "2", *flags,
    ]  # fmt: skip


@pytest.fixture
def overflowing(tmp_path) -> str:
    """A configuration whose sst task has a loss that float32 cannot hold."""
    path = tmp_path / "overflowing.yaml"
    path.write_text("tasks: {sst: {weight: 3.0e+38}, para: {}, sts: {}}\n")
    return str(path)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_skips_counts_and_goes_on(
    place, overflowing, tmp_path, capsys, backend, precision
):
    flags = "--config", overflowing, "--backend", backend, "--precision", precision
    assert main(command(place, tmp_path / "run", "--on-nonfinite", "skip", *flags)) == 0
    assert "6 of 18 updates were left out" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["skipped_updates"] == 6
    logged = [line for line in read_log(tmp_path / "run") if "num_rounds" in line]
    assert [line["skipped_updates"] for line in logged] == [2, 2, 2]
    assert all(line["sst/total"] is None and line["para/total"] > 0 for line in logged)
    assert "sst/total" not in metrics["means"]
    assert metrics["means"]["sst/loss"] > 0
    assert not nonfinite_names(load_file(tmp_path / "run" / "last" / "heads.safetensors"))


def test_a_run_that_trains_nothing_says_so(place, tmp_path, capsys):
    (tmp_path / "alone.yaml").write_text("tasks: {para: {weight: 3.0e+38}}\n")
    flags = "--config", str(tmp_path / "alone.yaml"), "--on-nonfinite", "skip"
    assert main(command(place, tmp_path / "run", *flags)) == 0
    told = capsys.readouterr().out
    assert "6 of 6 updates were left out" in told
    assert "no update of the rounds 1 to 6 was made; nothing was trained from there" in told
    before = load_file(place / "backbone" / "model.safetensors")
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_run_that_stops_says_where_and_why(place, overflowing, tmp_path, capsys):
    assert main(command(place, tmp_path / "run", "--config", overflowing)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "round 2: sst/total is not finite in 2 of the last 2 rounds, from the first on" in told
    assert "on_nonfinite skip" in told
    assert not any((tmp_path / "run" / name).exists() for name in ("last", "best", "state"))


def test_gradients_that_overflow_alone_stop_a_run_too(place, tmp_path, capsys):
    (tmp_path / "alone.yaml").write_text("tasks: {para: {weight: 3.0e+38}}\n")
    assert main(command(place, tmp_path / "run", "--config", str(tmp_path / "alone.yaml"))) == 2
    assert "round 2: gradient_norm is not finite in 2 of the last 2" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_run_that_skips_is_resumed_as_the_same_run(place, tmp_path, backend):
    tasks = {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}
    tasks["para"] = replace(tasks["para"], weight=3e38)
    config = RunConfig(
        data_dir=place / "data", model=model_of(place), rounds=6, tasks=tasks,
        on_nonfinite="skip", backend=backend,
    )  # fmt: skip
    log = replace(config.log, every=3, state_every=2, tensorboard=False)
    config = replace(config, log=log, round=replace(config.round, batch_size=4))

    def trainer(name: str, **changes) -> Trainer:
        return Trainer(replace(config, output=tmp_path / name, **changes), lambda line: None)

    whole = trainer("whole").run()
    cut = trainer("cut")
    kill_in_round(cut, 5)
    saved, _ = load_state(tmp_path / "cut" / "state")
    assert saved["optimizer.encoder.embeddings.LayerNorm.bias.step"] == 8  # of 12 in four rounds
    resumed = trainer("cut", resume=True).run()
    assert resumed["skipped_updates"] == whole["skipped_updates"] == 6
    for name in ("model.safetensors", "heads.safetensors"):
        paths = [tmp_path / run / "last" / name for run in ("whole", "cut")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("update", ["per_task", "joint"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_gain_that_cannot_be_computed_is_null(place, tmp_path, update, backend):
    """A text of U+FFFD alone has no token that may be perturbed: R_s is 0 everywhere."""
    (tmp_path / "data").mkdir()
    for path in (place / "data").iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    rows = ["\tid\tsentence\tsentiment", "0\ta\ta fine film\t4", "1\tb\t\ufffd\t0"]
    (tmp_path / "data" / "ids-sst-train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "sst.yaml").write_text("tasks: [sst]\n")
    flags = [
        "--config", str(tmp_path / "sst.yaml"), "--data-dir", str(tmp_path / "data"),
        "--round.batch-size", "1", "--smart.weight", "1", "--log.every", "1",
        "--round.update", update, "--backend", backend, "--log.tensorboard",
    ]  # fmt: skip
    assert main(command(place, tmp_path / "run", *flags)) == 0
    gains = [line["sst/gain"] for line in read_log(tmp_path / "run") if "sst/gain" in line]
    assert len(gains) == 6
    assert None in gains
    known = [gain for gain in gains if gain is not None]
    means = run_means(tmp_path / "run" / "metrics.jsonl")
    assert means["sst/gain"] == pytest.approx(sum(known) / len(known))
    assert means["sst/smart"] > 0


def test_weights_that_the_last_update_spoils_are_not_saved(place, tmp_path, capsys):
    flags = ["--optimizer.learning-rate", "1e38", "--optimizer.warmup", "0", "--rounds", "1"]
    flags += ["--round.update", "joint"]
    for policy in ("stop", "skip"):
        output = tmp_path / policy
        assert (
            main(command(place, output, "--on-nonfinite", policy, "--log.every", "1", *flags)) == 2
        )
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert "round 1: training made 'encoder.embeddings.word_embeddings.weight' infinite" in told
        assert not any((output / name).exists() for name in ("best", "last", "state"))


@pytest.mark.parametrize("spoilt_part", ["weights", "moments", "teacher"])
def test_what_was_saved_before_stays(place, tmp_path, spoilt_part):
    config = RunConfig(data_dir=place / "data", model=model_of(place), rounds=6)
    log = replace(config.log, every=2, state_every=2, evaluate_every=3, tensorboard=False)
    round_config = replace(config.round, batch_size=4)
    bregman = replace(config.bregman, weight=0.5)
    config = replace(config, output=tmp_path / "run", log=log, round=round_config, bregman=bregman)
    trainer = Trainer(config, lambda line: None)
    original = trainer.step.round_of

    def spoils_round_4(works, index, report):
        terms = original(works, index, report)
        if index == 3:
            name = "encoder.encoder.layer.1.output.dense.bias"
            parameter = dict(trainer.model.named_parameters())[name]
            tensor = {
                "weights": parameter,
                "moments": trainer.optimizer.state[parameter]["exp_avg_sq"],
                "teacher": trainer.teacher.state_dict()[name],
            }[spoilt_part]
            with torch.no_grad():
                tensor[3] = math.inf
        return terms

    trainer.step.round_of = spoils_round_4
    with pytest.raises(
        SbrrtError, match=r"round 4: training made '.*layer\.1\.output\.dense\.bias"
    ):
        trainer.run()
    tensors, meta = load_state(tmp_path / "run" / "state")
    assert meta["cursor"]["round"] == 2
    assert not nonfinite_names(tensors)
    for name in ("last/heads", "best/heads", "last/model"):
        assert not nonfinite_names(load_file(tmp_path / "run" / f"{name}.safetensors"))


def test_a_state_that_is_not_finite_is_not_resumed(place, tmp_path):
    config = RunConfig(data_dir=place / "data", model=model_of(place), rounds=6)
    log = replace(config.log, tensorboard=False, state_every=2)
    config = replace(config, output=tmp_path / "run", log=log)
    trainer = Trainer(config, lambda line: None)
    kill_in_round(trainer, 3)
    tensors, meta = load_state(tmp_path / "run" / "state")
    tensors["model.heads.sst.classifier.bias"] = torch.tensor([0.0, math.nan, 1.0, 2.0, 3.0])
    save_state(tmp_path / "run" / "state", tensors=tensors, meta=meta)
    with pytest.raises(WeightsError, match=r"state: 'model\.heads\.sst\.classifier\.bias' is not"):
        Trainer(replace(config, resume=True), lambda line: None).run()


def spoil(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[1] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_backbone_that_is_not_finite_is_named_before_training(place, tmp_path, capsys, value):
    backbone = tiny_backbone(tmp_path / "bad")
    spoil(backbone / "model.safetensors", "encoder.layer.1.attention.self.key.weight", value)
    assert main(command(place, tmp_path / "run", "--backbone", str(backbone))) == 2
    told = capsys.readouterr().err
    assert (
        f"{backbone}: 'encoder.layer.1.attention.self.key.weight' is not finite (1 of 1,024" in told
    )
    assert "learning_rate" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked", [["evaluate"], ["predict"]])
def test_a_trained_model_that_is_not_finite_is_refused(place, capsys, asked, tmp_path):
    run = train_tiny(tmp_path, "--rounds", "1")
    heads = run / "best" / "heads.safetensors"
    spoil(heads, "para.classifier.weight", math.nan)
    assert main([*asked, str(run)]) == 2
    assert (
        f"{run / 'best'}: 'heads.para.classifier.weight' is not finite" in capsys.readouterr().err
    )
    tensors = load_file(heads)
    tensors["para.classifier.weight"].fill_(3e38)
    save_file(tensors, heads)
    assert main([*asked, str(run)]) == 2
    told = capsys.readouterr().err
    assert "task 'para' dev: " in told
    assert "although all weights are finite" in told
    assert not (run / "predictions" / "para-dev-output.csv").exists()


# Configurations

VANISHING = [
    ("optimizer", {"eps": 1e-46}, r"optimizer\.eps: .*float32 .*got 1e-46"),
    ("optimizer", {"eps": 1e-39}, r"optimizer\.eps: "),  # below the normal numbers
    ("optimizer", {"eps": 1e39}, r"optimizer\.eps: "),
    ("optimizer", {"learning_rate": 1e-50}, r"optimizer\.learning_rate: "),
    ("optimizer", {"learning_rate": 1e39}, r"optimizer\.learning_rate: "),
    ("optimizer", {"head_learning_rate": 1e-50}, r"optimizer\.head_learning_rate: "),
    ("optimizer", {"weight_decay": 1e40}, r"optimizer\.weight_decay: "),
    ("optimizer", {"clip_norm": 1e-46}, r"optimizer\.clip_norm: "),
    ("optimizer", {"betas": (0.9, 1 - 1e-9)}, r"optimizer\.betas: .*rounds it to 1"),
    ("smart", {"weight": 1e-46}, r"smart\.weight: "),
    ("smart", {"sigma": 1e-46}, r"smart\.sigma: "),
    ("smart", {"step_size": 1e39}, r"smart\.step_size: "),
    ("smart", {"radius": 1e-46}, r"smart\.radius: "),
    ("smart", {"radius": 1e-22}, r"smart\.radius: .*quadratic"),
    ("smart", {"radius": 1e20}, r"smart\.radius: .*quadratic"),
    ("bregman", {"weight": 1e39}, r"bregman\.weight: "),
    ("model", {"hidden_dropout": 1 - 1e-9}, r"model\.hidden_dropout: .*rounds it to 1"),
]


@pytest.mark.parametrize(("section", "values", "message"), VANISHING)
def test_a_number_that_float32_does_not_hold_is_refused(section, values, message):
    config = RunConfig()
    with pytest.raises(ConfigError, match=message):
        validate(replace(config, **{section: replace(getattr(config, section), **values)}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 1e-46}, r"tasks\.sts\.weight: "),
        ({"label_range": (0.0, 1e39)}, r"tasks\.sts\.label_range: "),
        ({"label_range": (0.0, math.inf)}, r"tasks\.sts\.label_range: "),
        ({"label_range": (0.0, 1e-46)}, r"tasks\.sts\.label_range: "),
        ({"label_range": (1e9, 1e9 + 1)}, r"tasks\.sts\.label_range: .*still different as float32"),
        ({"label_range": (-5.0, 0.0)}, r"tasks\.sts\.label_range: .*above 0"),
    ],
)
def test_a_task_s_number_that_float32_does_not_hold_is_refused(fields, message):
    tasks = {"sts": replace(BUILTIN_TASKS["sts"], **fields)}
    with pytest.raises(ConfigError, match=message):
        validate(replace(RunConfig(), tasks=tasks))


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"eps": 1e-30, "weight_decay": 0.0, "clip_norm": 0.0}),
        ("optimizer", {"learning_rate": 1e30}),
        ("smart", {"step_size": math.inf, "radius": 1e-5, "weight": 0.0}),
        ("smart", {"preset": "paper", "weight": 1e4}),
    ],
)
def test_unusual_numbers_that_float32_holds_are_taken(section, values):
    config = RunConfig()
    validate(replace(config, **{section: replace(getattr(config, section), **values)}))
