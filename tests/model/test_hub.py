"""Hugging Face folders in and out: what is refused, and round trips that change no bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model import hub
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.hub import save_encoder
from tests.model.models import TINY

QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Replaces every parameter, biases and LayerNorm too, by random numbers."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def original() -> transformers.BertModel:
    return randomise(transformers.BertModel(transformers.BertConfig(**TINY)))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A folder that transformers wrote."""
    original.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours() -> MiniBert:
    return randomise(MiniBert(BertConfig(**TINY), pooling="cls"))


@pytest.fixture
def cased_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Good", "good", "##ness", "né", "ne"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def edit_weights(folder: Path, edit) -> None:
    """Rewrites model.safetensors as ``edit(its tensors)``."""
    tensors = load_file(folder / "model.safetensors")
    save_file(edit(tensors), folder / "model.safetensors")


def without(*prefixes: str):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(prefixes)}


def assert_same_weights(model: MiniBert, original: torch.nn.Module) -> None:
    expected, got = original.state_dict(), model.state_dict()
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


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
    assert names == {"config.json", "model.safetensors", "modules.json", "1_Pooling", "2_Dense"}


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
    assert names == {"config.json", "model.safetensors", "modules.json", "1_Pooling"}
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
