"""The step with the Triton kernels does what it does with the references, dropout on.

Nothing here needs the command line's libraries, which a GPU machine may lack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sbrrt_fast.config import BregmanConfig, OptimizerConfig, RoundConfig, RunConfig, SmartConfig
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops._backend import library
from sbrrt_fast.ops.registry import require
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.step import Step
from tests.model.models import TASKS, random_batch
from tests.ops.triton_only import DEVICE
from tests.training.steps import autograd, written_out

NUM_ROUNDS = 3
RESOLUTION = 2 * 5.0 * torch.finfo(torch.float32).eps  # of outputs up to 5, STS's highest label
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero):RuntimeWarning"  # of what masks leave out
)
SHAPE = BertConfig(
    vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=1,
    intermediate_size=64, max_position_embeddings=12,
)  # fmt: skip
CONFIG = RunConfig(
    tasks=TASKS,
    seed=3,
    smart=SmartConfig(weight=1.0, radius=0.1),
    bregman=BregmanConfig(weight=0.8),
    optimizer=OptimizerConfig(warmup=0.0),
    round=RoundConfig(batch_size=2),
)
LENGTHS = {"sst": [9, 4], "para": [5, 12, 3, 8], "sts": [7, 2, 11, 6]}
LABELS = {"sst": [4.0, 1.0], "para": [1.0, 0.0], "sts": [4.5, 0.5]}


def build(backend: str, dropout: float = 0.1, kind: Callable[..., Step] = autograd) -> Step:
    torch.manual_seed(0)
    shape = replace(SHAPE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = MultiTaskModel(MiniBert(shape, "mean"), TASKS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(std=0.1)  # at 0.02 a narrow encoder hardly tells texts apart
    model = model.to(DEVICE)
    teacher = Teacher(model, CONFIG.bregman)
    optimizer = build_optimizer(model.named_parameters(), CONFIG.optimizer)
    return kind(model, teacher, optimizer, replace(CONFIG, backend=backend), NUM_ROUNDS)


def make_round(index: int) -> list[TaskBatch]:
    torch.manual_seed(index)
    row, batches = 0, []
    for name, lengths in LENGTHS.items():
        tokens = random_batch(lengths[index % 2 :] + lengths[: index % 2], row)
        batches.append(TaskBatch(name, tokens, torch.tensor(LABELS[name])))
        row += len(lengths)
    return batches


@dataclass
class Run:
    """What a run left: loss terms of each round, the first update's gradients, weights."""

    terms: list[dict[str, float]]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def run(
    backend: str,
    num_rounds: int = NUM_ROUNDS,
    dropout: float = 0.1,
    kind: Callable[..., Step] = autograd,
) -> Run:
    step, rng = build(backend, dropout, kind), torch.tensor([CONFIG.seed, 0], device=DEVICE)
    gradients = step.gradients(make_round(0)[0], rng)
    terms = [step.round(make_round(index), index) for index in range(num_rounds)]
    values = [{name: value.item() for name, value in found.items()} for found in terms]
    return Run(values, gradients, step.model.state_dict())


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the host functions that ran."""
    names, find = [], library._host_function

    def found(module: str, function: str):
        names.append(f"{module}.{function}")
        return find(module, function)

    monkeypatch.setattr(library, "_host_function", found)
    return names


WAYS = ("forward_into", "backward_into")
COMMON = {
    *(f"{op}.{way}" for op in ("attention", "layernorm", "gelu") for way in WAYS),
    *("embed.forward_into", "embed.backward_into", "adamw_ema.adamw_ema_"),
    "attention.jvp_into",
    *("gradient_norm.gradient_norm_into", "column_sums.column_sums_into"),
    *("draws.smart_noise_into", "smart_ascend.smart_ascend_into"),
}
HEAD_WAYS = ("forward_into", "jvp_into", "vjp_into", "weight_gradients_into")
EXPECTED = {
    autograd: COMMON
    | {f"symmetric_kl.{way}_into" for way in ("forward", "backward", "fisher")}
    | {"layernorm.jvp_into", "gelu.jvp_into"},  # the other makes these tangents with the rows
    written_out: COMMON
    | {"matmul.mm_into", "adamw_rows.adamw_ema_rows_"}
    | {f"task_heads.{way}" for way in HEAD_WAYS}
    | {"objective.objective_into", "objective.smoothness_cotangents_into"},
}


def test_every_op_has_a_triton_implementation():
    require("triton")


@pytest.mark.parametrize("kind", [autograd, written_out], ids=["autograd", "written out"])
def test_three_rounds_equal_the_reference(launched, kind):
    theirs = run("reference")
    assert not launched
    ours = run("triton", kind=kind)
    assert set(launched) == EXPECTED[kind]
    assert len(ours.terms) == len(theirs.terms) == NUM_ROUNDS
    for found, expected in zip(ours.terms, theirs.terms, strict=True):
        assert found.keys() == expected.keys()
        assert all(expected[f"{task}/smart"] > 0 for task in TASKS)
        for name, value in expected.items():
            # D_Breg is of second order in the distance of outputs that are known to an ulp or two.
            floor = 2 * value**0.5 * RESOLUTION if name.endswith("/bregman") else 1e-9
            assert found[name] == pytest.approx(value, rel=1e-4, abs=floor), name
    compare(ours.gradients, theirs.gradients, theirs.gradients, 1e-4)
    start = build("reference").model.state_dict()
    moved = {name: weight - start[name] for name, weight in theirs.weights.items()}
    compare(ours.weights, theirs.weights, moved, 1e-2)  # Adam magnifies rounding


def compare(ours: dict, theirs: dict, scales: dict, tolerance: float) -> None:
    """Each tensor to the tolerance of the norm of ``scales``; but for the keys' biases, which shift
    all scores of a query alike: their true gradient is 0, and Adam scales up what is left of it."""
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, mine in ours.items():
        if name.endswith("key.bias"):
            continue
        assert (mine - theirs[name]).norm() <= tolerance * scales[name].norm() + 1e-9, name


def test_dropout_is_on():
    """Else the comparison would not see the masks."""
    dropped, whole = (run("reference", 1, p).terms[0] for p in (0.1, 0.0))
    for name in ("sst/loss", "para/loss", "sts/loss"):
        assert abs(dropped[name] / whole[name] - 1) > 1e-3
