"""The fused update against torch's, where parameters are updated in different turns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from sbrrt_fast.config import BregmanConfig, OptimizerConfig
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.step import update as update_module
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.update import FusedUpdate, TorchUpdate

NUM_STEPS = 12
# Who is updated by each turn; the word table gets a gradient of rows in all but one turn.
TURNS = [("words", "shared", "one"), ("words", "shared", "two"), ("shared", "one", "two")]
SKIPPED = (0, 4)  # the first update of all, and one in between


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Parameter(torch.randn(40, 6))
        self.shared = nn.Parameter(torch.randn(50, 33))
        self.heads = nn.ParameterDict({n: nn.Parameter(torch.randn(7)) for n in ("one", "two")})
        self.unused = nn.Parameter(torch.randn(3))

    def part(self, name: str) -> nn.Parameter:
        return self.heads[name] if name in self.heads else getattr(self, name)


class Run:
    """A model with its optimiser and teacher, updated by one of both."""

    def __init__(self, model: nn.Module, kind: type[TorchUpdate]):
        self.model = copy.deepcopy(model)
        self.optimizer = build_optimizer(
            self.model.named_parameters(), OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
        )
        self.teacher = Teacher(self.model, BregmanConfig(weight=1.0, beta=0.9))
        self.update = kind(self.optimizer, self.teacher, 1.0, NUM_STEPS)

    def turn(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        grads: dict[int, torch.Tensor | RowGradient] = {}
        for name in TURNS[index % len(TURNS)]:
            p = self.model.part(name)
            g = torch.randn(p.shape, generator=generator)
            if index in SKIPPED and name == "shared":
                g[0, 0] = math.inf
            if name == "words":
                rows = torch.tensor([index, 17, 31])
                grads[id(p)] = RowGradient(rows, g[rows])
            else:
                grads[id(p)] = g.bfloat16() if name == "shared" else g
        if isinstance(self.update, FusedUpdate):
            return self.update.apply(index + 1, grads)
        for p in self.model.parameters():
            g = grads.get(id(p))
            p.grad = g.dense(p) if isinstance(g, RowGradient) else None if g is None else g.float()
        return self.update(index + 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        state = {
            f"{name}.{slot}": x
            for name, p in self.model.named_parameters()
            for slot, x in self.optimizer.state.get(p, {}).items()
        }
        teacher = {f"teacher.{name}": x for name, x in self.teacher.state_dict().items()}
        return dict(self.model.named_parameters()) | teacher | state


def assert_same(ours: Run, theirs: Run) -> None:
    found, expected = ours.tensors(), theirs.tensors()
    for name, x in expected.items():
        if name.startswith("unused.exp_avg"):
            continue
        assert name in found, name
        scale = x.abs().max().item() or 1.0
        assert (found[name] - x).abs().max() <= (0 if name.endswith("step") else 2e-6 * scale), name


def test_parameters_updated_in_different_turns_equal_torch():
    """In one launch; updates whose gradients are not finite change and count nothing."""
    model = Model()
    ours, theirs = Run(model, FusedUpdate), Run(model, TorchUpdate)
    for index in range(NUM_STEPS):
        norms = ours.turn(index), theirs.turn(index)
        assert torch.allclose(*norms, rtol=1e-6) or index in SKIPPED
        assert_same(ours, theirs)
    steps = {n: int(x) for n, x in ours.tensors().items() if n.endswith(".step")}
    assert steps == {
        "words.step": 6, "shared.step": 10, "heads.one.step": 7, "heads.two.step": 7,
    }  # fmt: skip
    assert ours.update.take_num_skipped() == theirs.update.take_num_skipped() == len(SKIPPED)
    assert not torch.equal(ours.teacher.state_dict()["unused"], torch.zeros(3))


@pytest.mark.parametrize("kind", [FusedUpdate, TorchUpdate])
def test_an_optimiser_goes_on_from_the_other_s_state(kind):
    """Numbers of updates included."""
    other = {FusedUpdate: TorchUpdate, TorchUpdate: FusedUpdate}[kind]
    first, alone = Run(Model(), kind), None
    alone = Run(first.model, kind)
    for index in range(5):
        first.turn(index)
        alone.turn(index)
    second = Run(first.model, other)
    second.teacher.load_state_dict(first.teacher.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for index in range(5, NUM_STEPS):
        second.turn(index)
        alone.turn(index)
    assert_same(second, alone) if kind is TorchUpdate else assert_same(alone, second)


@pytest.mark.parametrize("turn", [0, 2])
def test_one_op_for_all_parameters(turn, monkeypatch):
    calls = []
    for name in ("adamw_ema_", "adamw_ema_rows_", "clipped_gradient_norm"):
        op = getattr(update_module, name)
        monkeypatch.setattr(
            update_module, name, lambda *a, op=op, name=name, **k: calls.append(name) or op(*a, **k)
        )
    run = Run(Model(), FusedUpdate)
    run.turn(turn)
    rows = ["adamw_ema_rows_"] if "words" in TURNS[turn] else []
    assert calls == ["clipped_gradient_norm", "adamw_ema_", *rows]
