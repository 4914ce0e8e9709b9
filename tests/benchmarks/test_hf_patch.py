"""transformers' models with and without the kernels, timed in turn; here of one thin layer."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from benchmarks.harness.results import STAGE_RESULT
from benchmarks.tune import hf_patch

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(hf_patch, "SHAPES", {"minilm": (64, 1, 2, 64)})
    monkeypatch.setattr(hf_patch, "FEWEST", 2)
    monkeypatch.setenv("STAGE", str(tmp_path))
    monkeypatch.setenv("DEVICE", "cpu")


def found(tmp_path, capsys, *arguments: str) -> list[dict]:
    hf_patch.main(["--seconds", "0", "--shapes", "minilm", "--batch", "2", *arguments])
    rows = json.loads((tmp_path / STAGE_RESULT).read_text())["hf_patch"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| minilm")]
    assert len(table) == len(rows)
    return rows


def test_a_loop_and_inference_are_timed(tmp_path, capsys):
    rows = found(tmp_path, capsys, "--tasks", "full")
    works = [(row["precision"], row["work"]) for row in rows]
    assert works == [(p, w) for p in ("fp32", "bf16") for w in ("train", "infer")]
    for row in rows:
        assert row["samples"] == 2 and row["real"] == row["padded"] == 2 * hf_patch.FULL_LENGTH
        assert row["ratios"].keys() == {"kernels", "attention"} and min(row["seconds"].values()) > 0


def test_steps_of_a_trainer_are_timed(tmp_path, capsys, monkeypatch):
    """Of all variants on the same batches, turn by turn, in the precision that is asked for."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import BertForSequenceClassification as Model

    forward, passes = Model.forward, []

    def watched(model, input_ids=None, **kwargs):
        is_bf16 = torch.is_autocast_enabled("cpu")
        passes.append((is_bf16, input_ids.clone(), model.bert.encoder.__module__))
        return forward(model, input_ids, **kwargs)

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(Model, "forward", watched)
    options = ("--work", "trainer", "--tasks", "sst", "--without-attention")
    fp32, bf16 = found(tmp_path, capsys, *options)
    assert (fp32["work"], fp32["precision"], bf16["precision"]) == ("trainer", "fp32", "bf16")
    assert fp32["ratios"].keys() == {"kernels"} and 0 < fp32["real"] < fp32["padded"]
    steps = 5
    turns = [passes[i : i + steps] for i in range(0, len(passes), steps)]
    assert len(turns) == 2 * 2 * 3  # precisions, variants, a warm-up and two samples
    for number, turn in enumerate(turns):
        assert {is_bf16 for is_bf16, _, _ in turn} == {number >= 6}
        for ours, theirs in zip(turn, turns[0], strict=True):
            assert torch.equal(ours[1], theirs[1])
    kinds = [turn[0][2].partition(".")[0] for turn in turns[:6]]
    stock, kernels = "transformers", "sbrrt_fast"
    assert kinds == [stock, kernels, kernels, stock, stock, kernels]
