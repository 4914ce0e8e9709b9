"""Checkpoints of pre-training: BERT folders with the heads in them, in transformers' names.

``sbrrt-fast train --backbone``, sentence-transformers and transformers' BertModel take the encoder
of such a folder, AutoModelForMaskedLM and BertForPreTraining its heads too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.files import write_json
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.fit import check_fit
from sbrrt_fast.model.hub import read_max_length, write_description
from sbrrt_fast.model.plain import plain_tensors
from sbrrt_fast.model.tensors import (
    WEIGHTS,
    TensorReader,
    encoder_name,
    weight_files,
    write_tensors,
)
from sbrrt_fast.pretraining.config import PretrainConfig
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.training.finite import check_loaded

Log = Callable[[str], object]
_OF_HEADS = {  # prefixes of one head's tensors, and what the head is called
    "predictions.": "masked-word head",
    "seq_relationship.": "next-sentence head",
    "pooler.": "pooler",
}


def load_checkpoint(config: PretrainConfig, log: Log = print) -> tuple[PretrainingModel, Tokenizer]:
    """The backbone with its heads, or fresh ones where it has none, on the CPU.

    ``log`` takes a line on what is used of the checkpoint and what is fresh.

    Raises:
        WeightsError: the backbone or a head of it cannot be used, or it is not BERT.
    """
    encoder = MiniBert.from_pretrained(config.backbone)
    if (family := encoder.config.model_type) != BertConfig.model_type:
        raise WeightsError(
            f"{encoder.source}: model_type is '{family}', and pre-training takes BERT alone, whose "
            "heads it has; choose a BERT checkpoint such as bert-base-uncased or minilm"
        )
    tokenizer = load_tokenizer(encoder.source)
    check_fit(tokenizer, encoder.config, {}, encoder.source)
    model = PretrainingModel(encoder, config.next_sentence, config.seed)
    stored = read_heads(encoder.source, model)
    model.cls.load_state_dict(stored, strict=False)
    model.is_fresh = not _is_stored("predictions.", stored)
    advice = "the checkpoint is damaged: download or convert it again, or use another backbone"
    check_loaded(model.state_dict(), encoder.source, advice)
    model.set_dropout(config.hidden_dropout, config.attention_dropout)
    own = {name: _is_stored(prefix, stored) for prefix, name in _present(model).items()}
    heads = ", ".join(f"{name} {'taken' if taken else 'fresh'}" for name, taken in own.items())
    log(f"backbone {config.backbone}: {encoder.origin.summary}; {heads}")
    return model, tokenizer


def read_heads(folder: Path, model: PretrainingModel) -> dict[str, Tensor]:
    """The tensors of ``model.cls`` that a checkpoint's folder has, by name; all or none of a head.

    Raises:
        WeightsError: one of a head's is missing, or has another shape.
    """
    shapes = {name: list(x.shape) for name, x in model.cls.state_dict().items()}
    reader = TensorReader(shapes, lambda stored: _name_of(stored, shapes))
    for path in weight_files(folder):
        reader.read(path)
    lacking = reader.missing()
    for prefix in _present(model):
        names = {name for name in shapes if name.startswith(prefix)}
        if names <= set(lacking):  # there is no such head
            for name in names:
                del reader.shapes[name]
    advice = "use a checkpoint with a whole head, or one without"
    return reader.finish(f"{folder}: the heads do not fit config.json", advice)


def write_checkpoint(model: PretrainingModel, folder: Path, tokenizer: Tokenizer) -> None:
    """Writes a model into an empty folder; pooling and longest text are those of its source."""
    encoder = model.encoder
    write_description(encoder, folder, tokenizer, read_max_length(encoder.source))
    kind = "BertForMaskedLM" if model.cls.seq_relationship is None else "BertForPreTraining"
    write_json(folder / "config.json", {**encoder.config.to_dict(), "architectures": [kind]})
    write_tensors(checkpoint_tensors(model), folder / WEIGHTS, {"format": "pt"})


def checkpoint_tensors(model: PretrainingModel) -> dict[str, Tensor]:
    """All weights by transformers' names; the decoder's matrix is the word table."""
    tensors = {f"bert.{name}": x for name, x in plain_tensors(model.encoder).items()}
    for name, x in model.cls.state_dict().items():
        tensors[f"bert.{name}" if name.startswith("pooler.") else f"cls.{name}"] = x
    return tensors


def _name_of(stored: str, shapes: Mapping[str, list[int]]) -> str | None:
    """The name below ``cls`` of a stored tensor; None of the others."""
    if (name := encoder_name(stored)) is not None:
        return name if name in shapes else None
    stored = stored.replace("LayerNorm.gamma", "LayerNorm.weight")
    stored = stored.replace("LayerNorm.beta", "LayerNorm.bias")
    _, _, name = stored.rpartition("cls.")
    return name if name in shapes else None


def _present(model: PretrainingModel) -> dict[str, str]:
    """The heads that a model has, by the prefix of their tensors' names."""
    names = list(model.cls.state_dict())
    return {p: head for p, head in _OF_HEADS.items() if any(n.startswith(p) for n in names)}


def _is_stored(prefix: str, stored: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(prefix) for name in stored)
