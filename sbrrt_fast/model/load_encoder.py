"""The encoder of a backbone: ``MiniBert`` where its layers are BERT's, else transformers' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sbrrt_fast.json_file import read_json
from sbrrt_fast.model.backbone import resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.families import why_not_bert
from sbrrt_fast.model.modules import read_modules
from sbrrt_fast.model.transformers_encoder import TransformersEncoder
from sbrrt_fast.model.transformers_loading import read_encoder

Encoder = MiniBert | TransformersEncoder


def load_encoder(name: str, pooling: str = "checkpoint", **options: Any) -> Encoder:
    """``encoder_from_folder`` of a backbone's name; see ``resolve_backbone``."""
    encoder = encoder_from_folder(resolve_backbone(name), pooling, **options)
    encoder.name_or_path = name
    return encoder


def encoder_from_folder(
    directory: str | Path,
    pooling: str = "checkpoint",
    *,
    hidden_dropout: float | None = None,
    attention_dropout: float | None = None,
) -> Encoder:
    """The encoder of a checkpoint, in fp32 on the CPU, in ``eval()``.

    Args:
        pooling: see ``MiniBert.from_folder``.
        hidden_dropout, attention_dropout: probabilities; the checkpoint's if None.

    Raises:
        WeightsError: see ``MiniBert.from_folder`` and ``transformers_loading.read_encoder``.
        ConfigError: it has no such dropout.
    """
    modules = read_modules(directory, pooling)
    config = modules.encoder / "config.json"
    if config.is_file() and why_not_bert(read_json(config)) is not None:
        return read_encoder(modules, hidden_dropout, attention_dropout)
    encoder = MiniBert.from_folder(directory, pooling)
    chosen = {
        "hidden_dropout_prob": hidden_dropout,
        "attention_probs_dropout_prob": attention_dropout,
    }
    values = {name: p for name, p in chosen.items() if p is not None}
    encoder.set_config(replace(encoder.config, **values))
    return encoder
