"""Hugging Face folders are loaded bit for bit, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from tests.model.models import TINY, assert_same_weights

QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"


def edit_weights(folder: Path, edit) -> None:
    """Rewrites model.safetensors as ``edit(its tensors)``."""
    tensors = load_file(folder / "model.safetensors")
    save_file(edit(tensors), folder / "model.safetensors")


def without(*prefixes: str):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(prefixes)}


def test_transformers_folder_loads_bit_identical(folder, original):
    model = MiniBert.from_folder(folder)
    assert_same_weights(model, original)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert MiniBert.from_pretrained(folder).config == BertConfig(**TINY)


def test_pooling_follows_the_checkpoint_unless_said(folder):
    assert MiniBert.from_folder(folder).pooling == "cls"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert MiniBert.from_folder(folder).pooling == "mean"
    assert MiniBert.from_folder(folder, pooling="cls").pooling == "cls"


def test_loading_draws_no_random_numbers(folder):
    state = torch.random.get_rng_state()
    MiniBert.from_folder(folder)
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_do_not_depend_on_the_file(folder, original):
    model = MiniBert.from_folder(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert_same_weights(model, original)


@pytest.mark.parametrize(
    "kind", ["BertForSequenceClassification", "BertForPreTraining", "BertForQuestionAnswering"]
)
def test_prefix_is_understood_and_heads_are_left_out(kind, original, tmp_path):
    theirs = getattr(transformers, kind)(transformers.BertConfig(**TINY))
    theirs.bert.load_state_dict(original.state_dict(), strict=False)
    theirs.save_pretrained(tmp_path)
    assert any(name.startswith("bert.") for name in load_file(tmp_path / "model.safetensors"))
    has_pooler = theirs.bert.pooler is not None
    model = MiniBert.from_folder(tmp_path, pooling="cls" if has_pooler else "mean")
    expected = {n: t for n, t in original.state_dict().items() if n in model.state_dict()}
    assert_same_weights(model, SimpleNamespace(state_dict=lambda: expected))


def test_legacy_names_and_buffers_are_understood(folder, original):
    def edit(tensors):
        legacy = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in legacy.items():
            tensors = {name.replace(new, old): t for name, t in tensors.items()}
        return tensors | {"embeddings.position_ids": torch.arange(40)[None]}

    edit_weights(folder, edit)
    assert_same_weights(MiniBert.from_folder(folder), original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_fp32(folder, original, dtype):
    edit_weights(folder, lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    model = MiniBert.from_folder(folder)
    for name, tensor in original.state_dict().items():
        assert model.state_dict()[name].dtype == torch.float32
        assert torch.equal(model.state_dict()[name], tensor.to(dtype).float()), name


@pytest.fixture
def sharded(original, tmp_path) -> Path:
    original.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def test_sharded_weights_load(sharded, original):
    assert_same_weights(MiniBert.from_folder(sharded), original)


def test_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=rf"index\.json names {shard.name}, which is missing"):
        MiniBert.from_folder(sharded)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": 1}', "{"])
def test_malformed_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"index\.json: (weight_map is missing|not valid JSON)"):
        MiniBert.from_folder(sharded)


def test_checkpoint_without_pooler_needs_mean_pooling(folder, original):
    edit_weights(folder, without("pooler."))
    with pytest.raises(WeightsError, match="without a pooler, which pooling 'cls' needs"):
        MiniBert.from_folder(folder)
    model = MiniBert.from_folder(folder, pooling="mean")
    assert torch.equal(model.state_dict()[QUERY], original.state_dict()[QUERY])


def test_half_a_pooler_is_a_missing_tensor(folder):
    edit_weights(folder, without("pooler.dense.bias"))
    with pytest.raises(WeightsError, match=r"pooler\.dense\.bias \[64\] is missing"):
        MiniBert.from_folder(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(QUERY), rf"{QUERY} \[64, 64\] is missing"),
        (
            lambda t: t | {QUERY: torch.zeros(64, 63)},
            rf"{QUERY} is \[64, 63\], expected \[64, 64\]",
        ),
        (
            lambda t: t | {WORDS: torch.zeros(60, 64)},
            rf"{WORDS} is \[60, 64\], expected \[61, 64\]",
        ),
        (lambda t: t | {QUERY: torch.zeros(64, 64, dtype=torch.int8)}, f"{QUERY} is I8, expected"),
        (lambda t: t | {f"bert.{QUERY}": torch.zeros(64, 64)}, f"{QUERY} is there twice"),
        (
            lambda t: t | {"encoder.layer.2.output.dense.bias": torch.zeros(64)},
            r"encoder\.layer\.2\.output\.dense\.bias has no place in this model",
        ),
        (
            without("encoder.layer.1."),
            r"is missing(; .* is missing){3}; and 12 more; use the config",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(folder, edit, message):
    edit_weights(folder, edit)
    with pytest.raises(WeightsError, match=message):
        MiniBert.from_folder(folder)


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_truncated_weights_are_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors: truncated or not a safetensors"):
        MiniBert.from_folder(folder)


def test_pickles_are_not_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"are not loaded.*safe_serialization=True"):
        MiniBert.from_folder(folder)


def renamed(prefix: str):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "bert.",
        "module.",
        "model.",
        "auto_model.",
        "0.auto_model.",
        "_orig_mod.",
        "module.bert.",
        "_orig_mod.module.model.bert.",
        "module._orig_mod.0.auto_model.",
        "base_model.model.bert.",
        "encoder.",
        "model.encoder.",
    ],
)
def test_prefixes_of_wrappers_are_understood(folder, original, prefix):
    edit_weights(folder, renamed(prefix))
    edit_weights(folder, lambda t: t | {"classifier.weight": torch.zeros(2, 64)})
    assert_same_weights(MiniBert.from_folder(folder), original)


def test_compiled_layers_are_understood(folder, original):
    edit_weights(
        folder, lambda t: {n.replace("layer.0.", "layer.0._orig_mod."): v for n, v in t.items()}
    )
    assert_same_weights(MiniBert.from_folder(folder), original)


def test_two_encoders_in_one_file_are_refused(folder):
    def edit(tensors):
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        return renamed("0.auto_model.")(tensors) | renamed("1.auto_model.")(copies)

    edit_weights(folder, edit)
    with pytest.raises(WeightsError, match="is there twice"):
        MiniBert.from_folder(folder)


def test_where_no_name_fits_the_first_names_are_shown(folder):
    edit_weights(folder, renamed("student/"))
    message = r"none of the 39 stored tensors has a name of BertModel \(student/embeddings\."
    with pytest.raises(WeightsError, match=message) as caught:
        MiniBert.from_folder(folder)
    assert "pooling" not in str(caught.value) and "\n" not in str(caught.value)
    edit_weights(folder, lambda tensors: {})
    with pytest.raises(WeightsError, match=r"none of the 0 stored tensors .*\(there are none\)"):
        MiniBert.from_folder(folder)


def test_odd_names_are_escaped_and_cut(folder):
    edit_weights(folder, lambda t: t | {f"encoder.\x1b[31m\n{'x' * 500}": torch.zeros(1)})
    with pytest.raises(WeightsError, match="has no place in this model") as caught:
        MiniBert.from_folder(folder)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "", 3, None, [1], ".."],
)
def test_shards_elsewhere_are_refused(sharded, name):
    index = sharded / "model.safetensors.index.json"
    stored = json.loads(index.read_text())
    stored["weight_map"][QUERY] = name
    index.write_text(json.dumps(stored))
    with pytest.raises(WeightsError, match=r"index\.json names .*, which is no file of its folder"):
        MiniBert.from_folder(sharded)


def header(entries: str) -> bytes:
    text = entries.encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        header("{" * 100),
        header("[]"),
        header('{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}')
        + b"1234",
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"1234",
        header('{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}') + b"1234",
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}') + b"1234",
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}') + b"1234",
        header(
            '{"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], '
            '"data_offsets": [0, 4]}}'
        )
        + b"1234",
        header(
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            '"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'
        )
        + b"12345678",
    ],
)
def test_absurd_headers_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: truncated or not a safe"
    ) as caught:
        MiniBert.from_folder(folder)
    assert "\n" not in str(caught.value)
