"""Runs on transformers' own encoders: SMART, teacher, precision, resume, saved models, adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from sbrrt_fast import load
from sbrrt_fast.cli import main
from sbrrt_fast.config import LoraConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.load_encoder import encoder_from_folder
from sbrrt_fast.model.lora import add_lora
from sbrrt_fast.model.modules import read_modules
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.transformers_loading import read_encoder
from sbrrt_fast.training.step.step import Step
from tests.helpers import read_log, train_tiny
from tests.model.models import TASKS
from tests.stock_backbones import OTHERS, stock_backbone
from tests.training.steps import SBRRT, autograd, make_round, smart, step_over

TEXTS = ["a joy to watch", "No!"]
FLAGS = (
    *("--smart.weight", "1", "--bregman.weight", "0.5", "--model.max-length", "24"),
    *("--optimizer.decay", "constant", "--optimizer.warmup", "0", "--log.state-every", "2"),
    *("--optimizer.learning-rate", "0.001", "--log.every", "1", "--model.pooling", "mean"),
)


@pytest.fixture(scope="module", params=["mpnet", "distilbert", "electra, projected"])
def trained(request, tmp_path_factory) -> Path:
    """A folder with a backbone and ``run``, four rounds on it."""
    folder = tmp_path_factory.mktemp("other")
    stock_backbone(folder / "backbone", request.param)
    (folder / "family").write_text(request.param)
    train_tiny(folder, *FLAGS, "--rounds", "4")
    return folder


def test_the_adversary_gains_and_everything_moves(trained):
    rounds = [line for line in read_log(trained / "run") if "sst/smart" in line]
    assert rounds
    for line in rounds:
        for task in ("sst", "para", "sts"):
            assert line[f"{task}/smart"] > 0
    assert any(line["sst/bregman"] > 0 for line in rounds)
    before = load_file(trained / "backbone" / "model.safetensors")
    after = load_file(trained / "run" / "last" / "model.safetensors")
    same = [name for name, x in after.items() if torch.equal(x, before[name])]
    # A key's bias moves all scores of a query alike: its gradient is zero but for rounding.
    assert all(
        name.endswith(("key.bias", "k_lin.bias", "k.bias", "key_proj.bias")) for name in same
    )


def test_the_best_model_is_transformers_s(trained):
    best, family = trained / "run" / "best", (trained / "family").read_text()
    theirs, report = transformers.AutoModel.from_pretrained(best, output_loading_info=True)
    assert theirs.config.model_type == family.partition(",")[0]
    assert not report["unexpected_keys"]
    assert all(name.startswith("pooler.") for name in report["missing_keys"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(best)
    ours = load(trained / "run", device="cpu")
    for text, vector in zip(TEXTS, ours.embed(TEXTS), strict=True):
        with torch.no_grad():
            hidden = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=2e-5)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    others = sentence_transformers.SentenceTransformer(str(best), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(others, ours.embed(TEXTS), atol=2e-5)


def test_it_is_evaluated_and_predicted_from(trained, capsys):
    run = trained / "run"
    assert main(["evaluate", str(run), "--output", str(trained / "dev.json")]) == 0
    found = json.loads((trained / "dev.json").read_text())["dev"]
    stored = json.loads((run / "metrics.json").read_text())["dev"]
    assert found["sst"]["accuracy"] == pytest.approx(stored["sst"]["accuracy"])
    assert main(["predict", str(run), "--split", "dev"]) == 0
    assert (run / "predictions" / "sst-dev-output.csv").is_file()
    capsys.readouterr()


def test_a_resumed_run_is_the_same(trained, tmp_path):
    shutil.copytree(trained / "backbone", tmp_path / "backbone")
    shutil.copytree(trained / "data", tmp_path / "data")
    run = train_tiny(tmp_path, *FLAGS, "--rounds", "2")
    assert main(["train", "--output", str(run), "--resume", "--rounds", "4"]) == 0
    for name in ("model.safetensors", "heads.safetensors"):
        a, b = (load_file(r / "last" / name) for r in (trained / "run", run))
        assert all(torch.equal(x, b[key]) for key, x in a.items())


# The step


def step_of(folder: Path, config=SBRRT, dtype=torch.float32, **dropout) -> Step:
    torch.manual_seed(0)
    encoder = encoder_from_folder(folder, "mean", **dropout)
    model = MultiTaskModel(encoder, TASKS)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.normal_(std=0.3)
    return step_over(autograd, model.to(dtype), config)


@pytest.fixture(scope="module", params=OTHERS)
def folder(request, tmp_path_factory) -> Path:
    changes = {"vocab_size": 700}
    return stock_backbone(tmp_path_factory.mktemp("b") / "backbone", request.param, **changes)


def test_the_adversary_earns_more_than_a_random_direction(folder):
    terms = step_of(folder).round(make_round(), 0, report=True)
    for task in ("sst", "para", "sts"):
        assert terms[f"{task}/gain"] > 3, task
        assert terms[f"{task}/perturbation"] > 0


@pytest.mark.parametrize("branch", ["forward", "linear"])
def test_gradients_equal_those_in_float64(folder, branch):
    """Dropout is on: the clean, adversarial and teacher passes of both have the same masks."""
    config = smart(branch=branch)
    ours, exact = step_of(folder, config), step_of(folder, config, torch.float64)
    for batch in make_round():
        found, expected = (step.gradients(batch, torch.tensor([3, 1])) for step in (ours, exact))
        flat = [torch.cat([x[n].flatten().double() for n in expected]) for x in (found, expected)]
        assert torch.cosine_similarity(*flat, dim=0) > 0.999


def test_r_s_measures_smoothness_and_not_dropout(folder):
    """Without a perturbation R_s is 0 though everything drops out; with masks apart it is not."""
    shared = smart(preset="paper", radius=1e-7, branch="forward", sigma=1e-8)
    for is_shared in (True, False):
        config = replace(shared, smart=replace(shared.smart, shared_dropout=is_shared))
        step = step_of(folder, config, torch.float64)
        terms = step.round(make_round()[:1], 0)
        assert (terms["sst/smart"] < 1e-8) == is_shared


def test_bf16_keeps_the_direction(folder):
    ours, exact = step_of(folder, replace(SBRRT, precision="bf16")), step_of(folder)
    batch = make_round()[0]
    found, expected = (step.gradients(batch, torch.tensor([3, 1])) for step in (ours, exact))
    flat = [torch.cat([x[n].flatten().double() for n in expected]) for x in (found, expected)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.97


def test_rounds_equal_minibert_s_on_the_same_checkpoint(tmp_path):
    """ELECTRA by transformers' modules, beside ours, without what perturbs another layer."""
    folder = stock_backbone(tmp_path / "electra", "electra", vocab_size=700)
    config = replace(SBRRT, smart=replace(SBRRT.smart, weight=0.0))
    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    ours = step_of(folder, config, **off)
    theirs = MultiTaskModel(read_encoder(read_modules(folder, "mean"), **off), TASKS)
    theirs.heads.load_state_dict(ours.model.heads.state_dict())
    other = step_over(autograd, theirs, config)
    for index in range(3):
        expected, found = (step.round(make_round(index), index) for step in (ours, other))
        for name, value in expected.items():
            floor = 1e-7 if name.endswith("bregman") else 1e-12
            close = torch.allclose(found[name].double(), value.double(), rtol=2e-3, atol=floor)
            assert close, (index, name, found[name], value)


