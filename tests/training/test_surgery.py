"""PCGrad against its definition (arXiv 2001.06782, Algorithm 1), written as it stands there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sbrrt_fast.config import OptimizerConfig
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.training.step.surgery import (
    BLOCK,
    add_up,
    conflict_terms,
    inner_products,
    projection_places,
    update_factors,
)
from tests.model.models import TASKS
from tests.training.steps import (
    CONFIGS,
    JOINT,
    autograd,
    build,
    learnt,
    losses,
    make_round,
    written_out,
)

SURGERY = CONFIGS["surgery"]
WEIGHTED = replace(SURGERY, tasks=TASKS | {"para": replace(TASKS["para"], weight=4.0)})

WHOLE = {"sbrrt": SURGERY, "weighted": WEIGHTED, "uncertainty": learnt(SURGERY)}


def plain_pcgrad(grads: list[Tensor], orders: list[list[int]]) -> tuple[Tensor, int]:
    """The update, and how many projections were made."""
    projected, count = [g.clone() for g in grads], 0
    for i, order in enumerate(orders):
        for j in order:
            dot = projected[i] @ grads[j]
            if dot < 0:
                projected[i] -= dot / grads[j].norm() ** 2 * grads[j]
                count += 1
    return torch.stack(projected).sum(0), count


def orders_of(places: Tensor) -> list[list[int]]:
    return [row.argsort().tolist()[:-1] for row in places]


def places_of(index: int, num_tasks: int = 3, seed: int = 0) -> Tensor:
    return projection_places(torch.tensor([seed, index]), num_tasks, "reference")


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5, 8])
def test_the_update_is_algorithm_1_s(num_tasks):
    generator, num_projections = torch.Generator().manual_seed(0), 0
    for index in range(20):
        rows = torch.randn(num_tasks, 7, generator=generator, dtype=torch.float64)
        places = places_of(index, num_tasks)
        expected, count = plain_pcgrad(list(rows), orders_of(places))
        num_projections += count
        add_up(rows, update_factors(inner_products(rows.clone()), places))
        torch.testing.assert_close(rows[0], expected, rtol=1e-10, atol=1e-12)
    assert num_projections >= 10 * (num_tasks - 1)


def test_the_order_of_projections_counts():
    rows = torch.tensor([[1.0, 0.2, 0.0], [-1.0, 0.5, 0.1], [-0.3, -1.0, 0.4]]).double()
    products = inner_products(rows)
    found = {tuple(update_factors(products, places_of(i)).tolist()) for i in range(40)}
    assert len(found) > 1


def test_orders_are_drawn_from_seed_and_round():
    rows = [tuple(map(tuple, places_of(i).tolist())) for i in range(200)]
    assert all(sorted(row) == [0, 1, 2] for places in rows for row in places)
    assert all(places[i][i] == 2 for places in rows for i in range(3))  # itself comes last
    assert rows == [tuple(map(tuple, places_of(i).tolist())) for i in range(200)]
    assert rows != [tuple(map(tuple, places_of(i, seed=1).tolist())) for i in range(200)]
    counts = [rows.count(kind) for kind in set(rows)]
    assert len(counts) == 8  # every order of two others, for each of three tasks
    assert min(counts) > 10


@pytest.mark.parametrize("width", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 17])
def test_inner_products_have_the_precision_of_blocks(width):
    rows = torch.randn(3, 2 * width + 5, generator=torch.Generator().manual_seed(width))[:, 5:]
    rows = rows[:, :width]  # of a larger matrix, as buffers are
    exact, scale = rows.double() @ rows.double().t(), rows.double().square().sum().clamp(min=1e-9)
    assert inner_products(rows).dtype == torch.float64
    assert ((inner_products(rows) - exact).abs() / scale).max() < 1e-6


def test_inner_products_have_the_same_bits_for_any_number_of_threads():
    rows, found = torch.randn(3, 20 * BLOCK + 3), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            found.append(inner_products(rows))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(x, found[0]) for x in found)


def test_a_gradient_of_zero_conflicts_with_none():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]).double()
    factors = update_factors(inner_products(rows), places_of(0))
    others = rows[[0, 2]]
    expected, _ = plain_pcgrad(list(others), [[1], [0]])
    torch.testing.assert_close(factors @ rows, expected)
    terms = conflict_terms(inner_products(rows), "abc")
    assert terms["a/cosine_c"].item() == pytest.approx(-math.sqrt(0.5))
    assert terms["a/cosine_b"].isnan()
    assert [terms[f"{name}/conflicts"].item() for name in "abc"] == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_is_not_finite_where_a_gradient_is_not(value):
    """So it is left out, as any other."""
    for place in range(3):
        rows = torch.randn(3, 5)
        rows[place, 1] = value
        add_up(rows, update_factors(inner_products(rows.clone()), places_of(0)))
        assert not rows[0].isfinite().all()


def plain_gradients(step, batches, rng) -> dict[str, dict[str, Tensor]]:
    """Each task's by parameter, of its whole loss, under autograd."""
    named = dict(step.model.named_parameters())
    found = {}
    for batch in batches:
        total = losses(step, batch, rng)["total"]
        grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        pairs = zip(named, grads, strict=True)
        of_task = found.setdefault(batch.name, {})
        for name, grad in pairs:
            if grad is not None:
                of_task[name] = of_task.get(name, 0.0) + grad
    return found


