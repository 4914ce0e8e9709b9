"""The step's device code without a device: nothing waits or mixes, and the bits are the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.pretended_gpu import PretendedGpu, Refused
from sbrrt_fast.config import BregmanConfig, OptimizerConfig, RunConfig, SmartConfig
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.heads import task_loss
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops._backend import backends
from sbrrt_fast.smart.presets import PRESETS
from sbrrt_fast.training.step.fast_step import FastStep
from sbrrt_fast.training.step.graph_step import GraphStep
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.sbrrt_step import SbrrtStep, root_mean_square
from tests.model.models import CONFIG
from tests.training import steps
from tests.training.recorded_graph import RecordedGraph
from tests.training.steps import state, step_over

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
    found.validate(head)
    return found


TASKS = {
    f"{head}-{encoding}": task(head, encoding)
    for head, encoding in itertools.product(HEADS, ENCODINGS)
    if head != "cosine" or encoding == "siamese"
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


def build(kind, config: RunConfig, device: str, pooling: str = "mean", frozen=False) -> SbrrtStep:
    torch.manual_seed(0)
    model = MultiTaskModel(MiniBert(CONFIG, pooling), config.tasks, config.model.pair_features)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(std=0.08)
    model.to(device)
    if frozen:
        model.freeze_encoder()
    return step_over(kind, model, config)


def graph_step(*arguments) -> GraphStep:
    return GraphStep(*arguments, pytest.fail, RecordedGraph)


def outcome(step: SbrrtStep, num_rounds: int) -> list[dict[str, torch.Tensor]]:
    """The rounds' terms, and what they left."""
    rounds = [make_round(step.config.tasks, i) for i in range(num_rounds)]
    terms = [step.round(found, i, report=i % 2 == 1) for i, found in enumerate(rounds)]
    return [*terms, state(step)]


def assert_same_without_waiting(kind, config: RunConfig, num_rounds: int, **kwargs) -> SbrrtStep:
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
    assert_same_without_waiting(FastStep, config, 2)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES, ids=name_of)
def test_a_step_launch_by_launch_in_all_configurations(choice):
    assert_same_without_waiting(FastStep, configuration(*choice), 2)


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
    assert_same_without_waiting(FastStep, replace(SBRRT, tasks=tasks), 2, frozen=True)


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with PretendedGpu() as found, found.no_waits():
        yield found


class Squared(torch.autograd.Function):
    """x^2, whose derivatives a test plants mistakes in."""

    mistake = staticmethod(lambda x: x)

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2.0 * grad * Squared.mistake(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx, tangent):
        return 2.0 * tangent * Squared.mistake(*ctx.saved_tensors)


MISTAKES = {
    "a host mask": lambda x: x * torch.ones(3, dtype=torch.bool),
    "a host scalar tensor": lambda x: x * torch.tensor(0.5),
    "a host tensor that is filled": lambda x: torch.zeros(3).copy_(x),
    "a host index": lambda x: x[torch.tensor([0, 1, 2])],
    "a host tensor among several": lambda x: torch.stack([x, torch.ones(3)]).sum(0),
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x[0]),
    "int": lambda x: x + int(x[0]),
    "a condition": lambda x: x if (x > 0).any() else -x,
    "tolist": lambda x: x * x.tolist()[0],
    "cpu": lambda x: x.cpu(),
    "to the host": lambda x: x.to("cpu", non_blocking=True),
    "showing": lambda x: x if f"{x}" else -x,
    "showing a number": lambda x: x if f"{x.sum():.3f}" else -x,
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "nonzero": lambda x: x + x.nonzero().sum(),
    "where without values": lambda x: x + torch.where(x > 0)[0].sum(),
    "a boolean index": lambda x: x + x[x > 0].sum(),
    "writing by a boolean index": lambda x: x.clone().index_put_((x > 0,), x.sum()),
    "masked_select": lambda x: x + x.masked_select(x > 0).sum(),
    "unique": lambda x: x + x.unique().sum(),
    "a size that depends on data": lambda x: x + x.repeat_interleave(x.long() + 1).sum(),
    "an index that is read": lambda x: x * torch.arange(3.0, device=x.device)[x.argmax()],
    "a pageable copy": lambda x: x * torch.ones(3).to(x.device, non_blocking=True),
    "a pageable copy in place": lambda x: torch.empty_like(x).copy_(torch.ones(3), True),
    "a copy that is waited for": lambda x: x * torch.ones(3).pin_memory().to(x.device),
    "a tensor of numbers": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "new_tensor": lambda x: x * x.new_tensor([1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name, gpu):
    """In plain code, in a backward pass and in forward mode."""
    mistake, x = MISTAKES[name], torch.arange(3.0, device="cuda", requires_grad=True)
    for call in (mistake, backward_of(mistake), tangent_of(mistake)):
        with pytest.raises(Refused):
            call(x.detach())


def backward_of(mistake):
    def call(x):
        Squared.mistake = staticmethod(mistake)
        x = x.requires_grad_()
        torch.autograd.grad(Squared.apply(x).sum(), x)

    return call


def tangent_of(mistake):
    def call(x):
        Squared.mistake = staticmethod(mistake)
        with torch.autograd.forward_ad.dual_level():
            Squared.apply(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))

    return call


