"""What the ranks of a run send in one optimiser step, and when it is complete."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import NamedTuple

from benchmarks.harness.machine import PRECISIONS
from benchmarks.harness.round_cost import empty_model
from sbrrt_fast.model.packed.heads import HeadWeights
from sbrrt_fast.model.packed.weights import EncoderWeights, ModelGradients
from sbrrt_fast.training.step.gradient_sums import BUCKET_BYTES

SUM_BYTES = 4  # of an element on its way: bfloat16 is summed in float32
TERM_BYTES = 8 * 4  # of a task: loss, smart, bregman and total, in float64


class Message(NamedTuple):
    """A sum over all ranks.

    Attributes:
        ready: the share of the backward's time after which it is complete.
    """

    name: str
    num_bytes: int
    ready: float


@cache
def gradients_of(model: str, precision: str) -> ModelGradients:
    """Of a model of ``MODELS``, heads included, without values."""
    empty = empty_model(model)
    weights = EncoderWeights(empty.encoder, PRECISIONS[precision])
    return ModelGradients(empty.encoder, weights, len(HeadWeights(empty).flat))


def buckets(num_layers: int, layer_bytes: int, bucket_bytes: float) -> list[range]:
    """Layers by their place in the backward, the last layer's first; a bucket ends with the layer
    that fills it."""
    each = max(1, ceil(bucket_bytes / layer_bytes))
    return [range(i, min(i + each, num_layers)) for i in range(0, num_layers, each)]


def messages(
    gradients: ModelGradients,
    num_word_rows: int,
    num_tasks: int = 1,
    bucket_bytes: float = BUCKET_BYTES,
    sum_bytes: int = SUM_BYTES,
) -> list[Message]:
    """Of one step, in the order in which they are sent.

    Matrices go by buckets while the backward goes on; everything else is complete at its end.

    Args:
        bucket_bytes: of gradients. sum_bytes: of an element of the matrices' in a message.
    """
    num_layers, width = gradients.matrices.shape
    layers = buckets(num_layers, gradients.matrices[0].nbytes, bucket_bytes)
    sent = [Message("matrices", sum_bytes * width * len(b), b.stop / num_layers) for b in layers]
    word_bytes = num_word_rows * gradients.layers[0].norm1.nbytes  # rows of H in float32
    sent += [Message("vectors", gradients.flat.nbytes, 1.0), Message("words", word_bytes, 1.0)]
    return [*sent, Message("terms", num_tasks * TERM_BYTES, 1.0)]
