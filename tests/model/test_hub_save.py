"""Encoders are saved for others to read, whole, and change no bit on the way."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model import hub
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.hub import save_encoder
from tests.model.models import TINY, assert_same_weights, randomise


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_round_trip_is_bit_identical(pooling, tmp_path):
    model = randomise(MiniBert(BertConfig(**TINY), pooling))
    model.save_pretrained(tmp_path / "new" / "saved")
    again = MiniBert.from_folder(tmp_path / "new" / "saved")
    assert_same_weights(again, model)
    assert (again.config, again.pooling) == (model.config, pooling)


def test_transformers_reads_what_we_write(ours, tmp_path):
    save_encoder(ours, tmp_path / "saved")
    theirs, report = transformers.BertModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "saved")) is type(theirs)
    assert_same_weights(ours, theirs)
    assert {name: getattr(theirs.config, name) for name in TINY} == TINY
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_views_of_one_buffer_are_saved_apart(ours, tmp_path):
    flat = torch.cat([p.detach().flatten() for p in ours.parameters()])
    begin = 0
    for parameter in ours.parameters():
        size = parameter.numel()
        parameter.data = flat[begin : begin + size].view_as(parameter)
        begin += size
    save_encoder(ours, tmp_path / "saved")
    assert_same_weights(MiniBert.from_folder(tmp_path / "saved"), ours)
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert size < 4 * flat.numel() + 10_000


ALWAYS = {
    *("config.json", "model.safetensors", "modules.json", "1_Pooling"),
    *("sentence_bert_config.json", "config_sentence_transformers.json"),
}
TEXTS = ["Good good Goodness né", "GOOD ne 你 good"]


@pytest.mark.parametrize("kind", ["tokenizers", "transformers", "folder", "source"])
def test_saved_tokenizer_gives_the_same_ids(kind, ours, cased_tokenizer, tmp_path):
    expected = [encoding.ids for encoding in cased_tokenizer.encode_batch(TEXTS)]
    source, saved = tmp_path / "source", tmp_path / "saved"
    save_encoder(ours, source, cased_tokenizer)
    given = {
        "tokenizers": lambda: cased_tokenizer,
        "transformers": lambda: transformers.AutoTokenizer.from_pretrained(source),
        "folder": lambda: source,
        "source": lambda: None,
    }[kind]()
    save_encoder(MiniBert.from_folder(source) if kind == "source" else ours, saved, given)
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    assert theirs(TEXTS)["input_ids"] == expected
    assert theirs.model_max_length == 40
    assert theirs.pad_token_id == 0
    got = Tokenizer.from_file(str(saved / "tokenizer.json")).encode_batch(TEXTS)
    assert [encoding.ids for encoding in got] == expected


def test_vocabulary_is_written_in_the_order_of_ids(ours, cased_tokenizer, tmp_path):
    save_encoder(ours, tmp_path / "saved", cased_tokenizer)
    lines = (tmp_path / "saved" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {word: i for i, word in enumerate(lines)} == cased_tokenizer.get_vocab()
    cased_tokenizer.model = models.WordPiece({"[UNK]": 0, "gap": 2}, unk_token="[UNK]")
    save_encoder(ours, tmp_path / "saved", cased_tokenizer)
    assert not (tmp_path / "saved" / "vocab.txt").exists()


def test_tokenizer_of_another_kind_keeps_its_ids(ours, cased_tokenizer, tmp_path):
    cased_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    expected = [encoding.ids for encoding in cased_tokenizer.encode_batch(TEXTS)]
    save_encoder(ours, tmp_path / "saved", cased_tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(TEXTS)["input_ids"] == expected


def test_encoder_without_tokenizer_saves_none(ours, tmp_path):
    save_encoder(ours, tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {*ALWAYS, "2_Dense"}


def test_dense_module_is_the_tanh_pooler(ours, tmp_path):
    save_encoder(ours, tmp_path / "saved")
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense"]
    weights = load_file(tmp_path / "saved" / "2_Dense" / "model.safetensors")
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) / 8
    ids = torch.zeros(3, 1, dtype=torch.int64)
    batch = TokenBatch.from_padded(ids, torch.ones_like(ids), ids)
    expected = torch.tanh(hidden @ weights["linear.weight"].T + weights["linear.bias"])
    torch.testing.assert_close(ours.pool(hidden, batch), expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sentence_transformers_reads_what_we_write(pooling, minilm_dir, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = MiniBert.from_folder(minilm_dir, pooling)
    model.save_pretrained(tmp_path / "saved")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = ["A witty movie.", "No."]
    encoded = theirs.tokenizer(texts, padding=True, return_tensors="pt")
    batch = TokenBatch.from_padded(
        **{k: encoded[k] for k in ("input_ids", "attention_mask")},
        token_types=encoded["token_type_ids"],
    )
    with torch.no_grad():
        expected = model.pool(model.encode(model.embed(batch), batch), batch)
    assert (theirs.encode(texts, convert_to_tensor=True) - expected).abs().max() <= 1e-5


def test_saving_replaces_an_encoder_whole(ours, cased_tokenizer, tmp_path):
    save_encoder(ours, tmp_path / "saved", cased_tokenizer)
    mean = randomise(MiniBert(BertConfig(**TINY), "mean"))
    save_encoder(mean, tmp_path / "saved")
    assert_same_weights(MiniBert.from_folder(tmp_path / "saved"), mean)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == ALWAYS
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_saving_over_its_own_source_keeps_the_tokenizer(ours, cased_tokenizer, tmp_path):
    save_encoder(ours, tmp_path / "saved", cased_tokenizer)
    tokenizer = (tmp_path / "saved" / "tokenizer.json").read_bytes()
    model = randomise(MiniBert.from_folder(tmp_path / "saved"))
    save_encoder(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == tokenizer
    assert_same_weights(MiniBert.from_folder(tmp_path / "saved"), model)


def test_failed_save_leaves_the_old_folder(ours, monkeypatch, tmp_path):
    save_encoder(ours, tmp_path / "saved")
    monkeypatch.setattr(hub, "_write_tokenizer", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_encoder(MiniBert(BertConfig(**TINY)), tmp_path / "saved")
    assert_same_weights(MiniBert.from_folder(tmp_path / "saved"), ours)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_saving_deletes_nothing_of_the_users(ours, folder):
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(WeightsError, match=r"holds other files \(thesis\.tex\)"):
        save_encoder(ours, folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    (folder / "thesis.tex").unlink()
    save_encoder(ours, folder)
    with pytest.raises(WeightsError, match=r"config\.json is a file"):
        save_encoder(ours, folder / "config.json")


def test_saved_files_have_the_permissions_of_their_folder(ours, tmp_path):
    save_encoder(ours, tmp_path / "saved")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").glob("*.*")}
    assert modes == {(tmp_path / "saved").stat().st_mode & 0o666}


def test_copy_of_minilm_loads_equal(minilm_dir, tmp_path):
    model = MiniBert.from_folder(minilm_dir)
    assert model.pooling == "mean"
    save_encoder(model, tmp_path / "copy")
    assert_same_weights(MiniBert.from_folder(tmp_path / "copy"), model)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        assert (tmp_path / "copy" / name).read_bytes() == (minilm_dir / name).read_bytes()
