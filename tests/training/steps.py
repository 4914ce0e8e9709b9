"""Rounds and steps over a small random model that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sbrrt_fast.config import BregmanConfig, OptimizerConfig, RoundConfig, RunConfig, SmartConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.checkpoint import optimizer_tensors
from sbrrt_fast.training.cost.profile import NoClock
from sbrrt_fast.training.step.autograd_pass import AutogradModel
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.round_pass import go_forward
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.step.written_out_pass import WrittenOut
from tests.model.models import TASKS, random_batch, random_model
from tests.training.recorded_graph import RecordedGraph


def autograd(*parts) -> Step:
    """A step under autograd: the reference."""
    return Step(AutogradModel, *parts)


def written_out(*parts) -> Step:
    """A step with written-out passes."""
    return Step(WrittenOut, *parts)


def captured(*parts, log=print, graph: Callable = RecordedGraph) -> CapturedStep:
    """A step with captured work."""
    return CapturedStep(written_out(*parts), log, graph)


def losses(step: Step, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
    """A batch's loss terms under autograd, with their graph."""
    (group,) = step.passes.groups([batch])
    this = step.passes.begin(group, rng)
    go_forward(this, step.ascent, step.teacher is not None, NoClock())
    return this.losses()


def differentiated(step: Step, batch: TaskBatch, rng: Tensor) -> dict[str, Tensor]:
    """A batch's loss terms, without an update."""
    step.passes.refresh()
    terms = step.differentiate([step.passes.groups([batch])], rng)
    step.passes.forget()
    return {name.removeprefix(f"{batch.name}/"): value for name, value in terms.items()}


def is_written_out(step: Step | CapturedStep) -> bool:
    return isinstance(step.passes, WrittenOut)


LENGTHS = {"sst": [6, 9, 3], "para": [5, 7, 12, 4], "sts": [8, 8, 3, 11]}
LABELS = {"sst": [0.0, 4.0, 2.0], "para": [1.0, 0.0], "sts": [4.5, 0.5]}
SBRRT = RunConfig(
    tasks=TASKS,
    smart=SmartConfig(weight=1.0, radius=0.1),
    bregman=BregmanConfig(weight=0.8),
    optimizer=OptimizerConfig(warmup=0.0),
    round=RoundConfig(batch_size=2),
)
JOINT = replace(SBRRT, round=replace(SBRRT.round, update="joint"))
PLAIN = replace(SBRRT, smart=SmartConfig(), bregman=BregmanConfig())


def smart(**fields) -> RunConfig:
    return replace(SBRRT, smart=replace(SBRRT.smart, **fields))


def learnt(config: RunConfig) -> RunConfig:
    """With task weights by uncertainty, and one that is fixed beside them."""
    tasks = config.tasks | {"sts": replace(config.tasks["sts"], weight=0.25)}
    return replace(config, tasks=tasks, round=replace(config.round, task_weights="uncertainty"))


def without_dropout(config: RunConfig, *names: str) -> RunConfig:
    """These tasks are trained without it."""
    tasks = {name: replace(config.tasks[name], dropout=False) for name in names}
    return replace(config, tasks=config.tasks | tasks)


def with_optimizer(config: RunConfig, **fields) -> RunConfig:
    return replace(config, optimizer=replace(config.optimizer, **fields))


CONFIGS = {
    "per task": SBRRT,
    "joint": JOINT,
    # By subtraction, R_s at this radius has two digits in float32 on either path.
    "paper": smart(preset="paper", radius=None, branch="linear"),
    "mtdnn": smart(preset="mtdnn", radius=None),
    "three steps": smart(num_steps=3, step_size=0.05, projection="ball"),
    "finite": smart(gradient="finite", sigma=1e-2),
    "masks of their own": smart(shared_dropout=False),
    "joint, masks of their own": replace(JOINT, smart=replace(JOINT.smart, shared_dropout=False)),
    "special tokens too": smart(perturb_special=True, norm="2", level="sequence"),
    "no teacher": replace(SBRRT, bregman=BregmanConfig()),
    "no SMART": replace(SBRRT, smart=SmartConfig()),
    "neither": PLAIN,
    "weighted": replace(SBRRT, tasks=TASKS | {"sts": replace(TASKS["sts"], weight=0.25)}),
    "weighted classes": replace(
        SBRRT,
        tasks=TASKS
        | {
            "sst": replace(TASKS["sst"], class_weights=(3.0, 1.0, 0.5, 2.0, 0.25)),
            "para": replace(TASKS["para"], class_weights=(0.5, 2.0), label_smoothing=0.2),
        },
    ),
    "smoothed": replace(JOINT, tasks=TASKS | {"sst": replace(TASKS["sst"], label_smoothing=0.1)}),
    "dropout in two tasks": without_dropout(SBRRT, "para"),
    "joint, dropout in two tasks": without_dropout(JOINT, "para"),
    "joint, dropout in one task": without_dropout(learnt(JOINT), "sst", "sts"),
    "surgery": replace(JOINT, optimizer=OptimizerConfig(warmup=0.0, surgery="pcgrad")),
    "uncertainty": learnt(SBRRT),
    "uncertainty, joint": learnt(JOINT),
    "frozen layer": with_optimizer(JOINT, frozen_layers=1),
    "frozen layer, no SMART": with_optimizer(PLAIN, frozen_layers=1),
    "unfreezing": with_optimizer(SBRRT, unfreeze_every=2),
    "joint, unfreezing": with_optimizer(JOINT, unfreeze_every=1),
    "layer decay": with_optimizer(JOINT, layer_decay=0.5),
    "clipped": replace(SBRRT, optimizer=OptimizerConfig(warmup=0.0, clip_norm=1e-3)),
}


def make_round(
    seed: int = 0,
    lengths: Mapping[str, list[int]] = LENGTHS,
    labels: Mapping[str, list[float]] = LABELS,
) -> list[TaskBatch]:
    """Random tokens of these lengths, rows numbered through the round."""
    torch.manual_seed(seed)
    row, batches = 0, []
    for name, of_task in lengths.items():
        batches.append(TaskBatch(name, random_batch(of_task, row), torch.tensor(labels[name])))
        row += len(of_task)
    return batches


def build(
    kind, config=SBRRT, dtype=torch.float32, pooling="mean", frozen=False, device="cpu"
) -> Step:
    torch.manual_seed(0)
    model = random_model(dtype, pooling, config.tasks).to(device)
    if frozen:
        model.freeze_encoder()
    elif config.optimizer.frozen_layers:
        model.freeze_layers(config.optimizer.frozen_layers)
    return step_over(kind, model, config)


def step_over(kind: Callable[..., Step], model: MultiTaskModel, config) -> Step:
    """A step of this kind for a run of 10 rounds."""
    if config.round.task_weights == "uncertainty":
        model.learn_weights()
    teacher = Teacher(model, config.bregman) if config.bregman.weight > 0 else None
    optimizer = build_optimizer(model.named_parameters(), config.optimizer)
    return kind(model, teacher, optimizer, config, 10)


def state(step: Step) -> dict[str, Tensor]:
    """Weights, the teacher's and the optimiser's tensors."""
    tensors = {f"model.{name}": x for name, x in step.model.state_dict().items()}
    if step.teacher is not None:
        tensors |= {f"teacher.{name}": x for name, x in step.teacher.state_dict().items()}
    return tensors | optimizer_tensors(step.optimizer, list(step.model.named_parameters()))
