"""The shape of an encoder, in the field names of Hugging Face's ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.ranges import is_fraction

# Lowest and highest value of each count: far above any encoder, far below what no machine can hold.
_COUNTS = {
    "vocab_size": (1, 2**27),
    "hidden_size": (1, 2**16),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**16),
    "intermediate_size": (1, 2**20),
    "max_position_embeddings": (1, 2**20),
    "type_vocab_size": (1, 2**15),
    "pad_token_id": (0, 2**27),
}

# What config.json says of parts that MiniBert has in one form only.
FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
class BertConfig:
    """A BERT encoder (arXiv 1810.04805); defaults are bert-base-uncased's.

    Encoders whose layers are BERT's have a subclass each (``model.families``).

    Attributes:
        model_type, architecture: transformers' names. has_pooler: whether its model has a tanh
            layer behind the first token.
        max_position_embeddings: tokens of the longest sequence.

    Raises:
        ConfigError: a field is of another type or far from any encoder's, the heads do not divide
            the hidden size, or a dropout is outside [0, 1).
    """

    model_type: ClassVar[str] = "bert"
    architecture: ClassVar[str] = "BertModel"
    has_pooler: ClassVar[bool] = True

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0
    initializer_range: float = 0.02

    def __post_init__(self):
        for problem in self._problems():
            raise ConfigError(problem)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_size(self) -> int:
        return self.hidden_size

    @property
    def num_reserved_positions(self) -> int:
        """Rows of the stored position table before that of a sequence's first token."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """What Hugging Face's ``config.json`` says of the encoder."""
        names = {"architectures": [self.architecture], "model_type": self.model_type}
        stored = self.max_position_embeddings + self.num_reserved_positions
        return {**names, **FIXED, **asdict(self), "max_position_embeddings": stored}

    def _problems(self) -> Iterator[str]:
        for name, (low, high) in _COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                whole = f"a whole number from {low} to {high}"
                yield f"{name} must be {whole}, got {shown(repr(value))}"
        if self.hidden_size % self.num_attention_heads:
            yield (
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.pad_token_id >= self.vocab_size:
            yield f"pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}"
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not (_is_number(value := getattr(self, name)) and is_fraction(value)):
                yield f"{name} must be a number in [0, 1), got {shown(repr(value))}"
        for name in ("layer_norm_eps", "initializer_range"):
            if not (_is_number(value := getattr(self, name)) and 0.0 <= value < math.inf):
                yield f"{name} must be a finite number >= 0, got {shown(repr(value))}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
