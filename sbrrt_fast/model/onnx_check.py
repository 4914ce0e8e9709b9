"""ONNX graphs held against the model that they were made of, in onnxruntime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from sbrrt_fast.errors import OutputError
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.onnx_graphs import (
    ENCODER,
    HEADS,
    HIDDEN,
    INPUTS,
    VECTORS,
    EncoderGraph,
    HeadGraph,
)

TEXTS = (
    "A quiet, funny film.",
    "No.",
    "How do I learn to play the violin without a teacher?",
    "Prices rose by 3.5% in May; nobody had expected that.",
    "naïve café, déjà vu",
    "one very long text, cut where the model ends " * 100,
)
_TOLERANCE = 1e-4  # of the largest output: float32 sums in another order stay far below


def largest_difference(
    model: MultiTaskModel, folder: Path, tokenizer: Tokenizer, max_length: int
) -> float:
    """The largest difference between the graphs' outputs and the model's on ``TEXTS``, of every
    task's head and of the encoder, relative to the largest output where that is above 1.

    Args:
        folder: where ``write_graphs`` wrote. max_length: tokens after which texts are cut.

    Raises:
        OutputError: an output is further off than float32 sums in another order are.
    """
    model.encoder.set_backend("auto")
    encoder = _session(folder / ENCODER)
    differences = {}
    for name in model.tasks:
        graph = HeadGraph(model, name)
        tokens = tokenize(tokenizer, _inputs(model.tasks[name].encoding), max_length)
        vectors = encoder.run([VECTORS], tokens)[0]
        head = _session(folder / HEADS / f"{name}.onnx")
        given = dict(zip(graph.inputs, split_pairs(vectors, graph.is_siamese), strict=True))
        got = [*encoder.run([HIDDEN, VECTORS], tokens), *head.run(list(graph.outputs), given)]
        expected = _expected(model, graph, tokens)
        names = (HIDDEN, VECTORS, *graph.outputs)
        is_real = tokens["attention_mask"][..., None]  # nothing reads hidden states of padding
        got[0], expected[0] = got[0] * is_real, expected[0] * is_real
        for output, a, b in zip(names, got, expected, strict=True):
            differences[f"{name}: {output}"] = _difference(a, b)
    worst = max(differences, key=differences.get)
    if differences[worst] > _TOLERANCE:
        raise OutputError(
            f"the ONNX outputs are not the model's ({worst} differs by "
            f"{differences[worst]:.1e}), so nothing was written; try other versions of torch, "
            "onnxscript and onnxruntime"
        )
    return differences[worst]


def tokenize(tokenizer: Tokenizer, inputs: Sequence, max_length: int) -> dict[str, np.ndarray]:
    """The encoder's inputs, int64 [num_sequences, length], of texts or pairs of texts."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()
    rows = [(t.ids, t.attention_mask, t.type_ids) for t in tokenizer.encode_batch(inputs)]
    arrays = np.array(rows, dtype=np.int64).transpose(1, 0, 2)
    return dict(zip(INPUTS, map(np.ascontiguousarray, arrays), strict=True))


def split_pairs(vectors: np.ndarray, is_siamese: bool) -> tuple[np.ndarray, ...]:
    """A head's inputs from sentence vectors [num_sequences, hidden], pairs one after the other."""
    return (vectors[0::2], vectors[1::2]) if is_siamese else (vectors,)


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _inputs(encoding: str) -> list:
    """``TEXTS`` for a task: each, or pairs of them."""
    return list(itertools.pairwise(TEXTS)) if encoding == "cross" else list(TEXTS)


@torch.no_grad()
def _expected(
    model: MultiTaskModel, graph: HeadGraph, tokens: dict[str, np.ndarray]
) -> list[np.ndarray]:
    tensors = [torch.from_numpy(tokens[name]) for name in INPUTS]
    hidden, vectors = EncoderGraph(model.encoder)(*tensors)
    parts = (vectors[0::2], vectors[1::2]) if graph.is_siamese else (vectors,)
    outputs = graph(*parts)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [x.numpy() for x in (hidden, vectors, *outputs)]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
