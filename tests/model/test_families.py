"""Checkpoints of other families whose layers are BERT's: in, through, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.backbone import read_config
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.modules import read_modules
from tests.stock_backbones import BERT_LIKE, stock_backbone

TEXTS = ["a joy to watch", "No!", "Good  goodness é 你 quiet, " * 4]


@pytest.fixture(params=BERT_LIKE)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(family, tmp_path) -> Path:
    return stock_backbone(tmp_path / family, family)


def edit(folder: Path, name: str = "config.json", **changes) -> None:
    """Sets fields of a file of JSON; one that is set to ``...`` is removed."""
    fields = json.loads((folder / name).read_text()) | changes
    fields = {key: value for key, value in fields.items() if value is not ...}
    (folder / name).write_text(json.dumps(fields))


@torch.no_grad()
def hidden_states(model, folder: Path) -> torch.Tensor:
    """Of the real tokens of padded texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    hidden = model(**tokens)
    hidden = hidden if isinstance(hidden, torch.Tensor) else hidden.last_hidden_state
    return hidden[tokens["attention_mask"].bool()]


def test_hidden_states_are_transformers(folder):
    theirs = hidden_states(transformers.AutoModel.from_pretrained(folder), folder)
    for head in ("cls_token", "mean"):
        ours = hidden_states(MiniBert.from_folder(folder, head), folder)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.abs().max() > 1


def test_ids_are_those_of_the_family_s_tokenizer(family, folder):
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for texts in (*((text,) for text in TEXTS), ("a joy", "a b"), ("", "c")):
        assert ours.encode(*texts).ids == theirs(*texts)["input_ids"]
    ends = ours.encode("a", "b").tokens
    assert ends.count("</s>") == (0 if family == "electra" else 3)
    if family in ("roberta", "data2vec-text"):  # as the hub's first files say it: not at all
        edit(folder, "tokenizer_config.json", tokenizer_class=...)
        assert load_tokenizer(folder).encode(TEXTS[2]).ids == theirs(TEXTS[2])["input_ids"]


def test_the_longest_sequence_ends_with_the_last_position(family, folder):
    stored = 64 if family == "electra" else 66
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == stored
    config = read_config(folder)
    assert config.max_position_embeddings == 64
    ids = torch.full((1, 64), 5)
    theirs = transformers.AutoModel.from_pretrained(folder)(ids).last_hidden_state
    torch.testing.assert_close(MiniBert.from_folder(folder, "mean")(ids), theirs, rtol=0, atol=1e-5)


def test_a_saved_encoder_is_the_checkpoint_again(folder, tmp_path):
    """The config, the weights and what the tokenizer gives are as they were, bit by bit."""
    model = MiniBert.from_folder(folder, "mean")
    model.save_pretrained(tmp_path / "saved", load_tokenizer(folder))
    theirs, before = (
        transformers.AutoModel.from_pretrained(f) for f in (tmp_path / "saved", folder)
    )
    assert type(theirs) is type(before)
    expected = {n: x for n, x in before.state_dict().items() if not n.startswith("pooler.")}
    got = theirs.state_dict()
    assert all(torch.equal(got[name], x) for name, x in expected.items())
    shape = {name: getattr(before.config, name) for name in model.config.to_dict()
             if hasattr(before.config, name)}  # fmt: skip
    assert {name: getattr(theirs.config, name) for name in shape} == shape
    new, old = (transformers.AutoTokenizer.from_pretrained(f) for f in (tmp_path / "saved", folder))
    for texts in ((TEXTS[2],), ("a joy", "a b")):
        assert new(*texts)["input_ids"] == old(*texts)["input_ids"]
    assert new.special_tokens_map.items() <= old.special_tokens_map.items()
    assert len(new.special_tokens_map) == 5
    again = MiniBert.from_folder(tmp_path / "saved")
    assert (again.config, again.pooling) == (model.config, "mean")
    assert all(x.equal(again.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("pooling", ["mean", "cls_token"])
def test_sentence_transformers_reads_what_we_write(pooling, folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = MiniBert.from_folder(folder, pooling)
    model.save_pretrained(tmp_path / "saved", load_tokenizer(folder))
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[1], return_tensors="pt")
    tokens.pop("token_type_ids", None)
    hidden = model(**tokens)[0]
    expected = hidden.mean(0) if pooling == "mean" else hidden[0]
    np.testing.assert_allclose(theirs.encode(TEXTS[1]), expected.detach().numpy(), atol=1e-5)


def test_names_under_a_head_are_understood(family, tmp_path):
    bare = stock_backbone(tmp_path / "bare", family)
    headed = stock_backbone(tmp_path / "headed", family, "ForSequenceClassification")
    names = load_file(headed / "model.safetensors").keys()
    assert not any(name.startswith("embeddings.") for name in names)
    model = MiniBert.from_folder(headed, "mean")
    theirs = hidden_states(transformers.AutoModel.from_pretrained(headed), bare)
    torch.testing.assert_close(hidden_states(model, bare), theirs, rtol=0, atol=1e-5)


def test_the_pooler_is_read_where_the_family_has_one(family, folder, tmp_path):
    modules = read_modules(folder)
    assert modules.pooling == ("mean" if family == "electra" else "cls")
    assert ("no pooler" in modules.summary) == (family == "electra")
    if family == "electra":
        with pytest.raises(WeightsError, match="saved without a pooler"):
            MiniBert.from_folder(folder, "cls")
        return
    theirs = transformers.AutoModel.from_pretrained(folder)
    model = MiniBert.from_folder(folder)
    assert model.pooler.dense.weight.equal(theirs.pooler.dense.weight)
    model.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModel.from_pretrained(tmp_path / "saved")
    assert again.pooler.dense.weight.equal(theirs.pooler.dense.weight)


def test_a_pooler_of_electra_is_sentence_transformers_alone(tmp_path):
    """transformers' ElectraModel has no place for it, so it is in 2_Dense only."""
    folder = stock_backbone(tmp_path / "electra", "electra")
    model = MiniBert(read_config(folder), "cls")
    model.save_pretrained(tmp_path / "saved", load_tokenizer(folder))
    assert not any("pooler" in n for n in load_file(tmp_path / "saved" / "model.safetensors"))
    again = MiniBert.from_folder(tmp_path / "saved")
    assert again.pooling == "cls"
    assert again.pooler.dense.weight.equal(model.pooler.dense.weight)


def test_rows_before_the_first_position_are_kept(tmp_path):
    folder = stock_backbone(tmp_path / "roberta", "roberta")
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    assert weights[name].shape == (66, 32)
    weights[name][:2] = torch.tensor([3.0, 4.0])[:, None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    MiniBert.from_folder(folder).save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors")[name].equal(weights[name])


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("electra", {"embedding_size": 16}, r"embedding_size is 16, not hidden_size"),
        ("electra", {"embedding_size": ...}, r"embedding_size is 128, not hidden_size"),
        ("roberta", {"hidden_act": "relu"}, r'hidden_act is "relu"'),
        ("roberta", {"is_decoder": True}, r"is_decoder is true"),
        ("roberta", {"max_position_embeddings": 2}, r"max_position_embeddings must be .* got 0"),
        ("roberta", {"pad_token_id": 500}, r"pad_token_id 500 is not below"),
    ],
)
def test_what_is_not_berts_is_named(family, changes, message, tmp_path):
    folder = stock_backbone(tmp_path / family, family)
    edit(folder, **changes)
    with pytest.raises(WeightsError, match=rf"config\.json: {message}"):
        read_config(folder)
