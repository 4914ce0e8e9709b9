"""What modules.json says of a checkpoint: taken, left out by name, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.backbone import resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.modules import read_modules
from tests.helpers import tiny_backbone

TANH = "torch.nn.modules.activation.Tanh"
CLS, MEAN = {"pooling_mode_cls_token": True}, {"pooling_mode_mean_tokens": True}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def chain(folder: Path, *modules: tuple[str, str, dict | None]) -> Path:
    """modules.json of an encoder in ``folder`` and (kind, path, settings) behind it."""
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    for i, (kind, path, settings) in enumerate(modules):
        entry = {"idx": i + 1, "name": str(i + 1), "path": path}
        listed.append({**entry, "type": f"sentence_transformers.models.{kind}"})
        if settings is not None:
            write(folder / path / "config.json", settings)
    write(folder / "modules.json", listed)
    return folder


def dense(**changes) -> dict:
    settings = {"in_features": 32, "out_features": 32, "bias": True, "activation_function": TANH}
    return {**settings, **changes}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A BertModel folder with a pooler and without any module."""
    folder = tiny_backbone(tmp_path / "tiny", pooling="cls", num_layers=1)
    for path in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json"):
        (folder / path).unlink()
    return folder


def pooled(encoder: MiniBert) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled vectors of two sequences, and the first tokens' hidden states."""
    ids = torch.tensor([[2, 9, 8, 3], [2, 7, 3, 0]])
    batch = TokenBatch.from_padded(ids, ids != 0, torch.zeros_like(ids))
    with torch.no_grad():
        hidden = encoder.encode(encoder.embed(batch), batch)
        return encoder.pool(hidden, batch), hidden[0::4]


@pytest.mark.parametrize("path", ["1_Pooling", "pool", "layers/deep/pooling"])
@pytest.mark.parametrize(("settings", "expected"), [(CLS, "cls_token"), (MEAN, "mean")])
def test_pooling_is_found_in_any_folder(folder, path, settings, expected):
    chain(folder, ("Pooling", path, settings))
    modules = read_modules(folder)
    assert (modules.pooling, modules.dense, modules.encoder) == (expected, None, folder)
    assert modules.summary == f"pooling '{expected}' from {path} (Pooling)"


def test_raw_cls_is_the_first_token_and_has_no_pooler(folder):
    encoder = MiniBert.from_folder(chain(folder, ("Pooling", "pool", CLS)))
    assert encoder.pooler is None and encoder.pooling == "cls_token"
    vectors, first = pooled(encoder)
    assert torch.equal(vectors, first)


def test_dense_with_tanh_behind_cls_is_the_pooler(folder):
    chain(folder, ("Pooling", "pool", CLS), ("Dense", "top/dense", dense()))
    generator = torch.Generator().manual_seed(3)
    weights = {
        "linear.weight": torch.randn(32, 32, generator=generator) / 8,
        "linear.bias": torch.randn(32, generator=generator),
    }
    save_file(weights, folder / "top" / "dense" / "model.safetensors")
    for choice in ("checkpoint", "cls"):
        encoder = MiniBert.from_folder(folder, choice)
        assert encoder.pooling == "cls"
        vectors, first = pooled(encoder)
        expected = torch.tanh(first @ weights["linear.weight"].T + weights["linear.bias"])
        torch.testing.assert_close(vectors, expected)
    encoder.save_pretrained(folder.parent / "saved")
    again = MiniBert.from_folder(folder.parent / "saved")
    assert torch.equal(pooled(again)[0], vectors)


@pytest.mark.parametrize("pooling", ["cls", "cls_token", "mean"])
def test_what_is_saved_pools_the_same_way(folder, pooling):
    encoder = MiniBert.from_folder(folder, pooling)
    encoder.save_pretrained(folder.parent / "saved")
    again = MiniBert.from_folder(folder.parent / "saved")
    assert again.pooling == pooling
    assert torch.equal(pooled(again)[0], pooled(encoder)[0])


def test_normalize_is_left_out_by_name(folder):
    chain(folder, ("Pooling", "pool", MEAN), ("Normalize", "2_N", None), ("Dropout", "3", {}))
    summary = read_modules(folder).summary
    assert summary.startswith(
        "pooling 'mean' from pool (Pooling); left out: 2_N (Normalize), since"
    )
    assert "3 (Dropout), since" in summary


def test_encoder_in_a_folder_of_its_own(folder, tmp_path):
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    outer = tmp_path / "outer"
    write(outer / "modules.json", modules)
    write(outer / "1_Pooling" / "config.json", MEAN)
    folder.rename(outer / "0_Transformer")
    encoder = MiniBert.from_folder(outer)
    assert (encoder.pooling, encoder.source) == ("mean", outer / "0_Transformer")