# What goes with it


def run_of(place: Path, family: str, *flags: str) -> Path:
    stock_backbone(place / "backbone", family)
    return train_tiny(place, *FLAGS, *flags)


def test_a_frozen_encoder_stays(tmp_path):
    run = run_of(tmp_path, "mpnet", "--mode", "pretrain", "--tasks.sts.head", "regression")
    before = load_file(tmp_path / "backbone" / "model.safetensors")
    after = load_file(run / "last" / "model.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in after.items())


@pytest.mark.parametrize("family", ["distilbert", "modernbert"])
def test_adapters_are_merged_and_resumed(family, tmp_path):
    pytest.importorskip("peft")
    lora = ["--lora.rank", "2", "--lora.dropout", "0.2"]
    whole = tmp_path / "whole"
    run_of(tmp_path, family, *lora, "--rounds", "4", "--output", str(whole))
    before = load_file(tmp_path / "backbone" / "model.safetensors")
    after = load_file(whole / "last" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    ends = ("q_lin.weight", "v_lin.weight") if family == "distilbert" else ("Wqkv.weight",)
    assert changed == {name for name in before if name.endswith(ends)}
    run = train_tiny(tmp_path, *FLAGS, *lora, "--rounds", "2")
    assert main(["train", "--output", str(run), "--resume", "--rounds", "4"]) == 0
    again = load_file(run / "last" / "model.safetensors")
    assert all(torch.equal(x, again[name]) for name, x in after.items())


def test_adapters_name_what_is_not_there(tmp_path):
    pytest.importorskip("peft")
    shape = {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8, "vocab_size": 20}
    model = transformers.XLNetModel(transformers.XLNetConfig(**shape))
    model.save_pretrained(tmp_path / "xlnet")
    encoder = encoder_from_folder(tmp_path / "xlnet", "mean")
    message = r"lora\.targets: this XLNetModel has no 'query', its matrices are word_embedding, "
    with pytest.raises(ConfigError, match=message):
        add_lora(encoder, LoraConfig(rank=2), seed=0)


def test_it_says_why_the_step_is_autograd_s_and_what_cannot_be_exported(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    run = run_of(tmp_path, "mpnet")
    printed = capsys.readouterr().out
    assert (
        "the step runs under autograd, which is slower: encoder.model is a transformers" in printed
    )
    assert main(["export", str(run), "--onnx", str(tmp_path / "onnx")]) == 2
    error = capsys.readouterr().err.strip()
    assert "--onnx: writes encoders whose layers are BERT's" in error
    assert "\n" not in error
    assert not (tmp_path / "onnx").exists()


def test_dropout_is_a_setting_of_the_run(tmp_path):
    run = run_of(tmp_path, "distilbert", "--model.hidden-dropout", "0.25")
    config = json.loads((run / "best" / "config.json").read_text())
    assert (config["dropout"], config["attention_dropout"]) == (0.25, 0.1)
