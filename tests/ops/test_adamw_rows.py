"""One table of which a few rows have a gradient, against the dense update."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.config import BregmanConfig, OptimizerConfig
from sbrrt_fast.ops.adamw_ema import RowGradient, adamw_ema_, adamw_ema_rows_
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.step.update import FusedUpdate

SIZES = {"one row": (1, 5), "prime": (97, 37), "wide": (300, 384)}
BACKENDS = ("cpu", "reference")


def table(size) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    param = torch.randn(size)
    state = {"param": param, "ema": param.clone(), "exp_avg": torch.zeros(size)}
    return state | {"exp_avg_sq": torch.zeros(size)}


def gradient(size, step: int) -> RowGradient:
    generator = torch.Generator().manual_seed(step)
    count = (step * 7) % (size[0] + 1)  # none at all to every row
    rows = torch.randperm(size[0], generator=generator)[:count].sort().values
    return RowGradient(rows, torch.randn(count, size[1], generator=generator))


def numbers(step: int, dtype=torch.float32) -> dict:
    return {
        "learning_rate": torch.tensor(1e-2 / step, dtype=torch.float64),
        "clip_factor": torch.tensor(0.7),
        "step": torch.tensor(step),
        "betas": (0.9, 0.99),
        "ema_beta": 0.95,
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIZES)
def test_rows_are_updated_like_the_dense_table(name, backend):
    size = SIZES[name]
    ours, dense = table(size), table(size)
    touched = torch.zeros(size[0], dtype=torch.bool)
    for step in range(1, 12):
        found = gradient(size, step)
        adamw_ema_rows_(
            ours["param"], found, touched, ours["exp_avg"], ours["exp_avg_sq"],
            weight_decay=0.1, ema=ours["ema"], backend=backend, **numbers(step),
        )  # fmt: skip
        adamw_ema_(
            [dense["param"]], [found.dense(dense["param"])], [dense["exp_avg"]],
            [dense["exp_avg_sq"]], weight_decay=[0.1], ema=[dense["ema"]], backend=backend,
            **numbers(step),
        )  # fmt: skip
        for key, value in ours.items():
            assert torch.allclose(value, dense[key], rtol=1e-6, atol=1e-9), (step, key)
        assert torch.equal(touched, (dense["exp_avg_sq"] != 0).any(1))


def test_threads_do_not_change_a_bit():
    results, size = [], SIZES["wide"]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            state = table(size)
            touched = torch.zeros(size[0], dtype=torch.bool)
            for step in range(1, 4):
                adamw_ema_rows_(
                    state["param"], gradient(size, step), touched, state["exp_avg"],
                    state["exp_avg_sq"], weight_decay=0.1, ema=state["ema"], **numbers(step),
                )  # fmt: skip
            results.append(state)
    finally:
        torch.set_num_threads(1)
    for state in results[1:]:
        assert all(torch.equal(value, results[0][key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("rows", "touched", "message"),
    [
        ([3, 2], 97, "rows must ascend"),
        ([2, 2], 97, "rows must ascend"),
        ([-1, 2], 97, "rows must ascend"),
        ([2, 97], 97, "rows must ascend"),
        ([2], 97, "grad"),
        ([2, 3], 96, "touched"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(rows, touched, message):
    state = table(SIZES["prime"])
    before = {key: value.clone() for key, value in state.items()}
    with pytest.raises(ValueError, match=message):
        adamw_ema_rows_(
            state["param"], RowGradient(torch.tensor(rows), torch.randn(2, 37)),
            torch.zeros(touched, dtype=torch.bool), state["exp_avg"], state["exp_avg_sq"],
            weight_decay=0.1, ema=state["ema"], backend="cpu", **numbers(1),
        )  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_factor_of_nan_leaves_the_update_out(backend):
    size = SIZES["prime"]
    state, touched = table(size), torch.zeros(size[0], dtype=torch.bool)

    def update(step, **changes):
        adamw_ema_rows_(
            state["param"], gradient(size, step), touched, state["exp_avg"], state["exp_avg_sq"],
            weight_decay=0.1, ema=state["ema"], backend=backend, **(numbers(step) | changes),
        )  # fmt: skip

    update(3)
    before = {key: value.clone() for key, value in state.items()} | {"touched": touched.clone()}
    update(5, clip_factor=torch.tensor(torch.nan))
    for key, value in (state | {"touched": touched}).items():
        assert torch.equal(value, before[key]), key
    update(5)
    assert not torch.equal(touched, before["touched"])
    assert all(not torch.equal(value, before[key]) for key, value in state.items())


def test_the_op_s_schema_is_what_it_does():
    state, found = table(SIZES["prime"]), gradient(SIZES["prime"], 3)
    touched = torch.zeros(97, dtype=torch.bool)
    args = (
        state["param"], found.values, found.rows, touched, state["exp_avg"], state["exp_avg_sq"],
        state["ema"], torch.tensor(1e-3), 0.1, 0.9, 0.999, 1e-8, torch.tensor(1.0),
        torch.tensor(1), 0.9,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.sbrrt.adamw_ema_rows_, args)


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
            found = gradient(tuple(weight.shape), step + 2)
            by_parameter = {
                id(p): torch.full_like(p, 0.01 * step) for p in model["out"].parameters()
            }
            sparse = as_rows and step != 3
            by_parameter[id(weight)] = found if sparse else found.dense(weight)
            norm = update.apply(step, by_parameter)
        runs.append((norm, weight.detach(), update.teacher.state_dict()["table.weight"]))
    for ours, dense in zip(*runs, strict=True):
        assert torch.allclose(ours, dense, rtol=1e-6, atol=1e-8)