REFUSED = {
    "two_modes": ([("Pooling", "p", CLS | MEAN)], "pooling cls_token \\+ mean"),
    "max": ([("Pooling", "p", {"pooling_mode_max_tokens": True})], "pooling_mode_max_tokens"),
    "last": ([("Pooling", "p", {"pooling_mode": "lasttoken"})], "lasttoken"),
    "no_mode": ([("Pooling", "p", {})], "not named"),
    "mode_of_text": ([("Pooling", "p", {"pooling_mode_cls_token": "true"})], "true or false"),
    "mode_of_numbers": ([("Pooling", "p", {"pooling_mode": [1]})], "pooling 1"),
    "no_settings": ([("Pooling", "p", None)], r"names p \(Pooling\), but .* is missing"),
    "no_pooling": ([], "has no pooling"),
    "layers_weighted": ([("WeightedLayerPooling", "w", {}), ("Pooling", "p", MEAN)], "Weighted"),
    "dense_on_mean": ([("Pooling", "p", MEAN), ("Dense", "d", dense())], "follows pooling 'mean'"),
    "identity": (
        [("Pooling", "p", CLS), ("Dense", "d", dense(activation_function="torch.nn.Identity"))],
        "activation_function .*Identity",
    ),
    "narrower": ([("Pooling", "p", CLS), ("Dense", "d", dense(out_features=16))], "maps 32 to 16"),
    "without_bias": ([("Pooling", "p", CLS), ("Dense", "d", dense(bias=False))], "has no bias"),
    "two_dense": (
        [("Pooling", "p", CLS), ("Dense", "d", dense()), ("Dense", "e", dense())],
        r"e \(Dense\) after",
    ),
    "normalised_first": (
        [("Pooling", "p", CLS), ("Normalize", "n", None), ("Dense", "d", dense())],
        r"d \(Dense\) after",
    ),
    "layer_norm": ([("Pooling", "p", MEAN), ("LayerNorm", "l", {})], r"l \(LayerNorm\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layers_are_refused_unless_said(folder, name):
    modules, named = REFUSED[name]
    chain(folder, *modules)
    with pytest.raises(WeightsError, match=named) as caught:
        MiniBert.from_folder(folder)
    assert "\n" not in str(caught.value)
    for pooling in ("cls", "cls_token", "mean"):
        encoder = MiniBert.from_folder(folder, pooling)
        assert encoder.pooling == pooling
        assert encoder.origin.dense is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "expected a JSON array, got an object"),
        ("null", "expected a JSON array, got null"),
        ("[]", "starts with nothing"),
        ("[3]", "module 0 has no type and path"),
        ('[{"type": "a.Transformer", "path": 3}]', "module 0 has no type and path"),
        ('[{"type": "a.Transformer", "path": "../other"}]', "outside the folder"),
        ('[{"type": "a.Transformer", "path": "/etc"}]', "outside the folder"),
        ('[{"type": "a.BoW", "path": ""}]', r"starts with \. \(BoW\)"),
        ('[{"type": "a.B\\n\\u001b", "path": "x\\ny"}]', r'starts with "x\\ny" \("B\\n\\u001b"\)'),
        ("[" * 9000 + "]" * 9000, "nested too deeply"),
    ],
)
def test_malformed_lists_are_one_line(folder, text, named):
    write(folder / "modules.json", text)
    with pytest.raises(WeightsError, match=rf"modules\.json: .*{named}") as caught:
        MiniBert.from_folder(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_missing_dense_weights_are_named(folder):
    chain(folder, ("Pooling", "p", CLS), ("Dense", "d", dense()))
    with pytest.raises(WeightsError, match=r"d has no model\.safetensors"):
        MiniBert.from_folder(folder)
    save_file({"linear.weight": torch.zeros(32, 16)}, folder / "d" / "model.safetensors")
    message = r"d: the layer does not fit config\.json: linear\.weight is \[32, 16\], expected"
    with pytest.raises(WeightsError, match=message):
        MiniBert.from_folder(folder)


def test_hub_download_has_every_modules_folder(monkeypatch, tmp_path):
    """Two calls: the list of modules, then what it names."""
    calls = []

    def snapshot_download(name, **options):
        calls.append(options)
        return str(tmp_path)

    modules = [("", "Transformer"), ("pool", "Pooling"), ("deep/d[1]", "Dense"), ("n", "Normalize")]
    write(tmp_path / "modules.json", [{"path": p, "type": f"x.{kind}"} for p, kind in modules])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_backbone("some/encoder") == tmp_path
    needed = ["config.json", "modules.json", "model.safetensors", "vocab.txt"]
    needed += ["pool/config.json", "deep/d[1]/config.json", "deep/d[1]/model.safetensors"]
    unneeded = ["onnx/model.safetensors", "pytorch_model.bin", "deep/d[1]/pytorch_model.bin"]
    unneeded += ["other/config.json", "deep/d1/config.json", "model.fp16.safetensors"]
    assert list(filter_repo_objects([*needed, *unneeded], **calls[-1])) == needed


def test_minilm_says_what_is_left_out(minilm_dir):
    modules = read_modules(minilm_dir)
    assert modules.pooling == "mean"
    assert "left out: 2_Normalize (Normalize)" in modules.summary


def test_our_own_folders_leave_nothing_out(tmp_path):
    for pooling in ("cls", "cls_token", "mean"):
        folder = tiny_backbone(tmp_path / pooling, pooling=pooling, num_layers=1)
        assert "left out" not in read_modules(folder).summary
        if pooling == "cls":
            stored = load_file(folder / "2_Dense" / "model.safetensors")
            assert set(stored) == {"linear.weight", "linear.bias"}
