"""BERT tokenizers from a checkpoint folder, with the ids ``transformers`` would give."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sbrrt_fast.errors import WeightsError


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load ``tokenizer.json``, or build BERT's WordPiece tokenizer from ``vocab.txt``.

    A saved tokenizer may have padding and truncation switched on; both are off afterwards.

    Raises:
        WeightsError: neither file is there, one cannot be read, or no [CLS] and [SEP] are added.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = _from_json(folder / "tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        tokenizer = _from_vocab(folder / "vocab.txt")
    else:
        raise WeightsError(
            f"{folder}: no tokenizer.json and no vocab.txt; the tokenizer has to be in the "
            "checkpoint's folder"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.num_special_tokens_to_add(is_pair=False) != 2:
        raise WeightsError(f"{folder}: the tokenizer does not put text between [CLS] and [SEP]")
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise WeightsError(f"{path}: not a tokenizer ({error}); fetch the file again") from None


def _from_vocab(path: Path) -> Tokenizer:
    settings = _settings(path.parent / "tokenizer_config.json")
    vocab = _vocabulary(path)
    unk, cls, sep, pad, mask = (
        _token(settings, name) for name in ("unk", "cls", "sep", "pad", "mask")
    )
    if missing := [token for token in (unk, cls, sep, pad) if token not in vocab]:
        raise WeightsError(f"{path}: the vocabulary has no {', '.join(missing)}")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    tokenizer.add_special_tokens([t for t in (pad, unk, cls, sep, mask) if t in vocab])
    return tokenizer


def _settings(path: Path) -> dict:
    """``tokenizer_config.json``, or {} where there is none (BERT's own defaults then hold)."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error}); fetch the file again") from None


def _vocabulary(path: Path) -> dict[str, int]:
    """Token -> id, the number of its line counted from 0."""
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: not UTF-8 ({error}); fetch the file again") from None
    if not tokens[-1]:
        tokens.pop()
    return {token: index for index, token in enumerate(tokens)}


def _token(settings: dict, name: str) -> str:
    """A special token's text; saved either as a string or as ``{"content": ...}``."""
    token = settings.get(f"{name}_token") or f"[{name.upper()}]"
    return token["content"] if isinstance(token, dict) else token
