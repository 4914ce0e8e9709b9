"""Damaged backbones and model folders: one line that names the file, or the weights as stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sbrrt_fast.config import ModelConfig, RunConfig
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.build import build_model
from tests.helpers import tiny_backbone
from tests.model.damage import try_damaged

TASKS = {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}
TASKS["nli"] = replace(
    TASKS["sst"], text_columns=("a", "b"), encoding="cross", num_classes=3, prediction_file=""
)
FEW, MANY = 12, 100


def stored_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    if (folder / "2_Dense").is_dir() and (folder / "modules.json").is_file():
        dense = load_file(folder / "2_Dense" / "model.safetensors")
        weights |= {n.replace("linear.", "pooler.dense."): t for n, t in dense.items()}
    return weights


def differs(encoder: MiniBert, folder: Path) -> str:
    """Which tensor is not what the file holds, bit for bit."""
    stored = stored_weights(folder)
    for name, tensor in encoder.state_dict().items():
        bits = [x.float().contiguous().view(torch.int32) for x in (tensor, stored[name])]
        if not name.startswith("pooler.") and not torch.equal(*bits):
            return f"{name} is not as stored"
    return ""


def backbone(folder: Path, pooling: str) -> Path:
    return tiny_backbone(folder, pooling=pooling, num_layers=1, max_length=32)


def model_folder(folder: Path) -> Path:
    encoder_folder = backbone(folder.parent / "backbone", "cls")
    model = MultiTaskModel(MiniBert.from_folder(encoder_folder), TASKS)
    folder.mkdir()
    save_model(model, folder, load_tokenizer(encoder_folder))
    return folder


def answers(original: Path, place: Path, seeds: range, load, same) -> Counter:
    """Counts of ``refused`` and ``loaded``; anything else fails with what was done."""
    found = [try_damaged(original, place, seed, load, same) for seed in seeds]
    wrong = [answer for answer in found if answer not in ("refused", "loaded")]
    assert not wrong, "\n".join(wrong)
    return Counter(found)


def check_backbones(tmp_path: Path, seeds: range) -> Counter:
    originals = [backbone(tmp_path / pooling, pooling) for pooling in ("cls", "cls_token", "mean")]
    total = Counter()
    for i, original in enumerate(originals):
        folders = []

        def load(folder: Path, folders=folders) -> MiniBert:
            folders.append(folder)
            config = RunConfig(model=ModelConfig(backbone=str(folder)), tasks=TASKS)
            return build_model(config, lambda line: None)[0].encoder

        share = range(seeds.start + i, seeds.stop, len(originals))
        total += answers(
            original, tmp_path, share, load, lambda e, folders=folders: differs(e, folders[-1])
        )
    return total


def check_models(tmp_path: Path, seeds: range) -> Counter:
    original = model_folder(tmp_path / "model")
    folders = []

    def load(folder: Path) -> MultiTaskModel:
        folders.append(folder)
        return load_model(folder)[0]

    def same(model: MultiTaskModel) -> str:
        heads = load_file(folders[-1] / "heads.safetensors")
        for name, tensor in model.heads.state_dict().items():
            if not torch.equal(tensor.view(torch.int32), heads[name].view(torch.int32)):
                return f"{name} is not as stored"
        return differs(model.encoder, folders[-1])

    return answers(original, tmp_path, seeds, load, same)


def test_a_few_damaged_backbones(tmp_path):
    assert check_backbones(tmp_path, range(FEW))["refused"] > 0


def test_a_few_damaged_models(tmp_path):
    assert check_models(tmp_path, range(FEW))["refused"] > 0


@pytest.mark.long
def test_many_damaged_backbones(tmp_path):
    counts = check_backbones(tmp_path, range(1000, 1000 + MANY))
    print(f"damaged backbones: {dict(counts)}")
    assert counts["refused"] > MANY // 2


@pytest.mark.long
def test_many_damaged_models(tmp_path):
    counts = check_models(tmp_path, range(2000, 2000 + MANY))
    print(f"damaged models: {dict(counts)}")
    assert counts["refused"] > MANY // 2
