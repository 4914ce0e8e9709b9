"""A tokenizer, an encoder, tasks and heads that do not belong together are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from sbrrt_fast.config import ModelConfig, RunConfig
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.hub import save_encoder
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.build import build_model
from tests.helpers import tiny_backbone, tiny_tokenizer

CROSS = TaskConfig({}, ("a", "b"), "label", "binary", encoding="cross")
SINGLE = {"sst": BUILTIN_TASKS["sst"]}
TASKS = {name: BUILTIN_TASKS[name] for name in ("sst", "para")}


@pytest.fixture
def backbone(tmp_path) -> Path:
    return tiny_backbone(tmp_path / "backbone", num_layers=1, max_length=32)


def build(folder: Path, tasks: dict[str, TaskConfig] = SINGLE, lines: list | None = None):
    config = RunConfig(model=ModelConfig(backbone=str(folder)), tasks=tasks)
    return build_model(config, ([] if lines is None else lines).append)


def with_config(folder: Path, place: Path, tokenizer: Tokenizer, **changes) -> Path:
    """Another random encoder with this folder's shape but for some fields."""
    config = replace(MiniBert.from_folder(folder).config, **changes)
    save_encoder(MiniBert(config, "mean"), place, tokenizer)
    return place


def test_largest_id_is_compared_with_the_word_table(backbone, tmp_path):
    tokenizer = tiny_tokenizer()
    size = tokenizer.get_vocab_size()
    build(backbone)
    folder = with_config(backbone, tmp_path / "narrow", tokenizer, vocab_size=size - 1)
    message = rf"largest id is {size - 1} \(\"\w+\"\), but the word table has {size - 1} rows"
    with pytest.raises(WeightsError, match=message):
        build(folder)
    tokenizer.add_tokens(["<new>"])
    folder = with_config(backbone, tmp_path / "added", tokenizer)
    with pytest.raises(WeightsError, match=rf'largest id is {size} \("<new>"\)'):
        build(folder)
    folder = with_config(backbone, tmp_path / "wide", tokenizer, vocab_size=size + 1)
    assert build(folder)[1].encode("a<new>").ids[2] == size


def test_cross_pairs_need_two_token_types(backbone, tmp_path):
    folder = with_config(backbone, tmp_path / "one", tiny_tokenizer(), type_vocab_size=1)
    build(folder)
    message = r"tasks\.nli\.encoding: 'cross' needs token types up to 1, but the encoder .* has 1"
    with pytest.raises(WeightsError, match=message):
        build(folder, SINGLE | {"nli": CROSS})
    build(backbone, SINGLE | {"nli": CROSS})


def test_pairs_of_one_token_type_fit_one(backbone, tmp_path):
    folder = with_config(backbone, tmp_path / "one", tiny_tokenizer(), type_vocab_size=1)
    stored = json.loads((folder / "tokenizer.json").read_text())
    pair = json.dumps(stored["post_processor"]).replace('"type_id": 1', '"type_id": 0')
    stored["post_processor"] = json.loads(pair)
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert max(load_tokenizer(folder).encode("a", "b").type_ids) == 0
    build(folder, {"nli": CROSS})


def test_the_run_says_what_is_taken_and_left_out(backbone):
    modules = json.loads((backbone / "modules.json").read_text())
    modules.append({"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (backbone / "modules.json").write_text(json.dumps(modules))
    lines = []
    model, _ = build(backbone, lines=lines)
    assert model.encoder.pooling == "mean"
    assert lines[0].startswith(f"backbone {backbone}: pooling 'mean' from 1_Pooling (Pooling); ")
    assert "left out: 2_Normalize (Normalize), since heads take sentence vectors" in lines[0]


@pytest.fixture
def saved(backbone, tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(MultiTaskModel(MiniBert.from_folder(backbone), TASKS), folder, tiny_tokenizer())
    return folder


def test_model_comes_back_bit_for_bit(saved):
    model, _ = load_model(saved)
    stored = load_file(saved / "heads.safetensors")
    assert stored.keys() == model.heads.state_dict().keys()
    for name, tensor in model.heads.state_dict().items():
        assert torch.equal(tensor, stored[name])
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    assert model.tasks == TASKS


W = "sst.classifier.weight"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: {n: x for n, x in t.items() if n != W}, rf"{W} \[5, 32\] is missing"),
        (lambda t: t | {"other.weight": torch.zeros(1)}, r"other\.weight has no place"),
        (lambda t: t | {W: torch.zeros(5, 31)}, rf"{W} is \[5, 31\], expected \[5, 32\]"),
        (lambda t: t | {W: torch.zeros(5, 32, dtype=torch.int32)}, rf"{W} is I32, expected"),
        (lambda t: {}, r"is missing; .* is missing; and|is missing"),
        (lambda t: t | {"a\nb": torch.zeros(1)}, r'"a\\nb" has no place'),
    ],
)
def test_heads_that_do_not_fit_are_one_line(saved, edit, named):
    path = saved / "heads.safetensors"
    save_file(edit(load_file(path)), path)
    with pytest.raises(WeightsError, match=r"heads\.safetensors: does not fit.*" + named) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def test_missing_or_truncated_heads_are_named(saved):
    path = saved / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"heads\.safetensors: truncated"):
        load_model(saved)
    path.unlink()
    with pytest.raises(WeightsError, match=r"heads\.safetensors: is missing"):
        load_model(saved)


def record(**changes) -> dict:
    """tasks.json of one task, with fields changed."""
    task = {"files": {}, "text_columns": ["s"], "label_column": "y", "head": "classes"}
    return {"pair_features": "concat", "tasks": {"sst": {**task, "num_classes": 5, **changes}}}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([], "expected a JSON object, got an array"),
        (None, "expected a JSON object, got null"),
        ("text", "expected a JSON object, got the string"),
        ({}, "pair_features is null"),
        ({"pair_features": ["concat"], "tasks": {}}, "pair_features is"),
        ({"pair_features": "concat"}, "tasks must be an object"),
        ({"pair_features": "concat", "tasks": {}}, "tasks must be an object"),
        ({"pair_features": "concat", "tasks": {"sst": [1]}}, r"tasks\.sst must be an object"),
        ({"pair_features": "concat", "tasks": {"a\nb": None}}, r"tasks\.a\\nb must be an object"),
        (record(num_classes="5"), r"tasks\.sst\.num_classes: .*integer, got \"5\""),
        (record(num_classes=10**12), "num_classes: must be at most 1,000,000"),
        (record(num_classes=1), r"tasks\.sst\.num_classes"),
        (record(head="regression"), r"tasks\.sst\.num_classes"),
        (record(weight="1"), r"tasks\.sst\.weight"),
        (record(wieght=1.0), 'has an unknown key "wieght"'),
        (record(text_columns="s"), r"tasks\.sst\.text_columns"),
        (record(head=None), r"tasks\.sst\.head"),
    ],
)
def test_records_of_another_shape_are_one_line(saved, value, named):
    (saved / "tasks.json").write_text(json.dumps(value))
    with pytest.raises(WeightsError, match=rf"tasks\.json: .*{named}") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_records_too_deep_or_long_are_one_line(saved):
    for text, named in (("[" * 9000, "nested too deeply"), ("1" * 5000, "5,000 digits")):
        (saved / "tasks.json").write_text(text)
        with pytest.raises(WeightsError, match=rf"tasks\.json: .*{named}"):
            load_model(saved)
