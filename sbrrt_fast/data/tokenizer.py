"""BERT tokenizers from a checkpoint folder, with the ids ``transformers`` would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from sbrrt_fast.data.tokenizer_settings import (
    CONFIG,
    ROLES,
    TokenizerSettings,
    read_settings,
)
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.json_file import as_json, kind_of, read_json

TOKENIZER, VOCABULARY, SENTENCE = "tokenizer.json", "vocab.txt", "sentence_bert_config.json"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load ``tokenizer.json``, or build BERT's WordPiece tokenizer from ``vocab.txt``.

    Case, special and added tokens are ``transformers``': for BertTokenizer those of
    ``tokenizer_config.json`` and its defaults. A saved tokenizer may have padding and truncation
    switched on; both are off afterwards.

    Raises:
        WeightsError: neither file is there, one cannot be read, two of them contradict each other,
            the vocabulary lacks a special token, or no [CLS] and [SEP] are added.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if (folder / TOKENIZER).is_file():
        tokenizer = _from_json(folder / TOKENIZER, settings)
    elif (folder / VOCABULARY).is_file():
        tokenizer = _from_vocab(folder / VOCABULARY, settings)
    else:
        raise WeightsError(
            f"{folder}: no tokenizer.json and no vocab.txt; the tokenizer has to be in the "
            "checkpoint's folder"
        )
    _check_sentence_settings(folder, tokenizer)
    return tokenizer


def _bert_disagreement(
    tokenizer: Tokenizer, settings: TokenizerSettings, expected: Tokenizer
) -> str | None:
    """How a tokenizer differs from what BertTokenizer makes of its vocabulary, or None.

    Args:
        expected: ``_bert_tokenizer`` of the vocabulary and the settings.
    """
    model = tokenizer.model
    if not isinstance(model, models.WordPiece):
        return f"its model is {type(model).__name__}, BertTokenizer's is WordPiece"
    shape = model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word
    if shape != (settings.content("unk"), "##", 100):
        return "its WordPiece has another unknown token, prefix or longest word than BertTokenizer"
    if reason := _normalizer_disagreement(tokenizer.normalizer, settings):
        return reason
    if not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer):
        return "its pre-tokenizer is not BertTokenizer's"
    for texts in (("a",), ("a", "a")):
        ours, theirs = tokenizer.encode(*texts), expected.encode(*texts)
        if (ours.ids, ours.type_ids) != (theirs.ids, theirs.type_ids):
            return "its post-processor does not put [CLS], [SEP] and token types as BertTokenizer"
    return None


def _bert_tokenizer(
    vocab: dict[str, int],
    settings: TokenizerSettings,
    listed: dict[str, tuple[int, AddedToken]] | None = None,
) -> Tokenizer:
    """BertTokenizer's tokenizer for a vocabulary.

    Args:
        listed: (id, token) by content, the added tokens of ``tokenizer.json``.
    """
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=settings.content("unk")))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.chinese,
        strip_accents=settings.strip_accents,
        lowercase=settings.lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens(list(settings.tokens(listed or {})))
    ends = [(t, tokenizer.token_to_id(t)) for t in map(settings.content, ("sep", "cls"))]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _from_json(path: Path, settings: TokenizerSettings) -> Tokenizer:
    tokenizer = _parse(path)
    _check_between_special_tokens(path.parent, tokenizer)
    listed = _listed_tokens(path, tokenizer)
    _check_added(path, settings, listed)
    _check_vocabularies(path, tokenizer)
    if settings.is_bert:
        tokenizer = _agreed(path, tokenizer, settings, listed)
    else:
        tokenizer.add_tokens(list(settings.tokens(listed)))
    return _with_ids(path, tokenizer, {**listed, **settings.added})


def _from_vocab(path: Path, settings: TokenizerSettings) -> Tokenizer:
    if not settings.is_bert:
        raise WeightsError(
            f"{path}: is for tokenizer_class {as_json(settings.class_name)}, and only "
            "BertTokenizer is made from vocab.txt; save a tokenizer.json with transformers' "
            "save_pretrained"
        )
    vocab = _vocabulary(path)
    _check_roles(path, vocab, settings)
    return _with_ids(path, _bert_tokenizer(vocab, settings), settings.added)


def _agreed(
    path: Path,
    tokenizer: Tokenizer,
    settings: TokenizerSettings,
    listed: dict[str, tuple[int, AddedToken]],
) -> Tokenizer:
    """BertTokenizer over the vocabulary of ``tokenizer.json``, which must describe the same."""
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    _check_roles(path, {**vocab, **listed}, settings)
    expected = _bert_tokenizer(vocab, settings, listed)
    if reason := _bert_disagreement(tokenizer, settings, expected):
        raise WeightsError(
            f"{path}: contradicts {CONFIG} and BertTokenizer's defaults, {reason}; correct "
            f"{CONFIG}, or set tokenizer_class there to PreTrainedTokenizerFast to take "
            "tokenizer.json as it is"
        )
    return expected


def _parse(path: Path) -> Tokenizer:
    """The tokenizer of a file, tried out: some damage shows at the first text only."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
        _check_templates(path, read_json(path).get("post_processor"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("a")
        tokenizer.encode("a", "a")
    except (KeyboardInterrupt, SystemExit, WeightsError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: not a tokenizer ({reason}); fetch the file again") from None
    return tokenizer


def _check_templates(path: Path, processor: Any) -> None:
    """A template may put only special tokens that it defines; the library would panic."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors") or []:
        _check_templates(path, inner)
    pieces = [*(processor.get("single") or []), *(processor.get("pair") or [])]
    put = {p["SpecialToken"]["id"] for p in pieces if isinstance(p, dict) and "SpecialToken" in p}
    defined = processor.get("special_tokens") or {}
    if unknown := put - {name for name, token in defined.items() if token.get("id") == name}:
        raise WeightsError(
            f"{path}: post_processor puts {as_json(min(unknown))}, which it does not define; fetch "
            "the file again"
        )


def _normalizer_disagreement(normalizer: Any, settings: TokenizerSettings) -> str | None:
    if not isinstance(normalizer, normalizers.BertNormalizer) or not normalizer.clean_text:
        return "its normalizer is not BertTokenizer's"
    strips = [
        lower if strip is None else strip
        for lower, strip in (
            (normalizer.lowercase, normalizer.strip_accents),
            (settings.lowercase, settings.strip_accents),
        )
    ]
    pairs = {
        "do_lower_case": (normalizer.lowercase, settings.lowercase),
        "strip_accents": tuple(strips),
        "tokenize_chinese_chars": (normalizer.handle_chinese_chars, settings.chinese),
    }
    for name, (stored, configured) in pairs.items():
        if stored != configured:
            return f"its normalizer has {name} {as_json(stored)}, {CONFIG} {as_json(configured)}"
    return None


def _with_ids(
    path: Path, tokenizer: Tokenizer, added: dict[str, tuple[int, AddedToken]]
) -> Tokenizer:
    """Each added token must have the id that the files give it."""
    for content, (number, _) in added.items():
        if (other := tokenizer.token_to_id(content)) != number:
            raise WeightsError(
                f"{path.parent}: added token {as_json(content)} should be {number}, but behind "
                f"this vocabulary it is {other}; use the files that were saved with the weights"
            )
    return tokenizer


def _listed_tokens(path: Path, tokenizer: Tokenizer) -> dict[str, tuple[int, AddedToken]]:
    """``added_tokens`` of ``tokenizer.json`` with the ids that the file gives them."""
    tokens = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}
    entries = read_json(path).get("added_tokens") or []
    return {
        e["content"]: (e["id"], tokens[e["content"]]) for e in entries if e["content"] in tokens
    }


def _check_added(
    path: Path, settings: TokenizerSettings, listed: dict[str, tuple[int, AddedToken]]
) -> None:
    """``tokenizer.json`` and the files beside it must add the same tokens in the same way."""
    for content, (number, token) in settings.added.items():
        other = listed.get(content, (number, token))
        is_same = other[0] == number
        if settings.is_complete:
            is_same = is_same and other[1].__getstate__() == token.__getstate__()
        if not is_same:
            raise WeightsError(
                f"{path}: added token {as_json(content)} differs from the one in {CONFIG} or "
                "added_tokens.json; keep the file that was saved with the weights"
            )
    if settings.is_complete and (unknown := listed.keys() - settings.added.keys()):
        raise WeightsError(
            f"{path}: added token {as_json(min(unknown))} is not in added_tokens_decoder of "
            f"{CONFIG}; keep the file that was saved with the weights"
        )


def _check_vocabularies(path: Path, tokenizer: Tokenizer) -> None:
    """A ``vocab.txt`` beside ``tokenizer.json`` must number its tokens the same way."""
    other = path.parent / VOCABULARY
    if not other.is_file():
        return
    vocab = tokenizer.get_vocab()
    differing = [t for t, i in _vocabulary(other).items() if t in vocab and vocab[t] != i]
    if differing:
        raise WeightsError(
            f"{path} and {other.name} give {len(differing):,} tokens different ids (first: "
            f"{as_json(differing[0])}); keep the one that was saved with the weights"
        )


def _check_roles(path: Path, vocab: dict[str, int], settings: TokenizerSettings) -> None:
    """The vocabulary needs all special tokens but [MASK], and [PAD] unless it is said not to."""
    added = settings.added.keys()
    required = [role for role in ROLES if role != "mask"]
    absent = [r for r in required if r != "pad" and settings.content(r) is None]
    if absent:
        raise WeightsError(f"{path}: {CONFIG} says that there is no {absent[0]}_token")
    tokens = [t for r in required if (t := settings.content(r)) is not None]
    if missing := [token for token in tokens if token not in vocab and token not in added]:
        raise WeightsError(f"{path}: the vocabulary has no {', '.join(missing)}")


def _check_between_special_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    if tokenizer.num_special_tokens_to_add(is_pair=False) != 2:
        raise WeightsError(f"{folder}: the tokenizer does not put text between [CLS] and [SEP]")


def _check_sentence_settings(folder: Path, tokenizer: Tokenizer) -> None:
    """sentence-transformers may lower-case texts before the tokenizer sees them."""
    path = folder / SENTENCE
    lowers = read_json(path).get("do_lower_case", False) if path.is_file() else False
    if not isinstance(lowers, bool):
        raise WeightsError(f"{path}: do_lower_case must be true or false, got {kind_of(lowers)}")
    normalizer = tokenizer.normalizer
    if lowers and (normalizer is None or normalizer.normalize_str("A") != "a"):
        raise WeightsError(
            f"{path}: do_lower_case is true, but the tokenizer keeps upper case; make both say the "
            "same"
        )


def _vocabulary(path: Path) -> dict[str, int]:
    """Token -> id, the number of its line counted from 0, as the tokenizers library reads it."""
    try:
        return models.WordPiece.read_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        reason = "not UTF-8" if "UTF-8" in str(error) else f"cannot be read ({error})"
        raise WeightsError(f"{path}: {reason}; fetch the file again") from None
