"""Rounds to be timed: their batches, and the model that all variants begin with.

There are a few rounds, which are timed again and again. Their batches are in the host's memory, as
a data loader leaves them: what they cost on their way to the device belongs to a round. They have
the lengths of the real task data and random words. With DATA=DIR in the environment they are real
ones, tokenised for BACKBONE, a folder or MiniLM, and the model of BACKBONE's shape has its weights.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from benchmarks.harness.benchmark import Absent
from benchmarks.harness.lengths import TASKS, drawn
from benchmarks.harness.settings import NUM_ROUNDS, Settings
from benchmarks.harness.shapes import MODELS, SEQUENCES_PER_EXAMPLE, Case, token_batch
from sbrrt_fast.config import BregmanConfig, OptimizerConfig, RoundConfig, RunConfig, SmartConfig
from sbrrt_fast.data.assemble import assemble, labels_of
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.model.backbone import read_config, resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.build import build_step, load_splits
from sbrrt_fast.training.round_robin import Batches, RoundRobin
from sbrrt_fast.training.step.captured_step import CAPTURE_FAILED, SIGHTS, CapturedStep
from sbrrt_fast.training.step.group import TaskBatch, tokens_by_task
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.step import Step

__all__ = [  # the step's own names too, which cases and peers import from here
    "CAPTURE_FAILED", "RUN_ROUNDS", "SBRRT", "SIGHTS", "CapturedStep", "Rounds", "Step",
    "TaskBatch", "backbone", "build_model", "build_ours", "data_dir", "is_shape_of", "real_rounds",
    "sbrrt", "step_and_rounds", "training_parts",
]  # fmt: skip

RUN_ROUNDS = 1000  # of the run that the timed rounds are the first of
SBRRT = RunConfig(  # configs/sbrrt.yaml, which needs libraries to be read, with dropout
    recipe="sbrrt",
    precision="bf16",
    smart=SmartConfig(weight=1.0, preset="adversarial"),
    bregman=BregmanConfig(weight=0.8, beta=0.95),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    round=RoundConfig(epoch_task="sts"),
)


def sbrrt(update: str = "per_task", precision: str = "bf16") -> RunConfig:
    """SBRRT with one optimiser step per task (``per_task``) or per round (``joint``)."""
    return replace(SBRRT, precision=precision, round=replace(SBRRT.round, update=update))


class Rounds:
    """The rounds of a case: of ``round`` (8 examples a task), ``round-N``, or ``tokens-L``, whose
    sequences all have L tokens, of 512 at most, and 2560 in all."""

    def __init__(self, settings: Settings, case: Case):
        self.settings, self.case = settings, case
        self._made: list[list[TaskBatch]] = []

    def __getitem__(self, index: int) -> list[TaskBatch]:
        index %= NUM_ROUNDS
        while len(self._made) <= index:
            self._made.append(next(self._real) if data_dir() else self._random())
        return self._made[index]

    @cached_property
    def tokens_by_task(self) -> dict[str, float]:
        """Mean tokens of a round by task."""
        counts = tokens_by_task(batch for i in range(NUM_ROUNDS) for batch in self[i])
        return {task: count / NUM_ROUNDS for task, count in counts.items()}

    @cached_property
    def num_tokens(self) -> int:
        """The mean over the rounds."""
        tokens = [batch.tokens.num_tokens for i in range(NUM_ROUNDS) for batch in self[i]]
        return round(sum(tokens) / NUM_ROUNDS)

    @classmethod
    def of(cls, settings: Settings, case: Case) -> Rounds:
        """The same object for all variants of a case: rounds and weights are made once."""
        return _kept(settings, case, data_dir(), backbone())

    def encoder(self) -> MiniBert:
        """Fresh, with the same weights each time; BACKBONE's on real data, where they fit."""
        return copy.deepcopy(self._encoder)

    @cached_property
    def _encoder(self) -> MiniBert:
        if data_dir() and is_shape_of(self.case.config, resolve_backbone(backbone())):
            return MiniBert.from_folder(resolve_backbone(backbone()), pooling="mean")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MiniBert(MODELS[self.case.model], pooling="mean")

    def _random(self) -> list[TaskBatch]:
        generator = torch.Generator().manual_seed(len(self._made))
        row, batches = 0, []
        for name in TASKS:
            lengths = self._lengths(name, generator)
            tokens = token_batch(lengths, self.case.config.vocab_size, generator, row)
            row += tokens.num_sequences
            labels = self._labels(SBRRT.tasks[name], tokens, generator)
            batches.append(TaskBatch(name, tokens, labels))
        return batches

    def _lengths(self, name: str, generator: torch.Generator) -> list[int]:
        kind, _, number = self.case.batch.partition("-")
        each = SEQUENCES_PER_EXAMPLE[name]
        if kind == "tokens":
            return [int(number)] * (each * (512 // int(number)))
        return drawn(name, int(number or 8) * each, generator)

    def _labels(self, task: TaskConfig, tokens: TokenBatch, generator: torch.Generator):
        count = tokens.num_sequences // task.sequences_per_example
        top = {"classes": task.num_classes, "binary": 2}.get(task.head)
        if top:
            return torch.randint(top, (count,), generator=generator).float()
        return task.label_range[1] * torch.rand(count, generator=generator)

    @cached_property
    def _tasks(self) -> dict:
        config, shape = replace(SBRRT, data_dir=data_dir()), self.case.config
        tokenizer = load_tokenizer(resolve_backbone(backbone()))
        if (count := tokenizer.get_vocab_size()) > shape.vocab_size:
            raise Absent(
                f"BACKBONE {backbone()}: its tokenizer has {count} words, {self.case.model} here"
                f" has {shape.vocab_size}"
            )
        longest = shape.max_position_embeddings
        return load_splits(config, tokenizer, "train", longest, lambda line: None)

    @cached_property
    def _real(self) -> Iterator[list[TaskBatch]]:
        number = int(self.case.batch.partition("-")[2] or 8)
        return real_rounds(self._tasks, RoundConfig(batch_size=number), 0, RUN_ROUNDS)


@lru_cache(maxsize=16)  # the sizes of a sweep, or a case and its small one that is checked
def _kept(settings: Settings, case: Case, data: Path | None, backbone: str) -> Rounds:
    return Rounds(settings, case)


def real_rounds(
    tasks: dict[str, TokenizedTask], config: RoundConfig, seed: int, num_rounds: int
) -> Iterator[list[TaskBatch]]:
    """The batches of a run's rounds, in its order, in the host's memory."""
    sizes = {name: task.num_examples for name, task in tasks.items()}
    order = RoundRobin(sizes, config, seed, num_rounds)
    cursor = order.start()
    for _ in range(num_rounds):
        examples, cursor = order.next_round(cursor)
        yield _assembled(tasks, examples)


def _assembled(tasks: dict[str, TokenizedTask], examples: Batches) -> list[TaskBatch]:
    """A round's batches, with rows numbered through the round."""
    row, batches = 0, []
    for name, indices in examples:
        tokens = assemble(tasks[name], indices, row)
        row += tokens.num_sequences
        batches.append(TaskBatch(name, tokens, labels_of(tasks[name], indices)))
    return batches


def data_dir() -> Path | None:
    """The folder of the task files, from DATA in the environment."""
    folder = os.environ.get("DATA", "")
    return Path(folder) if folder else None


def backbone() -> str:
    """From BACKBONE in the environment; MiniLM where it is not there."""
    return os.environ.get("BACKBONE") or "minilm"


def is_shape_of(config: BertConfig, folder: Path) -> bool:
    """Whether the folder's weights fit a model of this shape; dropout may differ."""
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size",
    )  # fmt: skip
    other = read_config(folder)
    return all(getattr(other, name) == getattr(config, name) for name in names)


def build_model(
    encoder: MiniBert, config: RunConfig, device: torch.device, p: float
) -> MultiTaskModel:
    """With heads, dropout p everywhere."""
    changed = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
    encoder.set_config(replace(encoder.config, **changed))
    return MultiTaskModel(encoder, config.tasks, config.model.pair_features, config.seed).to(device)


def build_ours(
    encoder: MiniBert,
    config: RunConfig,
    device: torch.device,
    p: float = 0.1,
    num_rounds: int = RUN_ROUNDS,
    log: Callable[[str], object] = print,
) -> Step | CapturedStep:
    """The step of a run, its model and optimiser; ``log`` hears why it is a slower one."""
    parts = training_parts(build_model(encoder, config, device, p), config)
    return build_step(*parts, config, num_rounds, log)


def training_parts(
    model: MultiTaskModel, config: RunConfig
) -> tuple[MultiTaskModel, Teacher | None, torch.optim.Optimizer]:
    """What every kind of step is made of: the model, its teacher and its optimiser."""
    teacher = Teacher(model, config.bregman) if config.bregman.weight > 0 else None
    return model, teacher, build_optimizer(model.named_parameters(), config.optimizer)


def step_and_rounds(
    settings: Settings, case: Case, config: RunConfig, log: Callable[[str], object] = print
) -> tuple[Step | CapturedStep, Rounds]:
    """The step of a run on the case's rounds, and the rounds."""
    rounds = Rounds(settings, case)
    return build_ours(rounds.encoder(), config, settings.device, log=log), rounds
