"""Runs from start to metrics.json on a tiny encoder: repeatable, resumable, complete."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sbrrt_fast.config import (
    BregmanConfig,
    LogConfig,
    ModelConfig,
    RoundConfig,
    RunConfig,
    SmartConfig,
)
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import BackendError, ConfigError, SbrrtError, WeightsError
from sbrrt_fast.model.io import load_model
from sbrrt_fast.ops._backend import backends
from sbrrt_fast.training.checkpoint import load_state
from sbrrt_fast.training.scores.evaluate import evaluate, predict
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import kill_in_round, read_log, small_sample, tiny_backbone


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("trainer")
    return RunConfig(
        recipe="test",
        data_dir=small_sample(folder / "data"),
        model=ModelConfig(backbone=str(tiny_backbone(folder / "backbone"))),
        rounds=6,
        seed=3,
        smart=SmartConfig(weight=1.0),
        bregman=BregmanConfig(weight=0.8),
        round=RoundConfig(batch_size=4, epoch_task="sts"),
        log=LogConfig(every=2, state_every=0, tensorboard=False),
    )


def run(config: RunConfig, output: Path) -> dict:
    return Trainer(replace(config, output=output), log=lambda line: None).run()


def weights_of(output: Path, model: str = "last") -> dict[str, torch.Tensor]:
    encoder = load_file(output / model / "model.safetensors")
    return encoder | load_file(output / model / "heads.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(output: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "rounds_per_second"} for r in read_log(output)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_with_one_seed_are_bit_identical(base, tmp_path, precision):
    config = replace(base, precision=precision)
    first, second = (run(config, tmp_path / name) for name in ("a", "b"))
    assert first["dev"] == second["dev"]
    assert same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    run(replace(config, seed=4), tmp_path / "c")
    assert not same(weights_of(tmp_path / "a"), weights_of(tmp_path / "c"))


@pytest.mark.parametrize("schedule", ["round_robin", "annealed"])
def test_a_killed_run_resumes_as_the_same_run(base, tmp_path, monkeypatch, schedule):
    config = replace(
        base,
        round=replace(base.round, schedule=schedule),
        log=replace(base.log, state_every=2, evaluate_every=3),
    )
    whole = run(config, tmp_path / "whole")
    trainer = Trainer(replace(config, output=tmp_path / "cut"), log=lambda line: None)
    kill_in_round(trainer, 5)
    resumed = run(replace(config, resume=True), tmp_path / "cut")
    assert resumed["dev"] == whole["dev"]
    assert resumed["best_round"] == whole["best_round"]
    for model in ("best", "last"):
        assert same(weights_of(tmp_path / "cut", model), weights_of(tmp_path / "whole", model))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert resumed["means"] == whole["means"]
    assert load_state(tmp_path / "cut" / "state")[1]["finished"]


def test_what_a_run_leaves(base, tmp_path):
    output = tmp_path / "run"
    metrics = run(replace(base, log=replace(base.log, tensorboard=True)), output)
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert set(metrics["dev"]) == {"sst", "para", "sts", "overall"}
    parts = [metrics["dev"]["sst"]["accuracy"], metrics["dev"]["para"]["accuracy"]]
    parts.append(metrics["dev"]["sts"]["pearson"])
    assert metrics["dev"]["overall"] == pytest.approx(sum(parts) / 3)
    assert (metrics["rounds"], metrics["seed"], metrics["precision"]) == (6, 3, "fp32")
    assert metrics["rounds_per_second"] > 0
    assert metrics["evaluation_seconds"] > 0
    assert metrics["profile"] is None
    assert metrics["environment"]["versions"]["torch"] == torch.__version__
    assert metrics["environment"]["threads"] == torch.get_num_threads()
    logged = lines(output)[0]
    for name in ("sst", "para", "sts"):
        for term in ("loss", "smart", "bregman", "total", "perturbation", "gain"):
            assert logged[f"{name}/{term}"] is not None
        assert metrics["means"][f"{name}/smart"] > 0
    assert list((output / "tensorboard").iterdir())
    loaded, tokenizer = load_model(output / "best")
    trainer = Trainer(replace(base, output=tmp_path / "other"), log=lambda line: None)
    assert evaluate(loaded, trainer.dev_tasks) == metrics["dev"]
    assert tokenizer.encode("a film").ids == trainer.tokenizer.encode("a film").ids


def test_a_profiled_run_keeps_its_profile(base, tmp_path):
    profile = run(replace(base, profile=True), tmp_path / "run")["profile"]
    assert profile["rounds"] == 6
    assert profile["tokens"] > 0
    stages = {"data", "clean", "ascent", "adversarial", "teacher", "backward", "optimiser"}
    assert stages <= set(profile["seconds"])
    assert all(profile["seconds"][name] >= 0 for name in stages)
    assert set(profile["floor_seconds"]) == stages - {"data"}
    assert profile["memory_bytes"]["peak"] > 0


def test_the_time_of_evaluations_goes_on_across_an_interruption(base, tmp_path):
    config = replace(base, log=replace(base.log, evaluate_every=2, state_every=4))
    trainer = Trainer(replace(config, output=tmp_path / "cut"), log=lambda line: None)
    kill_in_round(trainer, 5)
    before = trainer.progress.evaluation_seconds
    resumed = Trainer(replace(config, resume=True, output=tmp_path / "cut"), log=lambda line: None)
    metrics = resumed.run()
    assert metrics["evaluation_seconds"] > before > 0  # before: after rounds 2 and 4


def test_padded_and_packed_predictions_agree(base, tmp_path):
    trainer = Trainer(replace(base, output=tmp_path / "run"), log=lambda line: None)
    for task in trainer.dev_tasks.values():
        packed, padded = (predict(trainer.model, task, packed=p) for p in (True, False))
        assert torch.allclose(packed, padded, atol=1e-5)
        assert torch.allclose(predict(trainer.model, task, limit=5), packed[:5], atol=1e-5)


@pytest.mark.parametrize("has_products", [True, False])
def test_bf16_predictions_take_the_products_that_the_cpu_has(
    base, tmp_path, monkeypatch, has_products
):
    stand_in = SimpleNamespace(has_bfloat16_products=lambda: has_products)
    monkeypatch.setattr("sbrrt_fast._extension.extension", stand_in)
    trainer = Trainer(replace(base, output=tmp_path))
    task = trainer.dev_tasks["sts"]
    low, full = (predict(trainer.model, task, precision=p, limit=20) for p in ("bf16", "fp32"))
    assert torch.equal(low, full) == (not has_products)
    assert torch.allclose(low, full, atol=0.2)


def test_predictions_are_in_the_order_of_the_rows(base, tmp_path):
    trainer = Trainer(replace(base, output=tmp_path / "run"), log=lambda line: None)
    task = trainer.dev_tasks["sts"]
    with torch.no_grad():
        for i in (0, 7, 11):
            alone = trainer.model("sts", assemble(task, [i]))
            assert torch.allclose(predict(trainer.model, task)[i], alone[0], atol=1e-5)


def test_best_is_the_best_evaluation(base, tmp_path):
    config = replace(base, rounds=8, log=replace(base.log, evaluate_every=2, dev_rows=10))
    metrics = run(config, tmp_path / "run")
    scores = {
        line["round"]: line["dev/overall"]
        for line in lines(tmp_path / "run")
        if "dev/overall" in line
    }
    assert sorted(scores) == [2, 4, 6, 8]
    assert scores[metrics["best_round"]] == max(scores.values())
    loaded, _ = load_model(tmp_path / "run" / "best")
    trainer = Trainer(replace(base, output=tmp_path / "other"), log=lambda line: None)
    assert evaluate(loaded, trainer.dev_tasks) == metrics["dev"]  # on all rows, not on ten


def test_a_new_task_needs_a_record_alone(base, tmp_path):
    record = replace(
        BUILTIN_TASKS["sts"], head="regression", encoding="cross", label_range=(0.0, 5.0)
    )
    metrics = run(
        replace(base, tasks={"cross": record}, round=RoundConfig(batch_size=4)), tmp_path / "r"
    )
    assert -1 <= metrics["dev"]["cross"]["pearson"] <= 1


def test_pretrain_leaves_the_encoder_as_it_was(base, tmp_path):
    tasks, rounds = {"sst": BUILTIN_TASKS["sst"]}, RoundConfig(batch_size=4)
    config = replace(base, mode="pretrain", tasks=tasks, round=rounds)
    run(config, tmp_path / "run")
    start = load_file(Path(base.model.backbone) / "model.safetensors")
    end = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert same(start, end)


def test_an_output_folder_is_not_overwritten_unasked(base, tmp_path):
    run(base, tmp_path / "run")
    with pytest.raises(SbrrtError, match="holds a run already"):
        run(base, tmp_path / "run")
    with pytest.raises(SbrrtError, match="finished; there is nothing to resume"):
        run(replace(base, resume=True), tmp_path / "run")
    assert run(replace(base, overwrite=True), tmp_path / "run")["rounds"] == 6


@pytest.fixture
def not_interpreted(monkeypatch):
    """Triton as without TRITON_INTERPRET=1, which it reads once a process."""
    monkeypatch.setattr(backends, "INTERPRETED", False)
    backends._triton_missing.cache_clear()
    yield
    backends._triton_missing.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so none can be missing")
@pytest.mark.usefixtures("not_interpreted")
def test_a_backend_that_is_not_there_is_refused_by_op(base):
    with pytest.raises(BackendError, match=r"attention: .*(NVIDIA GPU|not installed)"):
        Trainer(replace(base, backend="triton"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so none can be missing")
def test_a_gpu_that_is_not_there_is_refused(base):
    with pytest.raises(BackendError, match="sees no NVIDIA GPU"):
        Trainer(replace(base, device="cuda"))


def test_resuming_nothing_and_diverging_say_so(base, tmp_path):
    with pytest.raises(WeightsError, match="no run with a saved state to resume"):
        run(replace(base, resume=True), tmp_path / "nothing")
    hot = replace(base.optimizer, learning_rate=1e30, clip_norm=0.0, warmup=0.0)
    with pytest.raises(SbrrtError, match=r"is not finite .*so training cannot go on"):
        run(replace(base, optimizer=hot), tmp_path / "hot")


def test_a_frozen_encoder_under_a_head_without_weights_is_refused(base):
    with pytest.raises(ConfigError, match=r"tasks\.sts\.head: .*nothing to train"):
        Trainer(replace(base, mode="pretrain"))


def test_truncated_model_files_are_refused(base, tmp_path):
    run(base, tmp_path / "run")
    for name in ("heads.safetensors", "model.safetensors"):
        path = tmp_path / "run" / "best" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match=path.name):
            load_model(tmp_path / "run" / "best")
        path.write_bytes(whole)
