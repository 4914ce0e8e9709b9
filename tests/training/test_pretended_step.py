"""The step's device code without a device: nothing waits or mixes, and the bits are the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.pretended_gpu import PretendedGpu, Refused
from sbrrt_fast.config import BregmanConfig, OptimizerConfig, RunConfig, SmartConfig
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops.gradient_norm import clipped_gradient_norm
from sbrrt_fast.ops.task_heads import heads_forward
from sbrrt_fast.smart.presets import PRESETS
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.round_pass import squared_size
from sbrrt_fast.training.step.step import Step
from tests.model.models import CONFIG
from tests.training import steps
from tests.training.steps import state, step_over, written_out

HEADS = {
    "classes": {"num_classes": 4},
    "binary": {},
    "cosine": {"label_range": (0.0, 5.0)},
    "regression": {"label_range": (0.0, 5.0)},
}
ENCODINGS = {"single": 1, "siamese": 2, "cross": 2}  # and how many texts an example has


def task(head: str, encoding: str, **fields) -> TaskConfig:
    columns = ("a", "b")[: ENCODINGS[encoding]]
    found = TaskConfig({}, columns, "label", head, encoding=encoding, **HEADS[head], **fields)
    validate_task(head, found)
    return found


TASKS = {
    f"{head}-{encoding}": task(head, encoding)
    for head, encoding in itertools.product(HEADS, ENCODINGS)
    if head != "cosine" or encoding == "siamese"
} | {
    "classes-weighted": task(
        "classes", "single", class_weights=(0.5, 2.0, 1.0, 3.0), label_smoothing=0.1
    ),
    "binary-weighted": task("binary", "cross", class_weights=(0.5, 2.0), label_smoothing=0.1),
}
FEW = {
    "one": task("classes", "single"),
    "two": task("binary", "siamese", weight=0.5),
    "three": task("cosine", "siamese"),
}
LABELS = {"classes": [3.0, 1.0], "binary": [1.0, 0.0], "cosine": [4.5, 0.5]}
LABELS["regression"] = LABELS["cosine"]


def make_round(tasks: dict[str, TaskConfig], index: int) -> list[TaskBatch]:
    lengths = {
        name: [4 + (index + i) % 3 for i in range(2 * one.sequences_per_example)]
        for name, one in tasks.items()
    }
    labels = {name: LABELS[one.head] for name, one in tasks.items()}
    return steps.make_round(index, lengths, labels)


def build(kind, config: RunConfig, device: str, pooling: str = "mean", frozen=False) -> Step:
    torch.manual_seed(0)
    model = MultiTaskModel(MiniBert(CONFIG, pooling), config.tasks, config.model.pair_features)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(std=0.08)
    model.to(device)
    if frozen:
        model.freeze_encoder()
    elif config.optimizer.frozen_layers:
        model.freeze_layers(config.optimizer.frozen_layers)
    return step_over(kind, model, config)


def graph_step(*arguments) -> CapturedStep:
    return steps.captured(*arguments, log=pytest.fail)


def outcome(step: Step, num_rounds: int) -> list[dict[str, torch.Tensor]]:
    """The rounds' terms, and what they left."""
    rounds = [make_round(step.config.tasks, i) for i in range(num_rounds)]
    terms = [step.round(found, i, report=i % 2 == 1) for i, found in enumerate(rounds)]
    return [*terms, state(step)]


def assert_same_without_waiting(kind, config: RunConfig, num_rounds: int, **kwargs) -> Step:
    expected = outcome(build(kind, config, "cpu", **kwargs), num_rounds)
    with PretendedGpu() as gpu:
        step = build(kind, config, "cuda", **kwargs)
        with gpu.no_waits():
            found = outcome(step, num_rounds)
        found = [{name: gpu.value(x) for name, x in part.items()} for part in found]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name
    return step


SBRRT = replace(steps.SBRRT, tasks=FEW)


def configuration(
    update: str, preset: str, gradient: str, teacher: bool, shared: bool, precision: str
) -> RunConfig:
    sigma = None if gradient == "tangent" else {"fp32": 0.01, "bf16": 1.0}[precision]
    smart = SmartConfig(
        weight=1.0, preset=preset, gradient=gradient, sigma=sigma, shared_dropout=shared
    )
    return replace(
        SBRRT,
        precision=precision,
        smart=smart,
        bregman=SBRRT.bregman if teacher else BregmanConfig(),
        round=replace(SBRRT.round, update=update),
    )


FACTORS = (
    ("per_task", "joint"),
    tuple(PRESETS),
    ("tangent", "finite"),
    (True, False),
    (True, False),
    ("fp32", "bf16"),
)
CHOICES = list(itertools.product(*FACTORS))


def covering(choices: list[tuple]) -> list[tuple]:
    """A few that hold every pair of two factors' values that the choices hold."""
    found, missing = [], set().union(*map(pairs_of, choices))
    while missing:
        found.append(max(choices, key=lambda choice: len(pairs_of(choice) & missing)))
        missing -= pairs_of(found[-1])
    return found


def pairs_of(choice: tuple) -> set[tuple]:
    return set(itertools.combinations(enumerate(choice), 2))


