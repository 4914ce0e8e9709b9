"""Tokenizers of made-up folders: the ids of transformers' AutoTokenizer, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import WeightsError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = "A a é e Él el ß ss İ i dé de ##é ##e ##s ##l new NEW york ##york 中 文"
MORE = "##a ##A ent ##ent cls CLS mask sep n t , . ! - ' [ ] < > /"
WORDS = [*SPECIAL, *PIECES.split(), *MORE.split()]
TEXTS = [
    "A new NEW York, new-york!",
    "Éle él ELÉ \u0130i ßs \u00df",
    "a\u00a0a\u200ba\u0000a\ufffda\ta\r\na",
    "中文a中 ｡",
    "[CLS] a [SEP] b [MASK] [mask] [PAD] [UNK]",
    "a<ENT>new <ent> <ent>new<ENT2>",
    "NewTok newtok NEWTOK a newtoka",
    "",
    " \u3000 ",
    "\U0001f600 e\u0301 E\u0301",
    "a" * 150,
]


def write(path: Path, value) -> None:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")


def slow_folder(folder: Path, words: list[str] | None = None, **files) -> Path:
    """A folder of vocab.txt and config.json; ``files`` are further JSON files by their stem."""
    write(folder / "vocab.txt", "".join(f"{word}\n" for word in words or WORDS))
    write(folder / "config.json", {"model_type": "bert"})
    for stem, value in files.items():
        write(folder / f"{stem}.json", value)
    return folder


def pipeline(lowercase: bool = True, special: bool = True, **options) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    if special:
        tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def fast_folder(folder: Path, tokenizer: Tokenizer, **files) -> Path:
    """A folder of tokenizer.json and config.json, and further JSON files by their stem."""
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "config.json", {"model_type": "bert"})
    for stem, value in files.items():
        write(folder / f"{stem}.json", value)
    return folder


def assert_ids_of_transformers(folder: Path) -> None:
    ours = load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    for inputs in (TEXTS, pairs):
        expected = theirs(inputs, padding=False, truncation=False, return_token_type_ids=True)
        encodings = ours.encode_batch(inputs)
        assert [e.ids for e in encodings] == expected["input_ids"]
        assert [e.type_ids for e in encodings] == expected["token_type_ids"]
    assert ours.get_vocab() == theirs.get_vocab()


def decoder(*tokens: tuple[str, int], **flags) -> dict:
    base = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    special = {
        str(i): {**base, "content": token, "special": True} for i, token in enumerate(SPECIAL)
    }
    return special | {str(i): {**base, "content": token, **flags} for token, i in tokens}


END = len(WORDS)
SLOW = {
    "defaults": {},
    "cased": {"tokenizer_config": {"do_lower_case": False}},
    "accents_kept": {"tokenizer_config": {"do_lower_case": True, "strip_accents": False}},
    "accents_stripped": {"tokenizer_config": {"do_lower_case": False, "strip_accents": True}},
    "chinese_together": {"tokenizer_config": {"tokenize_chinese_chars": False}},
    "added_tokens": {"added_tokens": {"NewTok": END + 1, "<ent>": END}},
    "added_tokens_cased": {
        "added_tokens": {"<ENT>": END, "NewTok": END + 1},
        "tokenizer_config": {"do_lower_case": False},
    },
    "additional_special": {
        "added_tokens": {"<ent>": END},
        "special_tokens_map": {"additional_special_tokens": ["<ent>"]},
    },
    "additional_alone": {"special_tokens_map": {"additional_special_tokens": ["<ent>"]}},
    "additional_in_config": {
        "added_tokens": {"<ent>": END},
        "tokenizer_config": {"additional_special_tokens": ["<ent>"]},
    },
    "mask_is_added_unsaid": {"added_tokens": {"[MASK]": 4}},
    "mask_is_added_and_said": {
        "added_tokens": {"[MASK]": 4},
        "tokenizer_config": {"mask_token": "[MASK]"},
    },
    "dict_with_type": {
        "tokenizer_config": {
            "mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True}
        }
    },
    "extra_special": {"tokenizer_config": {"extra_special_tokens": ["<ent>", "<ENT2>"]}},
    "special_map_flags": {
        "special_tokens_map": {
            "mask_token": {
                "content": "[MASK]",
                "lstrip": True,
                "rstrip": False,
                "single_word": False,
                "normalized": False,
            },
            "cls_token": "[CLS]",
        }
    },
    "decoder": {
        "tokenizer_config": {
            "added_tokens_decoder": decoder(("<ent>", END), ("newtok", END + 1), normalized=True)
        }
    },
    "decoder_flags": {
        "tokenizer_config": {
            "added_tokens_decoder": decoder(("<ent>", END), lstrip=True, single_word=True)
        }
    },
    "own_names": {
        "tokenizer_config": {"cls_token": "cls", "sep_token": "sep", "do_lower_case": True}
    },
    "model_specific": {"tokenizer_config": {"entity_token": "<ent>"}},
    "fast_class": {"tokenizer_config": {"tokenizer_class": "BertTokenizerFast"}},
    "electra": {"tokenizer_config": {"tokenizer_class": "ElectraTokenizer"}},
}


@pytest.mark.parametrize("name", SLOW)
def test_vocab_txt_folders(name, tmp_path):
    assert_ids_of_transformers(slow_folder(tmp_path, **SLOW[name]))


def test_vocabulary_without_mask_gets_one_as_in_transformers(tmp_path):
    assert_ids_of_transformers(slow_folder(tmp_path, [w for w in WORDS if w != "[MASK]"]))


def test_odd_vocabulary_lines(tmp_path):
    assert_ids_of_transformers(slow_folder(tmp_path, [*WORDS, "q ", "", "a", "\u2028", "z\u00a0"]))


FAST = {
    "defaults": (pipeline, {}),
    "cased": (lambda: pipeline(False), {"tokenizer_config": {"do_lower_case": False}}),
    "accents_said_otherwise": (
        lambda: pipeline(strip_accents=True),
        {"tokenizer_config": {"do_lower_case": True, "strip_accents": None}},
    ),
    "as_it_is": (
        lambda: pipeline(False, strip_accents=True),
        {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}},
    ),
    "special_tokens_not_listed": (lambda: pipeline(special=False), {"tokenizer_config": {}}),
    "special_tokens_not_listed_as_it_is": (
        lambda: pipeline(special=False),
        {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "[SEP]"}},
    ),
}


@pytest.mark.parametrize("name", FAST)
def test_tokenizer_json_folders(name, tmp_path):
    build, files = FAST[name]
    assert_ids_of_transformers(fast_folder(tmp_path, build(), **files))


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("has_decoder", [True, False])
def test_tokenizer_json_with_added_tokens(kind, has_decoder, tmp_path):
    tokenizer = pipeline()
    tokenizer.add_tokens([AddedToken("<ent>", lstrip=True), "newtok"])
    config = {"tokenizer_class": kind, "unk_token": "[UNK]", "pad_token": "[PAD]"}
    if has_decoder:
        entries = decoder(("newtok", END + 1), normalized=True)
        entries |= {str(END): {**entries[str(END + 1)], "content": "<ent>", "lstrip": True}}
        config["added_tokens_decoder"] = entries
    assert_ids_of_transformers(fast_folder(tmp_path, tokenizer, tokenizer_config=config))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "do_lower_case false, tokenizer_config.json true"),
        ({"do_lower_case": True}, "do_lower_case false, tokenizer_config.json true"),
        ({"do_lower_case": False, "strip_accents": True}, "strip_accents false"),
        (
            {"do_lower_case": False, "tokenize_chinese_chars": False},
            "tokenize_chinese_chars true, tokenizer_config.json false",
        ),
        ({"do_lower_case": False, "unk_token": "[MASK]"}, "another unknown token"),
        ({"do_lower_case": False, "cls_token": "[MASK]"}, "its post-processor"),
    ],
)
def test_tokenizer_json_that_its_config_contradicts(config, named, tmp_path):
    folder = fast_folder(tmp_path, pipeline(False), tokenizer_config=config)
    with pytest.raises(WeightsError, match=r"tokenizer\.json: contradicts .*" + named):
        load_tokenizer(folder)
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert load_tokenizer(folder).encode("NEW").tokens == ["[CLS]", "NEW", "[SEP]"]


def _with(tokenizer: Tokenizer, **parts) -> Tokenizer:
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"normalizer": normalizers.Lowercase()}, "normalizer is not"),
        ({"normalizer": normalizers.BertNormalizer(clean_text=False)}, "normalizer is not"),
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "pre-tokenizer is not"),
        (
            {"post_processor": processors.BertProcessing(("[CLS]", 2), ("[SEP]", 3))},
            "post-processor does not",
        ),
    ],
)
def test_tokenizer_json_of_another_pipeline(parts, named, tmp_path):
    folder = fast_folder(tmp_path, _with(pipeline(), **parts))
    with pytest.raises(WeightsError, match=r"tokenizer\.json: contradicts .*" + named):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"added_tokens": {"<ent>": END + 5}}, '"<ent>" should be'),
        ({"added_tokens": {"<ent>": 3}}, '"<ent>" should be 3'),
        ({"added_tokens": {"new": END}}, '"new" should be'),
        ({"added_tokens": {"<ent>": -1}}, r"added_tokens\.json: the id of"),
        ({"added_tokens": {"<ent>": True}}, r"added_tokens\.json: the id of"),
        ({"added_tokens": ["<ent>"]}, r"added_tokens\.json: expected a JSON object"),
        (
            {
                "added_tokens": {"<ent>": END},
                "tokenizer_config": {"added_tokens_decoder": decoder(("<ent>", END + 1))},
            },
            "added_tokens.json and",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder must be"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "maps"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"5": {"content": "q", "lstrip": 1}}}},
            'lstrip of token "q"',
        ),
        ({"tokenizer_config": {"do_lower_case": "false"}}, 'do_lower_case must .* "false"'),
        ({"tokenizer_config": {"do_lower_case": None}}, "do_lower_case must .* null"),
        ({"tokenizer_config": {"cls_token": 7}}, "cls_token|must be a token"),
        ({"tokenizer_config": {"cls_token": None}}, "no cls_token"),
        ({"tokenizer_config": {"sep_token": "<s>"}}, "the vocabulary has no <s>"),
        ({"tokenizer_config": {"tokenizer_class": 3}}, "tokenizer_class must be a name"),
        ({"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "BertJapanese"),
        ({"tokenizer_config": "[" * 5000 + "]" * 5000}, "nested too deeply"),
        ({"tokenizer_config": '{"a": ' + "1" * 5000 + "}"}, "whole number of 5,000 digits"),
        ({"special_tokens_map": None}, r"special_tokens_map\.json: expected a JSON object"),
        (
            {
                "special_tokens_map": {"cls_token": "[MASK]"},
                "tokenizer_config": {"cls_token": "[CLS]"},
            },
            "make them say the same",
        ),
        (
            {
                "special_tokens_map": {"additional_special_tokens": ["<ent>"]},
                "tokenizer_config": {"extra_special_tokens": ["<ENT2>"]},
            },
            "name other extra or additional special tokens",
        ),
        (
            {
                "sentence_bert_config": {"do_lower_case": True},
                "tokenizer_config": {"do_lower_case": False},
            },
            "keeps upper case",
        ),
        ({"sentence_bert_config": {"do_lower_case": "yes"}}, "must be true or false"),
    ],
)
def test_contradictions_and_odd_shapes_are_one_line(files, named, tmp_path):
    slow_folder(tmp_path, **files)
    with pytest.raises(WeightsError, match=named) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("absent", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_special_tokens_must_be_in_the_vocabulary(absent, tmp_path):
    slow_folder(tmp_path, [word for word in WORDS if word != absent])
    with pytest.raises(WeightsError, match=rf"vocab\.txt: the vocabulary has no \{absent}"):
        load_tokenizer(tmp_path)


def test_two_vocabularies_must_agree(tmp_path):
    folder = fast_folder(tmp_path, pipeline())
    write(folder / "vocab.txt", "".join(f"{word}\n" for word in WORDS))
    load_tokenizer(folder)
    write(folder / "vocab.txt", "".join(f"{word}\n" for word in [*WORDS[:7], "x", *WORDS[7:]]))
    with pytest.raises(WeightsError, match=r"vocab\.txt give .* tokens different ids"):
        load_tokenizer(folder)


def test_added_tokens_of_two_files_must_agree(tmp_path):
    tokenizer = pipeline()
    tokenizer.add_tokens(["<ent>"])
    config = {"added_tokens_decoder": decoder(("<ent>", END), lstrip=True, normalized=True)}
    folder = fast_folder(tmp_path, tokenizer, tokenizer_config=config)
    with pytest.raises(WeightsError, match=r'"<ent>" differs from'):
        load_tokenizer(folder)
    write(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder()})
    with pytest.raises(WeightsError, match=r'"<ent>" is not in added_tokens_decoder'):
        load_tokenizer(folder)


def test_id_that_tokenizer_json_cannot_keep(tmp_path):
    tokenizer = pipeline()
    tokenizer.add_tokens(["<ent>"])
    folder = fast_folder(tmp_path, tokenizer)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    stored["added_tokens"][-1]["id"] = END + 9
    write(folder / "tokenizer.json", stored)
    with pytest.raises(WeightsError, match=rf'"<ent>" should be {END + 9}'):
        load_tokenizer(folder)
