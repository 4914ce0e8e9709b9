"""Tasks that are trained without the model's dropout, beside others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.config import LoraConfig
from sbrrt_fast.model.lora import add_lora
from tests.model.models import random_batch, random_model
from tests.training.steps import (
    JOINT,
    SBRRT,
    autograd,
    build,
    differentiated,
    make_round,
    step_over,
    without_dropout,
    written_out,
)

RNG = torch.tensor([3, 1])
KINDS = [autograd, written_out]


def build_without_rates(kind, config):
    """``build``'s step, over a model that has no dropout at all."""
    torch.manual_seed(0)
    encoder = (model := random_model(tasks=config.tasks)).encoder
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder.set_config(replace(encoder.config, **none))
    return step_over(kind, model, config)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_such_a_task_is_trained_as_by_a_model_without_dropout(kind, is_shared):
    plain = replace(SBRRT, smart=replace(SBRRT.smart, shared_dropout=is_shared))
    ours, dropping = build(kind, without_dropout(plain, "para")), build(kind, plain)
    none = build_without_rates(kind, plain)
    for batch in make_round():
        like, other = (none, dropping) if batch.name == "para" else (dropping, none)
        found, expected = ours.gradients(batch, RNG), like.gradients(batch, RNG)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), batch.name
        terms = differentiated(ours, batch, RNG)
        assert terms == differentiated(like, batch, RNG)
        assert terms != differentiated(other, batch, RNG)


@pytest.mark.parametrize("kind", KINDS)
def test_a_joint_update_has_the_sum_of_both_kinds_gradients(kind):
    """Tasks with and without dropout are two backwards, whose gradients are added up."""
    config = without_dropout(JOINT, "para")
    batches, expected = make_round(), {}
    for batch in batches:
        for name, grad in build(kind, config).gradients(batch, RNG).items():
            expected[name] = expected.get(name, 0) + grad
    step = build(kind, config)
    groups = step.passes.groups(batches)
    step.passes.refresh()
    step.differentiate([groups], RNG)
    found = step.passes.gradients(groups)
    for name, parameter in step.model.named_parameters():
        grad = found[id(parameter)]
        grad = grad if isinstance(grad, torch.Tensor) else grad.dense(parameter)
        assert (grad - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-8, name


def test_adapters_drop_nothing_of_such_a_task():
    pytest.importorskip("peft")

    def step_with_adapters(config, p: float):
        torch.manual_seed(0)
        model = random_model(tasks=config.tasks)
        add_lora(model.encoder, LoraConfig(rank=2, dropout=p), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # else adapters start at zero
                    parameter.normal_()
        return step_over(autograd, model, config)

    batch = next(b for b in make_round() if b.name == "para")
    config = without_dropout(SBRRT, "para")
    ours, without = (step_with_adapters(config, p).gradients(batch, RNG) for p in (0.5, 0.0))
    assert all(torch.equal(ours[name], without[name]) for name in without)
    dropping = step_with_adapters(SBRRT, 0.5).gradients(batch, RNG)
    assert not all(torch.equal(ours[name], dropping[name]) for name in ours)


def test_only_the_two_kinds_go_apart():
    batches = make_round()
    names = [g.names for g in build(written_out, JOINT).passes.groups(batches)]
    assert len(names) == 1
    step = build(written_out, without_dropout(JOINT, "para", "sts"))
    assert [set(g.names) for g in step.passes.groups(batches)] == [{"sst"}, {"para", "sts"}]
    assert [set(g.names) for g in step.passes.groups(batches[1:])] == [{"para", "sts"}]
    none = build_without_rates(written_out, without_dropout(JOINT, "para"))
    assert len(none.passes.groups(batches)) == 1


def test_a_model_in_train_drops_nothing_of_such_a_task():
    tasks = without_dropout(SBRRT, "para").tasks
    model, batch = random_model(tasks=tasks), random_batch([5, 8, 4, 6])
    in_eval = model.eval()("para", batch)
    model.train()
    assert torch.equal(model("para", batch), in_eval)
    assert not torch.equal(model("sst", batch), model("sst", batch))