def name_of(choice: tuple) -> str:
    update, preset, gradient, teacher, shared, precision = choice
    masks = "shared masks" if shared else "masks of their own"
    kind = f"{update}, {preset}, {gradient}, {precision}, {masks}"
    return kind + (", teacher" if teacher else "")


@pytest.mark.parametrize("update", ["per_task", "joint"])
def test_a_step_launch_by_launch(update):
    config = replace(SBRRT, round=replace(SBRRT.round, update=update))
    assert_same_without_waiting(written_out, config, 2)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_a_step_launch_by_launch_in_all_configurations(choice):
    assert_same_without_waiting(written_out, configuration(*choice), 2)


@pytest.mark.parametrize("choice", covering(CHOICES), ids=name_of)
def test_a_captured_step(choice):
    """Its first rounds run launch by launch."""
    step = assert_same_without_waiting(graph_step, configuration(*choice), 5)
    assert step.num_replays >= 3


def smart(**fields) -> RunConfig:
    return replace(SBRRT, smart=replace(SBRRT.smart, **fields))


OTHERS = {
    "no SMART": replace(SBRRT, smart=SmartConfig()),
    "neither SMART nor teacher": replace(SBRRT, smart=SmartConfig(), bregman=BregmanConfig()),
    "clipped": replace(SBRRT, optimizer=OptimizerConfig(warmup=0.0, clip_norm=1e-3)),
    "warm-up": replace(SBRRT, optimizer=OptimizerConfig(warmup=0.5, decay="cosine")),
    "a momentum that changes": replace(SBRRT, bregman=BregmanConfig(weight=1.0, schedule="paper")),
    "three steps in a ball": smart(num_steps=3, step_size=0.05, projection="ball"),
    "2-norms of sequences": smart(perturb_special=True, norm="2", level="sequence"),
    "linearised": smart(branch="linear"),
    "surgery": replace(
        SBRRT,
        optimizer=OptimizerConfig(warmup=0.0, surgery="pcgrad"),
        round=replace(SBRRT.round, update="joint"),
    ),
    "uncertainty": replace(SBRRT, round=replace(SBRRT.round, task_weights="uncertainty")),
    "frozen layer": steps.with_optimizer(SBRRT, frozen_layers=1),
    "unfreezing": replace(steps.with_optimizer(SBRRT, unfreeze_every=3), tasks=TASKS),
    "plain features": replace(SBRRT, model=replace(SBRRT.model, pair_features="concat")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings(name):
    step = assert_same_without_waiting(graph_step, OTHERS[name], 4)
    assert step.num_replays


@pytest.mark.parametrize(
    ("pooling", "update"), [("mean", "joint"), ("cls", "joint"), ("cls", "per_task")]
)
def test_all_heads_and_encodings(pooling, update):
    config = replace(SBRRT, tasks=TASKS, round=replace(SBRRT.round, update=update))
    step = assert_same_without_waiting(graph_step, config, 3, pooling=pooling)
    assert step.num_replays


def test_a_frozen_encoder():
    tasks = {name: one for name, one in TASKS.items() if one.head != "cosine"}
    assert_same_without_waiting(written_out, replace(SBRRT, tasks=tasks), 2, frozen=True)


def planted_norm_of_gradients(grads, max_norm, backend):
    result = clipped_gradient_norm(grads, max_norm, backend=backend)
    return result if result.norm.item() >= 0 else None


def planted_outputs(*arguments, **options):
    return heads_forward(*arguments, **options) * torch.tensor(2.0)


def planted_norm(delta, mask):
    return squared_size(delta[mask], mask[mask])


def planted_noise(stream, width, site=0):
    return torch.randn(stream.batch.num_tokens, width)


def planted_rng(x, device):
    return x.to(device)


PLANTED = {
    "training.step.update.clipped_gradient_norm": planted_norm_of_gradients,
    "training.step.head_pass.heads_forward": planted_outputs,
    "training.step.round_pass.squared_size": planted_norm,
    "training.step.written_out.DropoutStream.normal": planted_noise,
    "training.step.step.to_device": planted_rng,
    "training.step.update.to_device": planted_rng,
}


@pytest.mark.parametrize("place", PLANTED)
@pytest.mark.parametrize("update", ["per_task", "joint"])
def test_mistakes_in_the_step_are_refused(place, update, monkeypatch):
    config = replace(SBRRT, round=replace(SBRRT.round, update=update))
    with PretendedGpu() as gpu:
        step = build(written_out, config, "cuda")
        with gpu.no_waits():
            assert_refused(step, place, monkeypatch)


def assert_refused(step: Step, place: str, monkeypatch) -> None:
    step.round(make_round(FEW, 0), 0, report=True)
    monkeypatch.setattr(f"sbrrt_fast.{place}", PLANTED[place])
    with pytest.raises(Refused):
        step.round(make_round(FEW, 1), 1, report=True)


def test_shapes_alone():
    """The same ops reach the device, and nothing is computed."""
    seen = []
    for has_values in (True, False):
        ops: list[str] = []
        with PretendedGpu(has_values) as gpu:
            step = build(written_out, SBRRT, "cuda")
            gpu.observers.append(lambda op, *_, found=ops: found.append(str(op)))
            step.round(make_round(FEW, 0), 0, report=True)
        seen.append(ops)
    assert len(seen[0]) > 500
    assert seen[0] == seen[1]
