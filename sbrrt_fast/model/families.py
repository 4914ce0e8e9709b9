"""Kinds of checkpoints whose layers are BERT's, under names of their own in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sbrrt_fast.json_file import as_json, read_json
from sbrrt_fast.model.config import FIXED, BertConfig


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """RoBERTa (arXiv 1907.11692): positions are counted from behind the padding's number on."""

    model_type: ClassVar[str] = "roberta"
    architecture: ClassVar[str] = "RobertaModel"

    pad_token_id: int = 1

    @property
    def num_reserved_positions(self) -> int:
        return self.pad_token_id + 1


@dataclass(frozen=True)
class XlmRobertaConfig(RobertaConfig):
    """XLM-R (arXiv 1911.02116): RoBERTa on a hundred languages."""

    model_type: ClassVar[str] = "xlm-roberta"
    architecture: ClassVar[str] = "XLMRobertaModel"


@dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """CamemBERT (arXiv 1911.03894): RoBERTa on French."""

    model_type: ClassVar[str] = "camembert"
    architecture: ClassVar[str] = "CamembertModel"


@dataclass(frozen=True)
class Data2VecTextConfig(RobertaConfig):
    """data2vec's encoder of text (arXiv 2202.03555)."""

    model_type: ClassVar[str] = "data2vec-text"
    architecture: ClassVar[str] = "Data2VecTextModel"


@dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """ELECTRA (arXiv 2003.10555) whose embeddings are as wide as its hidden states."""

    model_type: ClassVar[str] = "electra"
    architecture: ClassVar[str] = "ElectraModel"
    has_pooler: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "embedding_size": self.hidden_size}


FAMILIES: dict[str, type[BertConfig]] = {
    kind.model_type: kind
    for kind in (
        BertConfig,
        RobertaConfig,
        XlmRobertaConfig,
        CamembertConfig,
        Data2VecTextConfig,
        ElectraConfig,
    )
}


def has_pooler(config: Path) -> bool:
    """Whether transformers' model of a ``config.json`` has a pooler; BERT's has, if none is named.

    Raises:
        WeightsError: the file is malformed.
    """
    kind = read_json(config).get("model_type", "bert") if config.is_file() else "bert"
    if not isinstance(kind, str):
        return False
    return kind in _OTHERS_WITH_POOLER or (kind in FAMILIES and FAMILIES[kind].has_pooler)


_OTHERS_WITH_POOLER = ("albert", "mpnet")
_ONLY_SUPPORTED = {**FIXED, "pruned_heads": {}}
_ELECTRA_WIDTH = 128  # of embeddings, where config.json does not say it


def why_not_bert(stored: Mapping[str, Any]) -> str | None:
    """Why the encoder that a ``config.json`` describes has other layers than BERT's, or None.

    Args:
        stored: the file's fields.
    """
    kind = stored.get("model_type", "bert")
    if not isinstance(kind, str) or kind not in FAMILIES:
        return f"model_type is {as_json(kind)}"
    for name, only in _ONLY_SUPPORTED.items():
        if stored.get(name, only) != only:
            return f"{name} is {as_json(stored[name])}"
    width = stored.get("embedding_size", _ELECTRA_WIDTH)
    if kind == "electra" and width != stored.get("hidden_size"):
        return f"embedding_size is {as_json(width)}, not hidden_size"
    return None
