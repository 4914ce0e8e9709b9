"""The least time of a round on several GPUs: work, messages, and what of them nothing hides.

A stage takes as long as its products and its layers' row ops at the GPU's ceilings, or as its
kernels at the least time of one, whichever is longer. A message starts when it is complete and the
one before it is through. Nothing else is modelled: no rank is late, and messages take nothing from
the kernels beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.cases.attention import Attention
from benchmarks.cases.gelu import BiasGelu
from benchmarks.cases.layernorm import LayerNorm
from benchmarks.harness.lengths import TASKS
from benchmarks.harness.machine import Machine
from benchmarks.harness.round_cost import num_parameters
from benchmarks.harness.rounds import Rounds, sbrrt
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import BACKWARD, FORWARD, MODELS, Case
from benchmarks.tune.kernel_count import count_round
from benchmarks.tune.scaling_links import Links
from benchmarks.tune.scaling_messages import SUM_BYTES, Message, gradients_of, messages
from benchmarks.tune.scaling_shares import Share, largest_share
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.training.cost.floor import round_cost
from sbrrt_fast.training.step.gradient_sums import BUCKET_BYTES

PRECISION = "bf16"
H200 = Machine({PRECISION: 790e12}, 4.3e12, 2e-6)  # docs/performance.md
LINKS = Links()
OPS_OF_A_LAYER = {Attention: 1, LayerNorm: 2, BiasGelu: 1}
Tokens = Mapping[str, int]  # by task


@dataclass(frozen=True)
class Setup:
    """What is trained, and on what.

    Attributes:
        update: ``per_task`` or ``joint``. num_examples: a task, in a round of one GPU.
        grows: whether every GPU adds that many (weak scaling), else all share them (strong).
        bucket_bytes, sum_bytes: see ``scaling_messages.messages``.
    """

    model: str
    update: str
    num_examples: int = 8
    grows: bool = False
    gpu: Machine = H200
    links: Links = LINKS
    bucket_bytes: float = BUCKET_BYTES
    sum_bytes: int = SUM_BYTES

    @property
    def shape(self) -> BertConfig:
        return MODELS[self.model]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The tasks of each optimiser step of a round."""
        return [TASKS] if self.update == "joint" else [(task,) for task in TASKS]


@dataclass(frozen=True)
class Prediction:
    """One round, or one step of it, on the rank with the most tokens.

    Attributes:
        stages: seconds of its own work by stage. exposed: seconds in which it waits for messages.
        num_bytes, num_messages: that a rank gives to be summed; 0 on one GPU.
    """

    stages: dict[str, float]
    exposed: float
    num_bytes: int
    num_messages: int

    @property
    def compute(self) -> float:
        return sum(self.stages.values())

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed

    def __add__(self, other: Prediction) -> Prediction:
        return Prediction(
            {name: x + other.stages[name] for name, x in self.stages.items()},
            self.exposed + other.exposed,
            self.num_bytes + other.num_bytes,
            self.num_messages + other.num_messages,
        )


def predict(setup: Setup, num_gpus: int) -> Prediction:
    """A round's."""
    first, *others = (predict_step(setup, tasks, num_gpus) for tasks in setup.groups)
    for step in others:
        first += step
    return first


def efficiency(setup: Setup, num_gpus: int) -> float:
    """Work per second and GPU, over that of one GPU; at most 1."""
    one, several = predict(setup, 1).seconds, predict(setup, num_gpus).seconds
    return one / several / (1 if setup.grows else num_gpus)


def predict_step(setup: Setup, tasks: tuple[str, ...], num_gpus: int) -> Prediction:
    """A step's on these tasks."""
    stages = stage_seconds(setup, share_of(setup, tasks, num_gpus).tokens)
    if num_gpus == 1:
        return Prediction(stages, 0.0, 0, 0)
    sent = messages_of(setup, tasks, num_gpus)
    exposed = wait(sent, stages["backward"], lambda n: setup.links.all_reduce(n, num_gpus))
    return Prediction(stages, exposed, sum(m.num_bytes for m in sent), len(sent))


def share_of(setup: Setup, tasks: tuple[str, ...], num_gpus: int) -> Share:
    """Of the rank with the most; a batch that grows is the same examples again and again."""
    repeats, positions = num_gpus if setup.grows else 1, setup.shape.max_position_embeddings
    return largest_share(tasks, setup.num_examples, repeats, num_gpus, positions)


def messages_of(setup: Setup, tasks: tuple[str, ...], num_gpus: int) -> list[Message]:
    """Of a step on a GPU: the words' gradient has as many rows as all ranks have tokens."""
    rows = min(num_gpus * share_of(setup, tasks, num_gpus).num_filled, setup.shape.vocab_size)
    gradients = gradients_of(setup.model, PRECISION)
    return messages(gradients, rows, len(tasks), setup.bucket_bytes, setup.sum_bytes)


def wait(sent: list[Message], backward: float, seconds_of: Callable[[int], float]) -> float:
    """Seconds from the end of the backward until the last message is through.

    Args:
        sent: in their order. backward: its seconds. seconds_of: a message of so many bytes.
    """
    free = 0.0
    for message in sent:
        free = max(free, message.ready * backward) + seconds_of(message.num_bytes)
    return max(free - backward, 0.0)


def stage_seconds(setup: Setup, tokens: Tokens) -> dict[str, float]:
    """Of one step on a rank's tokens, by stage."""
    config = sbrrt("joint", PRECISION)
    cost = round_cost(setup.shape, config, tokens, num_parameters(setup.model))
    seconds = cost.seconds(setup.gpu.ceilings(PRECISION))
    for stage, more in row_op_seconds(setup, tokens).items():
        seconds[stage] += more
    kernels = kernels_of_step(setup.model, setup.update)
    least = {stage: count * setup.gpu.launch for stage, count in kernels.items()}
    return {stage: max(seconds.get(stage, 0.0), least[stage]) for stage in least}


def row_op_seconds(setup: Setup, tokens: Tokens) -> dict[str, float]:
    """Of attention, LayerNorm and GELU, by stage; of the tangent as of a forward."""
    config, total = sbrrt(), sum(tokens.values())
    several = sum(n for name, n in tokens.items() if not config.tasks[name].has_one_output)
    forward, backward = (
        token_seconds(setup.model, part, setup.gpu) for part in (FORWARD, BACKWARD)
    )
    stages = dict.fromkeys(("adversarial", "teacher"), forward * total)
    stages["clean"] = forward * (total + several)
    return stages | {"ascent": backward * total, "backward": backward * (total + several)}


def token_seconds(model: str, part: str, gpu: Machine) -> float:
    """Of the row ops of all layers, forward or backward, per token."""
    case, ceilings = Case(model, "round", PRECISION, part), gpu.ceilings(PRECISION)
    layer = 0.0
    for op, count in OPS_OF_A_LAYER.items():
        cost = op(_CPU).cost(case)
        layer += count * max(cost.bytes / ceilings.bytes, cost.flops / ceilings.flops)
    return MODELS[model].num_hidden_layers * layer / case.num_tokens


_CPU = Settings(torch.device("cpu"), quick=True)


@cache
def kernels_of_step(model: str, update: str) -> dict[str, float]:
    """Of a captured round over its steps, by stage."""
    batches = Rounds(_CPU, Case(model, "round"))[0]
    count = count_round(MODELS[model], sbrrt(update, PRECISION), batches)
    return {stage: kernels / count.steps for stage, kernels in count.kernels.items()}
