"""The trainer with the Triton kernels does what it does with the references, dropout on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sbrrt_fast.config import (
    BregmanConfig,
    LogConfig,
    ModelConfig,
    RoundConfig,
    RunConfig,
    SmartConfig,
)
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops import triton_ops
from sbrrt_fast.ops.registry import require
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import small_sample, tiny_backbone

NUM_ROUNDS = 3
RESOLUTION = 2 * 5.0 * torch.finfo(torch.float32).eps  # of outputs up to 5, STS's highest label
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero):RuntimeWarning"  # of what masks leave out
)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    """SBRRT on a tiny encoder: one layer, one head of 32, sequences of at most 12 tokens."""
    folder = tmp_path_factory.mktemp("triton")
    backbone = tiny_backbone(folder / "backbone", num_layers=1, max_length=12)
    return RunConfig(
        recipe="test",
        data_dir=small_sample(folder / "data", 4),
        backbone=str(backbone),
        rounds=NUM_ROUNDS,
        seed=3,
        model=ModelConfig(max_length=12),
        smart=SmartConfig(weight=1.0, radius=0.1),
        bregman=BregmanConfig(weight=0.8),
        round=RoundConfig(batch_size=2),
        log=LogConfig(
            every=1, gain=False, state_every=0, tensorboard=False, evaluate_every=NUM_ROUNDS
        ),
    )


@dataclass
class Run:
    """What a run left: loss terms of each round, the first update's gradients, weights."""

    terms: list[dict[str, float]]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def run(config: RunConfig, backend: str, output: Path) -> Run:
    trainer = Trainer(replace(config, backend=backend, output=output), log=lambda line: None)
    gradients, update = {}, trainer.step._update

    def noted(step: int) -> Tensor:
        if step == 1:
            named = trainer.step.model.named_parameters()
            gradients.update({n: p.grad.clone() for n, p in named if p.grad is not None})
        return update(step)

    trainer.step._update = noted
    trainer.run()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    terms = [
        {name: value for name, value in line.items() if "/" in name or name == "gradient_norm"}
        for line in lines
        if "gradient_norm" in line
    ]
    weights = load_file(output / "last" / "encoder" / "model.safetensors")
    return Run(terms, gradients, weights | load_file(output / "last" / "heads.safetensors"))


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the host functions that ran."""
    names, find = [], triton_ops._host_function

    def found(module: str, function: str):
        names.append(f"{module}.{function}")
        return find(module, function)

    monkeypatch.setattr(triton_ops, "_host_function", found)
    return names


WAYS = ("forward", "backward", "jvp")
EXPECTED = {
    *(f"{op}.{way}" for op in ("attention", "layernorm", "gelu") for way in WAYS),
    *("embed.forward", "embed.backward", "adamw_ema.adamw_ema_", "adamw_ema.gradient_norm"),
    *("symmetric_kl.forward", "symmetric_kl.backward", "symmetric_kl.fisher"),
    *("smart_noise.smart_noise", "smart_ascend.smart_ascend"),
}


def test_every_op_has_a_triton_implementation():
    require("triton")


def test_three_rounds_equal_the_reference(config, tmp_path, launched):
    theirs = run(config, "reference", tmp_path / "reference")
    assert not launched
    ours = run(config, "triton", tmp_path / "triton")
    assert set(launched) == EXPECTED
    assert len(ours.terms) == len(theirs.terms) == NUM_ROUNDS
    for found, expected in zip(ours.terms, theirs.terms, strict=True):
        assert all(expected[f"{task}/smart"] > 0 for task in ("sst", "para", "sts"))
        for name, value in expected.items():
            # D_Breg is of second order in the distance of outputs that are known to an ulp or two.
            floor = 2 * value**0.5 * RESOLUTION if name.endswith("/bregman") else 1e-9
            assert found[name] == pytest.approx(value, rel=1e-4, abs=floor), name
    compare(ours.gradients, theirs.gradients, theirs.gradients, 1e-4)
    start = load_file(Path(config.backbone) / "model.safetensors")
    moved = {n: w - start[n] if n in start else w for n, w in theirs.weights.items()}
    compare(ours.weights, theirs.weights, moved, 1e-2)  # Adam magnifies rounding


def compare(ours: dict, theirs: dict, scales: dict, tolerance: float) -> None:
    """Each tensor to the tolerance of the norm of ``scales``; but for the keys' biases, which shift
    all scores of a query alike: their true gradient is 0, and Adam scales up what is left of it."""
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, mine in ours.items():
        if name.endswith("key.bias"):
            continue
        assert (mine - theirs[name]).norm() <= tolerance * scales[name].norm() + 1e-9, name


def test_dropout_is_on(config, tmp_path):
    """Else the comparison would not see the masks."""
    model = replace(config.model, hidden_dropout=0.0, attention_dropout=0.0)
    one = replace(config, rounds=1)
    dropped = run(one, "reference", tmp_path / "on").terms[0]
    whole = run(replace(one, model=model), "reference", tmp_path / "off").terms[0]
    for name in ("sst/loss", "para/loss", "sts/loss"):
        assert abs(dropped[name] / whole[name] - 1) > 1e-3


@pytest.mark.parametrize("reason", ["Triton is not installed", "there is no NVIDIA GPU"])
def test_a_trainer_without_triton_says_why(config, tmp_path, monkeypatch, reason):
    monkeypatch.setattr(triton_ops, "_missing", lambda: reason)
    with pytest.raises(BackendError, match=f"backend 'triton' cannot run every op.*{reason}"):
        Trainer(replace(config, backend="triton", output=tmp_path))
