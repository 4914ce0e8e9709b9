"""What the trainer has to know of an encoder of transformers, under the names of ``BertConfig``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import nn

from sbrrt_fast.errors import ConfigError

_HIDDEN_DROPOUTS = (
    *("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout"),
    *("embd_pdrop", "resid_pdrop"),
)
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
_UNBOUNDED = 2**15  # of an encoder that has no table of positions
_NOT_STORED = ("transformers_version", "_name_or_path")


@dataclass(frozen=True)
class EncoderShape:
    """The shape of an encoder.

    Attributes:
        model_type, architecture: transformers' names.
        has_pooler: whether transformers' class has a tanh layer behind the first token.
        vocab_size, hidden_size, num_hidden_layers, intermediate_size: as of ``BertConfig``.
        embedding_size: features of a word's embedding.
        max_position_embeddings: tokens of the longest sequence.
        type_vocab_size: token types that it takes; 0 if it takes none.
        hidden_dropout_prob, attention_probs_dropout_prob: 0 where its configuration has none.
        stored: the fields of its ``config.json``.
    """

    model_type: str
    architecture: str
    has_pooler: bool
    vocab_size: int
    hidden_size: int
    embedding_size: int
    num_hidden_layers: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    stored: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` says of the encoder."""
        return dict(self.stored)


def shape_of(model: nn.Module, takes_types: bool, has_pooler: bool) -> EncoderShape:
    """The shape of a loaded model.

    Args:
        model: of transformers. takes_types: whether its forward has ``token_type_ids``.
    """
    config, words = model.config, model.get_input_embeddings()
    hidden_size = config.hidden_size
    return EncoderShape(
        model_type=config.model_type,
        architecture=type(model).__name__,
        has_pooler=has_pooler,
        vocab_size=words.num_embeddings,
        hidden_size=hidden_size,
        embedding_size=words.embedding_dim,
        num_hidden_layers=config.num_hidden_layers,
        intermediate_size=_first(config, ("intermediate_size", "hidden_dim"), 4 * hidden_size),
        max_position_embeddings=_num_positions(model),
        type_vocab_size=_first(config, ("type_vocab_size",), 1) if takes_types else 0,
        hidden_dropout_prob=_first(config, _HIDDEN_DROPOUTS, 0.0),
        attention_probs_dropout_prob=attention_dropout(config),
        stored=_stored(model),
    )


def attention_dropout(config: Any) -> float:
    """The probability that a configuration of transformers has, or 0."""
    return _first(config, _ATTENTION_DROPOUTS, 0.0)


def set_dropout(config: Any, hidden: float | None, attention: float | None) -> None:
    """Changes a configuration of transformers before a model is made of it; None leaves it.

    Raises:
        ConfigError: it has no such setting.
    """
    chosen = {"hidden": (hidden, _HIDDEN_DROPOUTS), "attention": (attention, _ATTENTION_DROPOUTS)}
    for name, (p, fields) in chosen.items():
        present = [field for field in fields if hasattr(config, field)]
        if p is not None and not present:
            raise ConfigError(
                f"model.{name}_dropout: {config.model_type} has no such setting; leave it out"
            )
        for field in present if p is not None else ():
            setattr(config, field, p)


def _first(config: Any, names: tuple[str, ...], default: Any) -> Any:
    """The first of these fields that a configuration has."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), default)


def _num_positions(model: nn.Module) -> int:
    """Rows of its table of positions, without those that no token has (as of RoBERTa)."""
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            reserved = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - reserved
    return _first(model.config, ("max_position_embeddings",), _UNBOUNDED)


def _stored(model: nn.Module) -> dict[str, Any]:
    fields = json.loads(model.config.to_json_string())
    kept = {name: value for name, value in fields.items() if name not in _NOT_STORED}
    return {**kept, "architectures": [type(model).__name__]}
