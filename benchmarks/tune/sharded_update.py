"""Would a sharded update pay? The same round, with each rank updating its part of the matrices.

Sharded, the matrices' gradients are reduce-scattered in the same buckets; the norm takes one more
message of a number; a rank updates its part of weights, moments and teacher, and two all-gathers
give every rank the bf16 copies of the weights and of the teacher's average, whose forwards need all
of them. Everything else is updated by all, as it is without: the step reads the word table in
float32, and to gather its rows costs more than to compute them.

The next step needs the copies. First nothing hides the gathers; then they run beside its clean and
teacher passes, which wait for the first bucket alone.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.harness.round_cost import num_parameters
from benchmarks.tune.scaling_messages import buckets, gradients_of
from benchmarks.tune.scaling_model import (
    PRECISION,
    Setup,
    messages_of,
    predict_step,
    wait,
)

COPY_BYTES, NORM_BYTES = 2, 4
STATE_BYTES = 16  # of weight, average and two moments, in float32


class Sharded(NamedTuple):
    """Seconds of a round's updates and of its messages that nothing hides.

    Attributes:
        update, exposed: as they are. sharded_update, sharded_exposed: sharded, before the gathers.
        gather: all of both gathers. least_gather: of it what is left where passes run beside it.
        saved_bytes: of memory, on each GPU.
    """

    update: float
    exposed: float
    sharded_update: float
    sharded_exposed: float
    gather: float
    least_gather: float
    saved_bytes: float

    @property
    def gain(self) -> float:
        """Seconds that it saves where nothing hides the gathers; negative where it costs."""
        return self._before_gathers - self.gather

    @property
    def most_gain(self) -> float:
        return self._before_gathers - self.least_gather

    @property
    def _before_gathers(self) -> float:
        return self.update + self.exposed - self.sharded_update - self.sharded_exposed


def sharded(setup: Setup, num_gpus: int) -> Sharded:
    """Of a round."""
    parts = [_step(setup, tasks, num_gpus) for tasks in setup.groups]
    *seconds, _ = (sum(values) for values in zip(*parts, strict=True))
    return Sharded(*seconds, parts[0].saved_bytes)


def _step(setup: Setup, tasks: tuple[str, ...], num_gpus: int) -> Sharded:
    links, step = setup.links, predict_step(setup, tasks, num_gpus)
    num_matrices = gradients_of(setup.model, PRECISION).matrices.numel()
    left_out = num_matrices * (1 - 1 / num_gpus)
    update = step.stages["optimiser"]
    gather, first = _gathers(setup, num_gpus)
    beside = step.stages["clean"] + step.stages["teacher"]
    return Sharded(
        update,
        step.exposed,
        update * (1 - left_out / num_parameters(setup.model)),
        _exposed(setup, tasks, num_gpus, step.stages["backward"])
        + links.all_reduce(NORM_BYTES, num_gpus),  # the norm
        gather,
        max(first, gather - beside),
        STATE_BYTES * left_out,
    )


def _exposed(setup: Setup, tasks: tuple[str, ...], num_gpus: int, backward: float) -> float:
    """Of a step's sums, those of the matrices being reduce-scatters."""
    sent, links = messages_of(setup, tasks, num_gpus), setup.links
    halves = [m for m in sent if m.name == "matrices"]
    waited = wait(halves, backward, lambda n: links.half(n, num_gpus))
    others = sent[len(halves) :]
    return waited + sum(links.all_reduce(m.num_bytes, num_gpus) for m in others)


def _gathers(setup: Setup, num_gpus: int) -> tuple[float, float]:
    """Seconds of both gathers, and of the first bucket of the first."""
    matrices = gradients_of(setup.model, PRECISION).matrices
    layer_bytes = COPY_BYTES * matrices.shape[1]
    parts = [
        setup.links.half(len(layers) * layer_bytes, num_gpus)
        for layers in buckets(len(matrices), layer_bytes, setup.bucket_bytes)
    ]
    return 2 * sum(parts), parts[0]
