"""The settings in the files beside a tokenizer's vocabulary: case, special and added tokens.

``transformers`` reads ``added_tokens_decoder`` of ``tokenizer_config.json`` where it is there, else
``special_tokens_map.json`` and ``added_tokens.json``; where the others say something else, the
folder is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.json_file import as_json, kind_of, read_json

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
BERT_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in ("Bert", "DistilBert", "Electra", "LayoutLM", "MobileBert", "SqueezeBert")
)
_BERT_MODELS = frozenset(  # by model_type, whose tokenizer is BertTokenizer if none is named
    ("bert", "distilbert", "electra", "layoutlm", "mobilebert", "squeezebert")
)
ROLES = ("unk", "sep", "pad", "cls", "mask")  # in the order in which they are added

_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of one folder; defaults are BertTokenizer's.

    Attributes:
        folder: where they are from.
        class_name: of the tokenizer, without ``Fast``.
        lowercase, chinese, strip_accents: BERT's normaliser; None strips where it lower-cases.
        special: tokens by role (``cls``) or other name, each as it is to be added.
        extra: further special tokens.
        added: (id, token) by content, in the order of the ids.
        is_complete: ``added`` comes from ``added_tokens_decoder``, which lists all of them.
    """

    folder: Path
    class_name: str
    lowercase: bool
    chinese: bool
    strip_accents: bool | None
    special: dict[str, AddedToken]
    extra: list[AddedToken]
    added: dict[str, tuple[int, AddedToken]]
    is_complete: bool

    @property
    def is_bert(self) -> bool:
        return self.class_name in BERT_CLASSES

    def content(self, role: str) -> str | None:
        """The text of a special token, or None where the files say that there is none."""
        return self.special[role].content if role in self.special else None

    def tokens(self, listed: dict[str, tuple[int, AddedToken]]) -> Iterator[AddedToken]:
        """All tokens to add, in order; ``listed`` are those of ``tokenizer.json``."""
        by_content = self.added if self.is_complete else {**self.added, **listed}
        named = {token.content for token in self.special.values()}
        seen = set()
        for _, token in sorted(by_content.values(), key=lambda entry: entry[0]):
            token.special = token.special or token.content in named
            seen.add(token.content)
            yield token
        for token in [*self.special.values(), *self.extra]:
            if token.content not in seen:
                seen.add(token.content)
                yield token


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings of a folder.

    Raises:
        WeightsError: a file is malformed, or two of them contradict each other.
    """
    config = _object(folder / CONFIG)
    entries, class_name = config.get("added_tokens_decoder"), _class_name(folder, config)
    mapped = _object(folder / SPECIAL) if entries is None else {}
    special = _named(folder, config, mapped)
    extra = _extra(folder, config, mapped)
    if entries is None:
        roles = {special[role].content for role in ROLES if special.get(role)}
        added = _added_tokens(folder, roles | _known_as_special(folder, config, mapped))
    else:
        added = _decoder(folder, entries)
        _check_same_ids(folder, added, _added_tokens(folder, set()))
    defaults = ROLES if class_name in BERT_CLASSES else ()
    named = {role: _special(f"[{role.upper()}]") for role in defaults} | special
    return TokenizerSettings(
        folder,
        class_name,
        _flag(folder, config, "do_lower_case", True),
        _flag(folder, config, "tokenize_chinese_chars", True),
        _flag(folder, config, "strip_accents", None),
        {n: added.get(t.content, (0, t))[1] for n, t in named.items() if t is not None},
        extra,
        added,
        entries is not None,
    )


def _special(content: str) -> AddedToken:
    return AddedToken(content, special=True)


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _is_token_name(name: str, value: Any) -> bool:
    """``cls_token`` and the like, of which a model may have its own."""
    is_role = name.removesuffix("_token") in ROLES
    return name.endswith("_token") and (is_role or isinstance(value, str | dict))


def _named(
    folder: Path, config: dict[str, Any], mapped: dict[str, Any]
) -> dict[str, AddedToken | None]:
    """Special tokens by role; None where a file says that there is none.

    ``special_tokens_map.json`` may name what ``tokenizer_config.json`` does not.
    """
    named: dict[str, AddedToken | None] = {}
    for source in (config, mapped):
        for name, token in source.items():
            if not _is_token_name(name, token):
                continue
            role = name.removesuffix("_token")
            added = None if token is None else _token(folder, name, token, special=True)
            if role in named and str(named[role]) != str(added):
                raise WeightsError(
                    f"{folder}: {name} is {_text(named[role])} in {CONFIG} and {_text(added)} in "
                    f"{SPECIAL}; make them say the same"
                )
            named[role] = added
    return named


def _text(token: AddedToken | None) -> str:
    return as_json(None if token is None else token.content)


def _extra(folder: Path, config: dict[str, Any], mapped: dict[str, Any]) -> list[AddedToken]:
    """Special tokens without a role, which all files that name any must name alike."""
    own, older = (_listed(folder, config, key) for key in _EXTRA)
    others = _listed(folder, mapped, _EXTRA[1])
    lists = [tokens for tokens in (own, older, others) if tokens]
    for tokens in lists[1:]:
        if {t.content for t in tokens} != {t.content for t in lists[0]}:
            raise WeightsError(
                f"{folder}: {CONFIG} and {SPECIAL} name other extra or additional special tokens; "
                "make them say the same"
            )
    return [*(lists[0] if lists else []), *_listed(folder, mapped, _EXTRA[0])]


def _known_as_special(folder: Path, config: dict[str, Any], mapped: dict[str, Any]) -> set[str]:
    """Extra tokens that ``transformers`` knows to be special when it reads added_tokens.json."""
    lists = [_listed(folder, config, key) for key in _EXTRA] + [_listed(folder, mapped, _EXTRA[0])]
    return {token.content for tokens in lists for token in tokens}


def _listed(folder: Path, source: dict[str, Any], key: str) -> list[AddedToken]:
    tokens = source.get(key) or []
    if not isinstance(tokens, dict | list):
        raise WeightsError(f"{folder}: {key} must be an array, got {kind_of(tokens)}")
    values = tokens.values() if isinstance(tokens, dict) else tokens
    return [_token(folder, key, token, special=True) for token in values]


def _token(folder: Path, name: str, token: Any, special: bool = False) -> AddedToken:
    """A token that is stored as its text or as an object with ``content``."""
    entry = token if isinstance(token, dict) else {"content": token}
    content, flags = entry.get("content"), {f: entry[f] for f in _FLAGS if f in entry}
    if not isinstance(content, str) or not content:
        raise WeightsError(f"{folder}: {as_json(name)} must be a token, got {kind_of(token)}")
    if bad := [f for f, value in flags.items() if not isinstance(value, bool)]:
        raise WeightsError(f"{folder}: {bad[0]} of token {as_json(content)} must be true or false")
    return AddedToken(content, **{**flags, "special": special or flags.get("special", False)})


def _decoder(folder: Path, entries: Any) -> dict[str, tuple[int, AddedToken]]:
    """``added_tokens_decoder``: id -> token."""
    path = folder / CONFIG
    if not isinstance(entries, dict):
        raise WeightsError(
            f"{path}: added_tokens_decoder must be an object, got {kind_of(entries)}"
        )
    added: dict[str, tuple[int, AddedToken]] = {}
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not (key.isascii() and key.isdigit() and len(key) < 10):
            raise WeightsError(
                f"{path}: added_tokens_decoder maps {as_json(key)} to {kind_of(entry)}, expected "
                "an id and an object"
            )
        token = _token(path, "added_tokens_decoder", entry)
        if token.content in added:
            raise WeightsError(f"{path}: added token {as_json(token.content)} has two ids")
        added[token.content] = (int(key), token)
    return added


def _added_tokens(folder: Path, special: set[str]) -> dict[str, tuple[int, AddedToken]]:
    """``added_tokens.json``: token -> id."""
    added = {}
    for content, number in _object(folder / ADDED).items():
        if type(number) is not int or number < 0 or not content:
            raise WeightsError(
                f"{folder / ADDED}: the id of {as_json(content)} must be a whole number >= 0, got "
                f"{kind_of(number)}"
            )
        is_special = content in special
        token = AddedToken(content, normalized=not is_special, special=is_special)
        added[content] = (number, token)
    return added


def _check_same_ids(folder: Path, added: dict, others: dict) -> None:
    for content, (number, _) in others.items():
        if content not in added or added[content][0] != number:
            other = added[content][0] if content in added else "missing"
            raise WeightsError(
                f"{folder}: added token {as_json(content)} is {number} in {ADDED} and {other} in "
                f"{CONFIG}; keep the file that was saved with the weights"
            )


def _flag(folder: Path, config: dict[str, Any], name: str, default: bool | None) -> Any:
    value = config.get(name, default)
    if not isinstance(value, bool) and not (default is None and value is None):
        raise WeightsError(f"{folder / CONFIG}: {name} must be true or false, got {kind_of(value)}")
    return value


def _class_name(folder: Path, config: dict[str, Any]) -> str:
    """``transformers``' class: as the tokenizer's file says, or the model's, or the family's."""
    name = config.get("tokenizer_class")
    if name is None:
        model = _object(folder / "config.json")
        kind = model.get("model_type", "bert")
        is_bert = not isinstance(kind, str) or kind in _BERT_MODELS
        name = model.get("tokenizer_class", None if is_bert else f"{kind}'s")
    if name is not None and not isinstance(name, str):
        raise WeightsError(
            f"{folder / CONFIG}: tokenizer_class must be a name, got {kind_of(name)}"
        )
    return (name or "BertTokenizer").removesuffix("Fast")