def expected_update(step, batches, rng) -> tuple[dict[str, Tensor], int]:
    by_task = plain_gradients(step, batches, rng)
    shared = [n for n, _ in step.model.named_parameters() if n.startswith("encoder.")]
    shared = [n for n in shared if any(n in grads for grads in by_task.values())]
    flat = [torch.cat([grads[n].flatten() for n in shared]) for grads in by_task.values()]
    places = projection_places(rng, len(flat), "reference")
    total, count = plain_pcgrad(flat, orders_of(places))
    first = next(iter(by_task.values()))
    parts = total.split([first[n].numel() for n in shared])
    update = {n: x.view_as(first[n]) for n, x in zip(shared, parts, strict=True)}
    for name, grads in by_task.items():
        update |= {n: g for n, g in grads.items() if n.startswith(f"heads.{name}.")}
    return update, count


def update_of(step, batches, rng) -> dict[str, Tensor]:
    step.passes.refresh()
    groups = step.passes.groups(batches)
    step.differentiate([groups], rng)
    found = step.passes.gradients(groups)
    named = {n: (p, found[id(p)]) for n, p in step.model.named_parameters() if id(p) in found}
    return {n: g.dense(p) if isinstance(g, RowGradient) else g for n, (p, g) in named.items()}


REPEATED = ("sst", "sts", "sst")


def rounds(num_rounds: int = 4):
    for index in range(num_rounds):
        batches = make_round(index)
        yield index, batches
    by_name = {batch.name: batch for batch in batches}
    yield index, [by_name[name] for name in REPEATED]  # a task that is drawn twice


@pytest.mark.parametrize("config", WHOLE.values(), ids=WHOLE)
def test_a_step_s_update_is_the_definition_s_in_float64(config):
    step, num_projections = build(autograd, config, torch.float64), 0
    step.round(make_round(9), 9)  # a teacher that differs from the student
    for index, batches in rounds():
        rng = torch.tensor([config.seed, index])
        expected, count = expected_update(step, batches, rng)
        found = update_of(step, batches, rng)
        step.passes.forget()
        num_projections += count
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=name)
    assert num_projections >= 3


@pytest.mark.parametrize("config", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_written_out_update_is_the_definition_s(pooling, config):
    ours = build(written_out, config, pooling=pooling)
    exact = build(autograd, config, torch.float64, pooling=pooling)
    for index, batches in rounds():
        rng = torch.tensor([config.seed, index])
        expected, _ = expected_update(exact, batches, rng)
        found = update_of(ours, batches, rng)
        assert found.keys() == expected.keys()
        largest = max(g.norm() for g in expected.values())
        for name, value in expected.items():
            if value.norm() > 1e-5 * largest:  # below it is rounding, as for key biases
                assert (found[name] - value).norm() / value.norm() < 1e-4, (index, name)


@pytest.mark.parametrize("kind", [autograd, written_out])
def test_it_is_the_joint_update_where_nothing_conflicts(kind):
    seen = set()
    for index, batches in rounds():
        rng, ours = torch.tensor([0, index]), build(kind, WEIGHTED)
        terms = build(kind, WEIGHTED).round(batches, index)
        conflicts = any(x < 0 for name, x in terms.items() if "/cosine_" in name)
        plain = replace(JOINT, tasks=WEIGHTED.tasks)
        found, expected = update_of(ours, batches, rng), update_of(build(kind, plain), batches, rng)
        is_same = all(torch.allclose(found[n], x, 1e-3, 1e-5) for n, x in expected.items())
        assert is_same != conflicts
        seen.add(conflicts)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", [autograd, written_out])
def test_a_round_that_draws_one_task_alone_is_the_joint_one(kind):
    batch, rng = make_round()[0], torch.tensor([0, 0])
    found, expected = (update_of(build(kind, c), [batch] * 3, rng) for c in (SURGERY, JOINT))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_a_round_reports_cosines_and_conflicts():
    terms = build(written_out, SURGERY).round(make_round(), 0)
    pairs = [("sst", "para"), ("sst", "sts"), ("para", "sts")]
    conflicts = dict.fromkeys(TASKS, 0.0)
    for a, b in pairs:
        cosine = terms[f"{a}/cosine_{b}"].item()
        assert -1 < cosine < 1
        for name in (a, b):
            conflicts[name] += (cosine < 0) / 2
    assert {name: terms[f"{name}/conflicts"].item() for name in TASKS} == conflicts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"round.update": "per_task"}, "round.update 'per_task'"),
        ({"round.update": "joint", "mode": "pretrain"}, "mode 'pretrain'"),
    ],
)
def test_what_has_no_conflicts_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, values | {"optimizer.surgery": "pcgrad"})
    assert str(caught.value).startswith("overrides: optimizer.surgery: must be 'none' with ")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_task_is_refused():
    tasks = {"sst": TASKS["sst"]}
    with pytest.raises(ConfigError, match=r"^optimizer\.surgery: must be 'none' with one task"):
        replace(SURGERY, tasks=tasks, optimizer=OptimizerConfig(surgery="pcgrad"))