RIGHT = {
    "numbers of Python": lambda x: 0.5 * x + 1,
    "a number made on the device": lambda x: x * torch.full((), 0.5, device=x.device),
    "pinned memory": lambda x: x * torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "pinned memory in place": lambda x: torch.empty_like(x).copy_(
        torch.ones(3, pin_memory=True), non_blocking=True
    ),
    "a choice on the device": lambda x: torch.where(x > 0, x, -x),
    "a device index": lambda x: x[torch.arange(2, -1, -1, device=x.device)],
    "a known size": lambda x: x.repeat_interleave(
        torch.ones(3, dtype=torch.int64, device=x.device), output_size=3
    ),
    "a view that is written": lambda x: x.clone()[1:].add_(1),
    "the host's own numbers": lambda x: x * torch.ones(3)[torch.ones(3) > 0].sum().item(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_gpu_does_is_done(name, gpu):
    expected = RIGHT[name](torch.arange(3.0)) if "pin" not in name else torch.arange(3.0)
    if name == "pinned memory in place":
        expected = torch.ones(3)
    assert torch.equal(gpu.value(RIGHT[name](torch.arange(3.0, device="cuda"))), expected)
    for call in (backward_of(RIGHT[name]), tangent_of(RIGHT[name])):
        if name != "a view that is written":  # of another shape
            call(torch.arange(3.0, device="cuda"))


@pytest.mark.parametrize("name", ["pinned memory", "pinned memory in place"])
def test_a_graph_holds_no_copy_from_the_host(name, gpu):
    x = torch.arange(3.0, device="cuda")
    with pytest.raises(Refused, match=r"captured|every replay"):
        RecordedGraph().capture(lambda: RIGHT[name](x))


def planted_clip(norm, max_norm):
    return torch.ones_like(norm) if norm.item() >= 0 else norm


def planted_loss(task, outputs, labels):
    return task_loss(task, outputs, labels) * torch.tensor(2.0)


def planted_norm(delta, mask):
    return root_mean_square(delta[mask], mask[mask])


def planted_noise(stream, width, site=0):
    return torch.randn(stream.batch.num_tokens, width)


def planted_rng(x, device):
    return x.to(device)


PLANTED = {
    "training.step.update.clip_factor": planted_clip,
    "model.multitask.task_loss": planted_loss,
    "training.step.fast_step.root_mean_square": planted_norm,
    "training.step.fast_step.DropoutStream.normal": planted_noise,
    "training.step.fast_step.to_device": planted_rng,
    "training.step.update.to_device": planted_rng,
}


@pytest.mark.parametrize("place", PLANTED)
@pytest.mark.parametrize("update", ["per_task", "joint"])
def test_mistakes_in_the_step_are_refused(place, update, monkeypatch):
    config = replace(SBRRT, round=replace(SBRRT.round, update=update))
    with PretendedGpu() as gpu:
        step = build(FastStep, config, "cuda")
        with gpu.no_waits():
            assert_refused(step, place, monkeypatch)


def assert_refused(step: SbrrtStep, place: str, monkeypatch) -> None:
    step.round(make_round(FEW, 0), 0, report=True)
    monkeypatch.setattr(f"sbrrt_fast.{place}", PLANTED[place])
    with pytest.raises(Refused):
        step.round(make_round(FEW, 1), 1, report=True)


def test_it_is_gone_afterwards():
    missing = backends.cuda_missing()
    with PretendedGpu():
        inside = torch.zeros(2, device="cuda")
        assert backends.cuda_missing() is None
        assert inside.is_cuda and inside.device.type == "cuda"
    assert inside.device.type == "meta"
    assert PretendedGpu.active is None
    assert backends.cuda_missing() == missing


def test_memory_is_forgotten_with_its_tensors():
    with PretendedGpu() as gpu:
        kept = torch.arange(3.0, device="cuda")
        gpu.memory._limit = 100
        for _ in range(5000):
            torch.zeros(2, device="cuda")
        assert len(gpu.memory) == len(gpu.memory._values) < 5000
        assert gpu.value(kept).tolist() == [0.0, 1.0, 2.0]


def test_shapes_alone():
    """The same ops reach the device, and nothing is computed."""
    seen = []
    for has_values in (True, False):
        ops: list[str] = []
        with PretendedGpu(has_values) as gpu:
            step = build(FastStep, SBRRT, "cuda")
            gpu.observers.append(lambda op, *_, found=ops: found.append(str(op)))
            step.round(make_round(FEW, 0), 0, report=True)
        seen.append(ops)
    assert len(seen[0]) > 500
    assert seen[0] == seen[1]
