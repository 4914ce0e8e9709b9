"""The table's own: rows without a gradient, what is left out, and the update that mixes both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sbrrt_fast.config import BregmanConfig, OptimizerConfig
from sbrrt_fast.ops.adamw_ema import RowGradient, adamw_ema_rows_
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.update import FusedUpdate
from tests.cuda_on_cpu.kernels import adamw as cuda_kernels
from tests.ops.backends import DEVICES, backends_of
from tests.ops.cases.adamw import SIZES, good_rows, numbers, row_gradient
from tests.ops.on_device import equal, moved

every_backend = backends_of("adamw_ema_rows_", "reference", "cuda_on_cpu")


class Table:
    """A table with its moments and its average; whether a row has moments."""

    def __init__(self, size, backend, has_average=True):
        self.backend, self.device = backend, DEVICES.get(backend, "cpu")
        generator = torch.Generator().manual_seed(1)
        self.param = torch.randn(size, generator=generator).to(self.device)
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.param) for _ in range(2))
        self.ema = self.param.clone() if has_average else None
        self.touched = torch.zeros(size[0], dtype=torch.bool, device=self.device)

    def step(self, found: RowGradient, count: int, weight_decay=0.1, **changes) -> None:
        settings = moved(numbers(count) | changes, self.device)
        found = RowGradient(*(x.to(self.device) for x in (found.rows, found.values)))
        if self.backend == "cuda_on_cpu":
            lists = self.param, self.exp_avg, self.exp_avg_sq, self.ema
            cuda_kernels.update_rows(lists, found, self.touched, settings)
            return
        adamw_ema_rows_(
            self.param, found, self.touched, self.exp_avg, self.exp_avg_sq, ema=self.ema,
            weight_decay=weight_decay, backend=self.backend, **settings,
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        average = [] if self.ema is None else [self.ema]
        return [self.param, self.exp_avg, self.exp_avg_sq, *average, self.touched]


@backends_of("adamw_ema_rows_", "reference")
@pytest.mark.parametrize("name", SIZES)
def test_without_an_average(name, backend):
    ours, whole = (Table(SIZES[name], backend, has_average) for has_average in (False, True))
    for count in range(1, 4):
        for table in (ours, whole):
            table.step(row_gradient(SIZES[name], count), count)
    for a, b in zip(ours.tensors()[:3], whole.tensors()[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@every_backend
def test_a_clip_factor_of_nan_leaves_the_update_out(backend):
    for size in ((70, 36), SIZES["primes"]):
        table = Table(size, backend)
        table.step(row_gradient(size, 3), 3)
        before = [x.clone() for x in table.tensors()]
        table.step(row_gradient(size, 5), 5, clip_factor=torch.tensor(torch.nan))
        assert equal(table.tensors(), before)
        table.step(row_gradient(size, 5), 5)
        assert not any(torch.equal(a, b) for a, b in zip(table.tensors(), before, strict=True))


@every_backend
def test_every_row_once_touched_moves_on(backend):
    """Momentum moves a row without a gradient, unlike a row that never had one."""
    table = Table((4, 8), backend)
    table.step(RowGradient(torch.tensor([2]), torch.ones(1, 8)), 1)
    before, moment = table.param.clone(), table.exp_avg.clone()
    table.step(RowGradient(torch.empty(0).long(), torch.empty(0, 8)), 2, weight_decay=0.0)
    is_second = [False, False, True, False]
    assert table.touched.tolist() == is_second
    assert (table.exp_avg != moment).any(1).tolist() == is_second
    if backend != "cuda_on_cpu":  # whose weight decay moves all
        assert (table.param != before).any(1).tolist() == is_second


@backends_of("adamw_ema_rows_")
def test_moments_of_untouched_rows_are_neither_read_nor_written(backend):
    table, expected = (Table(SIZES["primes"], backend) for _ in range(2))
    found = row_gradient(SIZES["primes"], 3)
    idle = torch.ones(97, dtype=torch.bool)
    idle[found.rows] = False
    expected.step(found, 1)
    for moment in (table.exp_avg, table.exp_avg_sq):
        moment[idle.to(moment.device)] = float("nan")
    table.step(found, 1)
    assert torch.equal(table.param, expected.param)
    assert torch.equal(table.exp_avg.isnan().all(1).cpu(), idle)


@pytest.mark.parametrize("library", ["sbrrt", "sbrrt_triton"])
def test_tensors_that_share_memory_are_refused(library):
    given = good_rows()
    given["exp_avg"] = given["param"]
    with pytest.raises(ValueError, match=r"rows_: (exp_avg|param) and (exp_avg|param) share"):
        getattr(torch.ops, library).adamw_ema_rows_(**given)


def test_the_update_mixes_dense_and_row_gradients():
    """A table that had row gradients, then a dense one, then rows again."""
    config, runs = OptimizerConfig(clip_norm=0.5), []
    for as_rows in (True, False):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict(
            {"table": torch.nn.Embedding(97, 37), "out": torch.nn.Linear(37, 3)}
        )
        optimizer = build_optimizer(model.named_parameters(), config)
        update = FusedUpdate(optimizer, Teacher(model, BregmanConfig(weight=1.0)), 0.5, 20)
        weight = model["table"].weight
        for step in range(1, 7):
            found = row_gradient(tuple(weight.shape), step + 2)
            by_parameter = {
                id(p): torch.full_like(p, 0.01 * step) for p in model["out"].parameters()
            }
            sparse = as_rows and step != 3
            by_parameter[id(weight)] = found if sparse else found.dense(weight)
            norm = update.apply(step, by_parameter)
        runs.append((norm, weight.detach(), update.teacher.state_dict()["table.weight"]))
    for ours, dense in zip(*runs, strict=True):
        assert torch.allclose(ours, dense, rtol=1e-6, atol=1e-8)
