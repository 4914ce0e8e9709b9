"""What an encoder asks of each op: calls with its weights, shapes and dtypes, but without rows.

An op says for such a call, before anything runs, which implementation takes it and why others
cannot (``Op.explain``). The calls run, too, and do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.layers import BertLayer
from sbrrt_fast.model.load_encoder import Encoder
from sbrrt_fast.ops._backend.dispatch import Choice, Op
from sbrrt_fast.ops.attention import MAX_LENGTH
from sbrrt_fast.ops.registry import OPS

PASS_OPS = ("embed", "attention", "dropout_add_layernorm", "bias_gelu")
"""The ops of an encoder's pass."""

_OPS = {op.name: op for op in OPS}


@dataclass(frozen=True)
class OpCall:
    """An op with its arguments.

    Attributes:
        op: the op. args, kwargs: all of its arguments but the backend.
        shorter: the same call for the longest sequences that a fused op takes, where this one's
            are longer: a batch without such sequences is another choice.
    """

    op: Op
    args: tuple
    kwargs: dict = field(default_factory=dict)
    shorter: OpCall | None = None

    @classmethod
    def named(cls, name: str, *args, **kwargs) -> OpCall:
        return cls(_OPS[name], args, kwargs)

    def explain(self, backend: str) -> Choice:
        """What the op takes for this call; see ``Op.explain``."""
        return self.op.explain(backend, *self.args, **self.kwargs)


def encoder_calls(
    encoder: Encoder, dtype: torch.dtype, max_length: int, packed: bool = True
) -> list[OpCall]:
    """The calls of one pass; all layers have one shape. transformers' own encoders have none.

    Args:
        dtype: of the matrix products.
        max_length: of the longest sequence, in tokens.
        packed: the layout; in the padded one attention has no choice, and none is asked.
    """
    if not isinstance(encoder, MiniBert):
        return []
    layer = encoder.encoder.layer[0] if encoder.config.num_hidden_layers else None
    calls = [_embed(encoder)]
    if layer is None:
        return calls
    if packed:
        calls.append(_attention(encoder, dtype, max_length))
    return [*calls, _layernorm(encoder, layer, dtype), _gelu(encoder, layer, dtype)]


def _embed(encoder: MiniBert) -> OpCall:
    layer, norm = encoder.embeddings, encoder.embeddings.LayerNorm
    word = layer.word_embeddings.weight
    none = word.new_empty(0, dtype=torch.int64)
    tables = word, layer.position_embeddings.weight, layer.token_type_embeddings.weight
    dropout = _hidden_dropout(encoder)
    return OpCall.named(
        "embed", none, none, none, *tables, norm.weight, norm.bias, norm.eps, *dropout
    )


def _attention(encoder: MiniBert, dtype: torch.dtype, max_length: int) -> OpCall:
    config = encoder.config
    matrix = _rows(encoder, config.hidden_size, dtype)
    starts, rows = (matrix.new_zeros(n, dtype=t) for n, t in ((1, torch.int32), (0, torch.int64)))
    dropout = config.attention_probs_dropout_prob, _rng(encoder), 0, rows

    def call(longest: int, shorter: OpCall | None = None) -> OpCall:
        positions = max(config.max_position_embeddings, longest)
        batch = starts, longest, config.num_attention_heads
        arguments = matrix, matrix, matrix, *batch, *dropout, positions
        return OpCall(_OPS["attention"], arguments, shorter=shorter)

    return call(max_length, call(MAX_LENGTH) if max_length > MAX_LENGTH else None)


def _layernorm(encoder: MiniBert, layer: BertLayer, dtype: torch.dtype) -> OpCall:
    output, hidden = layer.attention.output, encoder.config.hidden_size
    norm, residual = output.LayerNorm, encoder.embeddings.word_embeddings.weight.dtype
    return OpCall.named(
        "dropout_add_layernorm", _rows(encoder, hidden, dtype), output.dense.bias,
        _rows(encoder, hidden, residual), norm.weight, norm.bias, norm.eps,
        *_hidden_dropout(encoder),
    )  # fmt: skip


def _gelu(encoder: MiniBert, layer: BertLayer, dtype: torch.dtype) -> OpCall:
    bias = layer.intermediate.dense.bias
    return OpCall.named("bias_gelu", _rows(encoder, bias.shape[0], dtype), bias)


def _rows(encoder: MiniBert, width: int, dtype: torch.dtype) -> torch.Tensor:
    """[0, width] where the encoder is."""
    return encoder.embeddings.word_embeddings.weight.new_empty(0, width, dtype=dtype)


def _rng(encoder: MiniBert) -> torch.Tensor:
    return encoder.embeddings.word_embeddings.weight.new_zeros(2, dtype=torch.int64)


def _hidden_dropout(encoder: MiniBert) -> tuple:
    rng = _rng(encoder)
    return encoder.config.hidden_dropout_prob, rng, 0, rng.new_empty(0)
