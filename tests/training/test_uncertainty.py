"""Task weights by uncertainty (arXiv 1705.07115) against their definition."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sbrrt_fast.config import (
    BregmanConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    RoundConfig,
    RunConfig,
    SmartConfig,
)
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.heads import uncertain_loss
from sbrrt_fast.model.io import load_model
from sbrrt_fast.training.checkpoint import load_state
from sbrrt_fast.training.trainer import Trainer
from tests.helpers import kill_in_round, read_log, small_sample, tiny_backbone
from tests.model.models import TASKS
from tests.training.steps import (
    SBRRT,
    autograd,
    build,
    differentiated,
    learnt,
    losses,
    make_round,
    written_out,
)

LEARNT = learnt(SBRRT)
VARIANCES = {"sst": 0.7, "para": -1.1, "sts": 0.4}
REGRESSION = {"sst": False, "para": False, "sts": True}
RNG = torch.tensor([0, 1])


def build_at(kind, config=LEARNT, dtype=torch.float64, values=VARIANCES):
    """A step at these log variances, whose teacher differs from the student."""
    step = build(kind, config, dtype)
    step.round(make_round(9), 9)
    with torch.no_grad():
        for name, s in step.model.log_variances().items():
            s.fill_(values[name])
    return step


def formula(name: str, terms: dict, s: float, weight: float) -> float:
    """Equations 7 and 10 with s = log sigma^2."""
    whole = weight * (terms["loss"] + 1.0 * terms["smart"] + 0.8 * terms["bregman"]).item()
    sigma = math.exp(s / 2)
    return whole / sigma**2 / (2 if REGRESSION[name] else 1) + math.log(sigma)


@pytest.mark.parametrize(
    ("kind", "dtype", "rel"), [(autograd, torch.float64, 1e-12), (written_out, torch.float32, 1e-5)]
)
def test_the_total_is_the_definition_s(kind, dtype, rel):
    step = build_at(kind, dtype=dtype)
    for batch in make_round():
        terms = differentiated(step, batch, RNG)
        name, weight = batch.name, LEARNT.tasks[batch.name].weight
        expected = formula(name, terms, VARIANCES[name], weight)
        assert terms["total"].item() == pytest.approx(expected, rel=rel)
        assert terms["log_variance"].item() == pytest.approx(VARIANCES[name], rel=1e-6)
        assert terms["bregman"] > 0 < terms["smart"]
        assert weight == (0.25 if name == "sts" else 1.0)


@pytest.mark.parametrize("name", TASKS)
def test_the_gradient_of_a_log_variance_is_the_difference_quotient(name):
    step = build_at(autograd)
    batch = next(b for b in make_round() if b.name == name)
    s, eps = step.model.log_variances()[name], 1e-5
    (found,) = torch.autograd.grad(losses(step, batch, RNG)["total"], s)
    values = []
    for shift in (eps, -2 * eps):
        with torch.no_grad():
            s += shift
        values.append(losses(step, batch, RNG)["total"].item())
    assert found.item() == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_written_out_gradients_are_those_of_float64(frozen):
    names = [name for name in TASKS if name != "sts"] if frozen else list(TASKS)
    ours, exact = (
        build(kind, LEARNT, dtype, frozen=frozen)
        for kind, dtype in ((written_out, torch.float32), (autograd, torch.float64))
    )
    for step in (ours, exact):
        for name, s in step.model.log_variances().items():
            s.data.fill_(VARIANCES[name])
    for batch in make_round():
        if batch.name not in names:
            continue
        found, expected = ours.gradients(batch, RNG), exact.gradients(batch, RNG)
        assert found.keys() == expected.keys()
        assert f"heads.{batch.name}.log_variance" in expected
        largest = max(g.norm() for g in expected.values())
        for name, value in expected.items():
            if value.norm() > 1e-5 * largest:
                assert (found[name] - value).norm() / value.norm() < 1e-4, (batch.name, name)


def test_the_best_log_variance_is_the_log_of_the_loss():
    """Of classes log 2L, of values log L: where the gradient is 0."""
    for task, factor in ((TASKS["sst"], 2.0), (TASKS["sts"], 1.0)):
        loss = torch.tensor(0.3, dtype=torch.float64)
        s = torch.log(factor * loss).requires_grad_()
        (grad,) = torch.autograd.grad(uncertain_loss(task, loss, s), s)
        assert grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", [autograd, written_out])
def test_a_step_per_task_moves_its_own_log_variance_alone(kind):
    step = build(kind, LEARNT, torch.float32)
    for position, batch in enumerate(make_round()):
        before = {name: s.item() for name, s in step.model.log_variances().items()}
        step.round([batch], position)
        after = {name: s.item() for name, s in step.model.log_variances().items()}
        assert [name for name in after if after[name] != before[name]] == [batch.name]


def test_log_variances_have_the_heads_learning_rate_and_no_decay():
    optimizer = OptimizerConfig(head_learning_rate=3e-3, weight_decay=0.5)
    step = build(autograd, replace(LEARNT, optimizer=optimizer))
    ours = {id(s) for s in step.model.log_variances().values()}
    groups = [g for g in step.optimizer.param_groups if ours & {id(p) for p in g["params"]}]
    assert [group["name"] for group in groups] == ["heads.no_decay"]
    assert groups[0]["weight_decay"] == 0.0
    assert groups[0]["peak_lr"] == 3e-3
    assert ours <= {id(p) for p in groups[0]["params"]}


def test_fixed_weights_have_no_log_variances():
    model = build(written_out, SBRRT).model
    assert not model.log_variances()
    assert not [name for name in model.state_dict() if "variance" in name]


def test_a_weight_of_zero_is_refused():
    values = {"round.task_weights": "uncertainty", "tasks.sst.weight": 0.0}
    with pytest.raises(ConfigError, match=r"^overrides: tasks\.sst\.weight: must be above 0 with"):
        load_config(None, values)
    load_config(None, values | {"round.task_weights": "fixed"})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("uncertainty")
    return RunConfig(
        data_dir=small_sample(folder / "data"),
        model=ModelConfig(backbone=str(tiny_backbone(folder / "backbone"))),
        rounds=6,
        smart=SmartConfig(weight=1.0),
        bregman=BregmanConfig(weight=0.8),
        round=RoundConfig(batch_size=4, epoch_task="sts", task_weights="uncertainty"),
        log=LogConfig(every=2, state_every=1, tensorboard=False),
    )


@pytest.mark.parametrize("update", ["per_task", "joint, surgery"])
def test_a_run_keeps_them_resumes_and_leaves_them_out_of_its_models(base, tmp_path, update):
    config = replace(base, round=replace(base.round, update=update.partition(",")[0]))
    if "surgery" in update:
        config = replace(config, optimizer=OptimizerConfig(surgery="pcgrad"))
    lines: list[str] = []
    whole = Trainer(replace(config, output=tmp_path / "whole"), log=lines.append).run()
    variances = whole["log_variances"]
    assert set(variances) == set(TASKS) and all(variances.values())
    assert any(line.startswith("log variances of the tasks") for line in lines)
    logged = [line for line in read_log(tmp_path / "whole") if "sst/log_variance" in line]
    assert len(logged) >= 3 and logged[0]["sst/log_variance"] != logged[-1]["sst/log_variance"]
    assert ("sst/cosine_para" in logged[0]) == ("surgery" in update)
    tensors, _ = load_state(tmp_path / "whole" / "state")
    assert {n: tensors[f"model.heads.{n}.log_variance"].item() for n in TASKS} == variances

    heads = load_file(tmp_path / "whole" / "last" / "heads.safetensors")
    assert not [name for name in heads if "variance" in name]
    assert not load_model(tmp_path / "whole" / "last")[0].log_variances()

    again = replace(config, output=tmp_path / "again")
    kill_in_round(Trainer(again, log=lambda line: None), 4)
    resumed = Trainer(replace(again, resume=True), log=lambda line: None).run()
    assert resumed["log_variances"] == variances
    assert resumed["means"] == whole["means"]
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["log_variances"]
