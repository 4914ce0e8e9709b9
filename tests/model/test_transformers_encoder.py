"""Encoders of transformers behind MiniBert's interface: their numbers, masks, files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sbrrt_fast.config import LoraConfig
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.load_encoder import encoder_from_folder
from sbrrt_fast.model.lora import add_lora
from sbrrt_fast.model.transformers_encoder import TransformersEncoder
from tests.stock_backbones import OTHERS, stock_backbone

TEXTS = ["a joy to watch", "No!", "Good  goodness é 你 quiet"]


@pytest.fixture(params=OTHERS)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(family, tmp_path) -> Path:
    return stock_backbone(tmp_path / family, family)


def packed(folder: Path, texts: list[str] = TEXTS, first_row: int = 0) -> TokenBatch:
    """The batch of some texts without padding."""
    encodings = load_tokenizer(folder).encode_batch(texts)
    ids, types, special = (
        torch.tensor([x for e in encodings for x in getattr(e, name)])
        for name in ("ids", "type_ids", "special_tokens_mask")
    )
    lengths = torch.tensor([len(e) for e in encodings])
    rows = torch.arange(first_row, first_row + len(texts))
    return TokenBatch.from_packed(ids, types, special.bool(), lengths, rows)


def stream_of(encoder, batch: TokenBatch, *key: int, pass_id: int = 0) -> DropoutStream:
    positions = encoder.config.max_position_embeddings
    return DropoutStream(batch, torch.tensor(key or (5, 3)), positions, pass_id)


@torch.no_grad()
def test_hidden_states_are_transformers(folder):
    theirs = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    tokens = {n: x for n, x in tokens.items() if n in ("input_ids", "attention_mask")}
    expected = theirs(**tokens).last_hidden_state[tokens["attention_mask"].bool()]
    encoder = encoder_from_folder(folder, "mean")
    assert type(encoder) is TransformersEncoder
    for batch in (packed(folder), packed(folder).padded()):
        hidden = encoder.encode(encoder.embed(batch), batch)[batch.is_real]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


@torch.no_grad()
def test_the_longest_sequence_ends_with_the_last_position(folder):
    encoder = encoder_from_folder(folder, "mean")
    assert encoder.config.max_position_embeddings == 64
    ids = torch.full((1, 64), 5)
    batch = TokenBatch.from_padded(ids, torch.ones_like(ids), torch.zeros_like(ids))
    assert encoder.encode(encoder.embed(batch), batch).isfinite().all()


@torch.no_grad()
def test_masks_follow_the_stream_and_nothing_else(folder):
    encoder, batch = encoder_from_folder(folder, "mean"), packed(folder)
    x, before = encoder.embed(batch), torch.get_rng_state()
    clean = encoder.encode(x, batch)
    first = encoder.encode(x, batch, stream_of(encoder, batch))
    torch.rand(3)
    encoder.train()
    again = encoder.encode(x, batch, stream_of(encoder, batch))
    encoder.eval()
    assert torch.equal(first, again)
    assert not torch.allclose(first, clean, atol=1e-3)
    other_rows = packed(folder, first_row=3)
    others = [
        encoder.encode(x, batch, stream_of(encoder, batch, 5, 4)),
        encoder.encode(x, batch, stream_of(encoder, batch, 6, 3)),
        encoder.encode(x, batch, stream_of(encoder, batch, pass_id=1)),
        encoder.encode(x, other_rows, stream_of(encoder, other_rows)),
    ]
    for i, one in enumerate([first, *others]):
        assert all(not torch.allclose(one, two) for two in others[i:])
    assert torch.equal(encoder.encode(x, batch), clean)
    assert not any(module.training for module in encoder.modules())
    torch.set_rng_state(before)
    encoder.encode(x, batch, stream_of(encoder, batch))
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_a_stream_that_drops_nothing_is_as_eval(folder):
    encoder, batch = encoder_from_folder(folder, "mean"), packed(folder)
    x, positions = encoder.embed(batch), encoder.config.max_position_embeddings
    stream = DropoutStream(batch, torch.tensor([5, 3]), positions, drops=False)
    clean = encoder.encode(x, batch)
    for is_training in (True, False):
        encoder.train(is_training)
        assert torch.equal(encoder.encode(x, batch, stream.fork(1)), clean)
        assert encoder.model.training == is_training


def test_in_train_a_pass_draws_masks_of_its_own(folder):
    encoder, batch = encoder_from_folder(folder, "mean").train(), packed(folder)
    x = encoder.embed(batch)
    first, second = encoder.encode(x, batch), encoder.encode(x, batch)
    assert not torch.allclose(first, second)
    torch.manual_seed(1)
    third = encoder.encode(x, batch)
    torch.manual_seed(1)
    assert torch.equal(encoder.encode(x, batch), third)


def test_dropout_is_set_as_it_is_asked_for(folder):
    encoder = encoder_from_folder(folder, "mean", hidden_dropout=0.0, attention_dropout=0.0)
    batch = packed(folder)
    x = encoder.embed(batch)
    same = [encoder.encode(x, batch, s) for s in (None, stream_of(encoder, batch))]
    torch.testing.assert_close(*same)
    assert encoder.config.hidden_dropout_prob == 0
    attention = encoder_from_folder(folder, "mean", hidden_dropout=0.0, attention_dropout=0.5)
    assert attention.config.attention_probs_dropout_prob == 0.5
    other = attention.encode(x, batch, stream_of(encoder, batch))
    assert not torch.allclose(other, same[0], atol=1e-3)


def test_a_saved_encoder_is_the_checkpoint_again(family, folder, tmp_path):
    encoder = encoder_from_folder(folder, "mean")
    encoder.save_pretrained(tmp_path / "saved", load_tokenizer(folder))
    folders = tmp_path / "saved", folder
    theirs, before = map(transformers.AutoModel.from_pretrained, folders)
    assert type(theirs) is type(before)
    expected = {n: x for n, x in before.state_dict().items() if not n.startswith("pooler.")}
    assert all(torch.equal(theirs.state_dict()[name], x) for name, x in expected.items())
    assert theirs.config.to_dict() | {"_name_or_path": ""} == before.config.to_dict() | {
        "_name_or_path": "",
        "architectures": theirs.config.architectures,
    }
    new = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for texts in ((TEXTS[2],), ("a joy", "a b")):
        tokens = new(*texts, return_tensors="pt")
        assert tokens["input_ids"][0].tolist() == load_tokenizer(folder).encode(*texts).ids
        theirs(**tokens)  # it takes whatever the tokenizer gives
    again = encoder_from_folder(tmp_path / "saved")
    assert (again.config, again.pooling) == (encoder.config, "mean")


@pytest.mark.parametrize("family", ["mpnet", "albert"])
def test_the_pooler_is_the_checkpoint_s(family, tmp_path):
    folder = stock_backbone(tmp_path / family, family)
    encoder, batch = encoder_from_folder(folder), packed(folder)
    assert encoder.pooling == "cls"
    theirs = transformers.AutoModel.from_pretrained(folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    expected = theirs(input_ids=tokens["input_ids"]).pooler_output[0]
    ours = encoder.pool(encoder.encode(encoder.embed(batch), batch), batch)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    encoder.save_pretrained(tmp_path / "saved", load_tokenizer(folder))
    again = transformers.AutoModel.from_pretrained(tmp_path / "saved")
    for name, x in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name


def test_without_a_pooler_it_is_the_mean(tmp_path):
    folder = stock_backbone(tmp_path / "distilbert", "distilbert")
    assert encoder_from_folder(folder).pooling == "mean"
    with pytest.raises(WeightsError, match="saved without a pooler"):
        encoder_from_folder(folder, "cls")


def test_bert_s_layers_are_ours_and_others_are_not(tmp_path):
    assert type(encoder_from_folder(stock_backbone(tmp_path / "a", "roberta"))) is MiniBert
    folder = stock_backbone(tmp_path / "b", "roberta", hidden_act="relu")
    encoder = encoder_from_folder(folder)
    assert type(encoder) is TransformersEncoder
    assert encoder.pooling == "cls"


@torch.no_grad()
def test_a_saved_encoder_has_its_adapters_merged(family, folder, tmp_path):
    pytest.importorskip("peft")
    pooling = "cls" if family in ("mpnet", "albert") else "mean"
    encoder, batch = encoder_from_folder(folder, pooling), packed(folder)
    before = encoder.pool(encoder.encode(encoder.embed(batch), batch), batch)
    targets = ("query", "key", "value", "dense", "word_embeddings")
    add_lora(encoder, LoraConfig(rank=2, targets=targets), seed=1)
    for name, p in encoder.named_parameters():
        assert p.requires_grad == (".lora_" in name)
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(p, std=0.3)
    ours = encoder.pool(encoder.encode(encoder.embed(batch), batch), batch)
    encoder.save_pretrained(tmp_path / "saved", load_tokenizer(folder))
    again = encoder_from_folder(tmp_path / "saved")
    theirs = again.pool(again.encode(again.embed(batch), batch), batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, before, atol=1e-2)


# What cannot work


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def save(folder: Path, config: transformers.PreTrainedConfig) -> Path:
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def one_line(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        encoder_from_folder(folder, "mean")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_decoders_and_models_of_pictures_are_refused(tmp_path):
    width = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 20, "n_positions": 16}
    assert "is a decoder" in one_line(save(tmp_path / "a", transformers.GPT2Config(**width)))
    t5 = transformers.T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=1, vocab_size=9)
    assert 'model_type "t5" has a decoder' in one_line(save(tmp_path / "b", t5))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vit = transformers.ViTConfig(**small, intermediate_size=8, image_size=8, patch_size=4)
    assert "no encoder that takes embeddings" in one_line(save(tmp_path / "c", vit))


def test_padding_has_to_be_left_out(tmp_path):
    fnet = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 20}
    folder = save(tmp_path / "fnet", transformers.FNetConfig(**fnet))
    assert "takes embeddings of text and their mask" in one_line(folder)


def test_what_transformers_does_not_compute_is_not_left_out(tmp_path):
    folder = stock_backbone(tmp_path / "x", "roberta")
    edit(folder, position_embedding_type="relative_key")
    assert "position_embedding_type or pruned_heads say otherwise" in one_line(folder)
    folder = stock_backbone(tmp_path / "y", "distilbert")
    path, name = folder / "model.safetensors", "transformer.layer.0.attention.bias.weight"
    save_file(load_file(path) | {name: torch.zeros(3)}, path, {"format": "pt"})
    assert f"{name} has no place in it" in one_line(folder)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
def test_heads_are_left_out(family, head, tmp_path):
    folder = stock_backbone(tmp_path / "headed", family, head)
    names = load_file(folder / "model.safetensors")
    encoder = encoder_from_folder(folder, "mean")
    theirs = transformers.AutoModel.from_pretrained(folder).state_dict()
    assert len(names) > len(encoder.stored_tensors())
    for name, x in encoder.stored_tensors().items():
        assert torch.equal(x, theirs[name]), name


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    folder = stock_backbone(tmp_path / "x", "distilbert")
    edit(folder, model_type="theirs", auto_map={"AutoConfig": "m.C", "AutoModel": "m.M"})
    (folder / "m.py").write_text("open('ran', 'w')\nraise SystemExit")
    assert "transformers cannot load it" in one_line(folder)
    edit(folder, model_type="distilbert", auto_map={"AutoModel": "m.M"})
    assert type(encoder_from_folder(folder, "mean")) is TransformersEncoder
    assert not Path("ran").exists()


def test_weights_are_safetensors_whole_and_of_this_shape(tmp_path):
    folder = stock_backbone(tmp_path / "x", "distilbert")
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "transformer.layer.0.ffn.lin1.weight"
    save_file({n: x for n, x in weights.items() if n != name}, path, {"format": "pt"})
    assert f"{name} is missing" in one_line(folder)
    save_file(weights | {name: torch.zeros(3, 3)}, path, {"format": "pt"})
    assert f"{name} is [3, 3], expected [64, 32]" in one_line(folder)
    path.write_bytes(path.read_bytes()[:500])
    assert "truncated or not a safetensors file" in one_line(folder)
    path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pickled weights (pytorch_model.bin) are not loaded" in one_line(folder)


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    from sbrrt_fast.model import transformers_loading

    folder = stock_backbone(tmp_path / "x", "distilbert")
    monkeypatch.setattr(transformers_loading.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'sbrrt_fast[transformers]'" in one_line(folder)


def test_a_model_without_such_a_dropout_says_so(tmp_path):
    config = {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8, "vocab_size": 700}
    folder = save(tmp_path / "x", transformers.XLNetConfig(**config))
    with pytest.raises(ConfigError, match=r"model\.attention_dropout: xlnet has no such setting"):
        encoder_from_folder(folder, "mean", attention_dropout=0.1)
