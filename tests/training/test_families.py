"""Runs on other families whose layers are BERT's: written out, and saved as what they were."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from sbrrt_fast import load
from sbrrt_fast.cli import main
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.build import build_model, build_step
from sbrrt_fast.training.step.step import Step
from tests.helpers import train_tiny
from tests.model.models import TASKS
from tests.stock_backbones import BERT_LIKE, stock_backbone
from tests.training.steps import (
    SBRRT,
    autograd,
    is_written_out,
    make_round,
    step_over,
    written_out,
)

FLAGS = ("--smart.weight", "1", "--bregman.weight", "0.5", "--model.max-length", "24")


def step_of(kind, folder: Path, backend: str = "auto") -> Step:
    torch.manual_seed(0)
    model = MultiTaskModel(MiniBert.from_folder(folder, "mean"), TASKS)
    return step_over(kind, model, replace(SBRRT, backend=backend))


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_rounds_equal_the_reference_s(family, tmp_path):
    changes = {"type_vocab_size": 2, "vocab_size": 700}  # those of the rounds' random tokens
    folder = stock_backbone(tmp_path / family, family, **changes)
    ours, theirs = step_of(written_out, folder), step_of(autograd, folder, "reference")
    rng = torch.tensor([3, 1])
    for batch in make_round():
        found, expected = ours.gradients(batch, rng), theirs.gradients(batch, rng)
        assert found.keys() == expected.keys()
        largest = max(g.norm() for g in expected.values())
        for name, gradient in expected.items():
            if gradient.norm() > 1e-5 * largest:  # below it is rounding, as for key biases
                assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name
    for index in range(2):
        found, expected = (step.round(make_round(index), index, True) for step in (ours, theirs))
        assert found.keys() == expected.keys()
        for term, value in expected.items():
            floor = 1e-7 if term.endswith("bregman") else 1e-12
            close = torch.allclose(found[term].double(), value.double(), rtol=2e-3, atol=floor)
            assert close, (index, term, found[term], value)


def test_the_step_of_a_run_is_written_out(tmp_path):
    folder = stock_backbone(tmp_path / "roberta", "roberta")
    of = {"backbone": str(folder), "pooling": "mean", "hidden_dropout": 0.0}
    config = replace(SBRRT, model=replace(SBRRT.model, **of, attention_dropout=0.0))
    lines: list[str] = []
    model, _ = build_model(config, lines.append)
    assert is_written_out(step_over(lambda *parts: build_step(*parts, lines.append), model, config))
    assert lines == [f"backbone {folder}: pooling 'mean' (model.pooling)"]


@pytest.mark.parametrize("family", BERT_LIKE)
def test_a_run_is_loaded_as_what_it_was(family, tmp_path, capsys):
    stock_backbone(tmp_path / "backbone", family)
    run = train_tiny(tmp_path, *FLAGS, "--model.pooling", "mean")
    assert "under autograd" not in capsys.readouterr().out
    best = run / "best"
    theirs = transformers.AutoModel.from_pretrained(best)
    assert theirs.config.model_type == family
    assert f"- {family}\n" in (best / "README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(best)
    ours = load(run, device="cpu")
    texts = ["a joy to watch", "No!"]
    for text, vector in zip(texts, ours.embed(texts), strict=True):
        with torch.no_grad():
            hidden = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-5)
    assert main(["predict", str(run), "--split", "dev"]) == 0
    assert (run / "predictions" / "sst-dev-output.csv").is_file()


def test_pairs_in_one_sequence_have_two_separators(tmp_path):
    stock_backbone(tmp_path / "backbone", "roberta")
    flags = ["--tasks.para.encoding", "cross", "--tasks.para.head", "binary"]
    run = train_tiny(tmp_path, *FLAGS, *flags, "--model.pooling", "mean")
    best = run / "best"
    ours = load(run, device="cpu")
    theirs = transformers.AutoModel.from_pretrained(best)
    tokenizer = transformers.AutoTokenizer.from_pretrained(best)
    with torch.no_grad():
        tokens = tokenizer("a joy", "to watch", return_tensors="pt")
        vector = theirs(**tokens).last_hidden_state[0].mean(0)
        head = ours._model.heads["para"].classifier
        expected = torch.sigmoid(vector @ head.weight[0] + head.bias[0])
    assert tokens["input_ids"][0].tolist().count(tokenizer.sep_token_id) == 3
    found = ours.predict("para", [("a joy", "to watch")]).probabilities[0]
    np.testing.assert_allclose(found[1], expected.item(), atol=1e-5)


def test_a_killed_run_goes_on_and_is_the_same(tmp_path):
    stock_backbone(tmp_path / "backbone", "roberta")
    flags = [*FLAGS, "--model.pooling", "mean", "--optimizer.decay", "constant"]
    flags += ["--optimizer.warmup", "0", "--log.state-every", "2"]
    whole = tmp_path / "whole"
    train_tiny(tmp_path, *flags, "--rounds", "4", "--output", str(whole))
    run = train_tiny(tmp_path, *flags, "--rounds", "2")
    assert main(["train", "--output", str(run), "--resume", "--rounds", "4"]) == 0
    weights = [(r / "last" / "model.safetensors").read_bytes() for r in (whole, run)]
    assert whole != run
    assert weights[0] == weights[1]


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install -e '.[onnx]'",
)
def test_a_run_is_exported(tmp_path, capsys):
    stock_backbone(tmp_path / "backbone", "roberta")
    run = train_tiny(tmp_path, *FLAGS, "--model.pooling", "mean")
    assert main(["export", str(run), "--onnx", str(tmp_path / "onnx")]) == 0
    assert "compared with the model in onnxruntime" in capsys.readouterr().out
