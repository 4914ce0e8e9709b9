"""A trained model as ONNX: a graph of the encoder, and a small one per task's head.

``model.onnx`` has the inputs that transformers' tokenizers give, so that several tasks can share
one pass through the encoder; a head takes sentence vectors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.files import writing
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.heads import class_logits
from sbrrt_fast.model.multitask import MultiTaskModel

ENCODER, HEADS = "model.onnx", "heads"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HIDDEN, VECTORS = "last_hidden_state", "sentence_embedding"

_OPSET = 20  # the first with Gelu
_LARGEST = 2**31 - 2**24  # bytes of weights within one file: protobuf's limit is 2 GiB


class EncoderGraph(nn.Module):
    """Hidden states and sentence vectors of a padded batch."""

    def __init__(self, encoder: MiniBert):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All int64 [num_sequences, length], padding last -> float32 [num_sequences, length,
        hidden] and [num_sequences, hidden]."""
        batch = TokenBatch.from_padded(input_ids, attention_mask, token_type_ids)
        hidden = self.encoder.encode(self.encoder.embed(batch), batch)
        return batch.pad(hidden), self.encoder.pool(hidden, batch)


class HeadGraph(nn.Module):
    """A task's outputs from sentence vectors.

    ``inputs`` are ``sentence_embedding``, or for a siamese pair ``sentence_embedding_a`` and
    ``sentence_embedding_b``, each float32 [num_examples, hidden]. ``outputs`` are ``logits``, as
    the head gives them, and ``probabilities`` float32 [num_examples, num_classes] (two for
    ``binary``); or ``value`` float32 [num_examples] in the unit of the labels.
    """

    def __init__(self, model: MultiTaskModel, name: str):
        super().__init__()
        self.task, self.head = model.tasks[name], model.heads[name]
        self.is_siamese = self.task.encoding == "siamese"
        self.inputs = (f"{VECTORS}_a", f"{VECTORS}_b") if self.is_siamese else (VECTORS,)
        self.outputs = ("value",) if self.task.is_regression else ("logits", "probabilities")

    def forward(self, *vectors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pooled = torch.stack(vectors, dim=1).flatten(0, 1) if self.is_siamese else vectors[0]
        outputs = self.head(pooled)
        if self.task.is_regression:
            return self.head.units.restore(outputs).to(torch.float32)
        return outputs, class_logits(self.task, outputs).softmax(dim=-1)


def write_graphs(model: MultiTaskModel, folder: Path) -> None:
    """Writes ``model.onnx`` and ``heads/<task>.onnx`` into a folder; the number of sequences and
    their length are open.

    Args:
        model: float32 on the CPU; its encoder's backend is ``reference`` afterwards.

    Raises:
        OutputError: a file cannot be written.
    """
    model.eval()
    model.encoder.set_backend("reference")
    _write_encoder(model.encoder, folder / ENCODER)
    (folder / HEADS).mkdir()
    for name in model.tasks:
        _write_head(HeadGraph(model, name).eval(), model.config.hidden_size, folder, name)


def _write_encoder(encoder: MiniBert, path: Path) -> None:
    shape = 2, min(3, encoder.config.max_position_embeddings)
    axes = {
        0: torch.export.Dim("num_sequences"),
        1: torch.export.Dim("length", max=encoder.config.max_position_embeddings),
    }
    # Tensors of their own: the exporter takes two inputs for one where they are one tensor.
    arguments = tuple(torch.ones(shape, dtype=torch.int64) for _ in INPUTS)
    graph = EncoderGraph(encoder).eval()
    _write(graph, arguments, (axes,) * 3, INPUTS, (HIDDEN, VECTORS), path)


def _write_head(graph: HeadGraph, width: int, folder: Path, name: str) -> None:
    vectors = tuple(torch.ones(2, width) for _ in graph.inputs)
    axes = tuple({0: torch.export.Dim("num_examples")} for _ in graph.inputs)
    path = folder / HEADS / f"{name}.onnx"
    _write(graph, vectors, (axes,), graph.inputs, graph.outputs, path)


def _write(graph: nn.Module, arguments: tuple, shapes: tuple, inputs, outputs, path: Path) -> None:
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            arguments,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        num_bytes = sum(p.nbytes for p in graph.parameters())
        _strip(program.model.graph)
        with writing(path):
            program.save(str(path), external_data=num_bytes > _LARGEST)


def _strip(graph: Any) -> None:
    """Removes what the exporter notes on every node: lines of source, with this machine's paths."""
    for node in graph:
        for key in [key for key in node.metadata_props if key.startswith("pkg.")]:
            del node.metadata_props[key]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on itself and on libraries that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
