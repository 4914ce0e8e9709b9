"""Layer-wise decay of learning rates, by its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.config import OptimizerConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training.step.optimizer import build_optimizer, learning_rates, rate_factors
from tests.helpers import read_log, train_tiny
from tests.model.models import random_model
from tests.training.steps import SBRRT, autograd, build, captured, make_round, written_out

DECAY = 0.5
LAYER0, LAYER1 = "encoder.encoder.layer.0.", "encoder.encoder.layer.1."


def expected_factor(name: str) -> float:
    """By hand, for two layers."""
    if name.startswith("encoder.embeddings."):
        return 0.25
    return 0.5 if name.startswith(LAYER0) else 1.0


def test_rates_are_those_of_the_definition():
    model = random_model(pooling="cls")
    config = OptimizerConfig(learning_rate=1e-3, head_learning_rate=4e-3, layer_decay=DECAY)
    optimizer = build_optimizer(model.named_parameters(), config)
    name_of = {id(p): name for name, p in model.named_parameters()}
    rates = {name_of[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == set(name_of.values())
    for name, rate in rates.items():
        peak = 4e-3 if name.startswith("heads.") else 1e-3
        assert rate == peak * expected_factor(name), name
    decays = {
        name_of[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
    }
    assert all((decay > 0) == (model.get_parameter(n).ndim >= 2) for n, decay in decays.items())
    assert learning_rates(optimizer) == {
        "learning_rate/embeddings": 0.25e-3,
        "learning_rate/layer_0": 0.5e-3,
        "learning_rate/encoder": 1e-3,
        "learning_rate/heads": 4e-3,
    }


def test_twelve_layers():
    names = [f"encoder.encoder.layer.{i}.output.dense.weight" for i in range(12)]
    names += ["encoder.embeddings.word_embeddings.weight", "encoder.pooler.dense.weight"]
    names += ["heads.layer.classifier.weight"]
    factors = [factor for _, factor in rate_factors(names, 0.95).values()]
    assert factors == pytest.approx([*(0.95 ** (11 - i) for i in range(12)), 0.95**12, 1.0, 1.0])


def test_groups_of_a_decay_of_one_are_those_of_no_decay():
    """So states that were saved before resume."""
    optimizer = build_optimizer(random_model().named_parameters(), OptimizerConfig())
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["encoder.decay", "encoder.no_decay", "heads.decay", "heads.no_decay"]


def test_an_encoder_without_layers_of_its_own_is_refused():
    named = [("encoder.shared.weight", torch.nn.Parameter(torch.zeros(2, 2)))]
    with pytest.raises(ConfigError, match=r"optimizer\.layer_decay: .* leave it out"):
        build_optimizer(named, OptimizerConfig(layer_decay=0.9))


@pytest.mark.parametrize(
    ("kind", "backend"), [(written_out, "auto"), (captured, "auto"), (autograd, "reference")]
)
def test_updates_are_those_of_adamw_in_float64(kind, backend):
    eps = 1e-4  # far above the noise of gradients that are zero, as the key biases' are
    rates = {"learning_rate": 1e-2, "warmup": 0.0, "decay": "constant", "layer_decay": DECAY}
    settings = OptimizerConfig(weight_decay=0.1, eps=eps, clip_norm=0.0, **rates)
    config = replace(SBRRT, optimizer=settings, backend=backend)
    step = build(kind, config, pooling="cls")
    (batch, *_) = make_round()
    weights = {n: p.detach().double().clone() for n, p in step.model.named_parameters()}
    means, squares = ({n: torch.zeros_like(p) for n, p in weights.items()} for _ in range(2))
    for index in range(5):  # a captured step replays from the third on
        gradients = step.gradients(batch, torch.tensor([config.seed, index]))
        step.round([batch], index)
        for name, gradient in gradients.items():
            g, p = gradient.double(), weights[name]
            means[name] = 0.9 * means[name] + 0.1 * g
            squares[name] = 0.999 * squares[name] + 0.001 * g * g
            m, v = (
                means[name] / (1 - 0.9 ** (index + 1)),
                squares[name] / (1 - 0.999 ** (index + 1)),
            )
            rate = 1e-2 * expected_factor(name)
            decay = 0.1 if p.ndim >= 2 else 0.0
            weights[name] = p - rate * decay * p - rate * m / (v.sqrt() + eps)
        for name, p in step.model.named_parameters():
            torch.testing.assert_close(p.detach().double(), weights[name], rtol=0, atol=2e-6)
    assert kind is not captured or step.num_replays > 0


def test_a_run_logs_the_rate_of_every_part(tmp_path):
    flags = ("--optimizer.layer-decay", "0.5", "--optimizer.decay", "constant", "--log.every", "1")
    run = train_tiny(
        tmp_path, *flags, "--optimizer.warmup", "0", "--optimizer.learning-rate", "1e-3"
    )
    line = next(record for record in read_log(run) if "num_rounds" in record)
    rates = {k.split("/")[1]: v for k, v in line.items() if k.startswith("learning_rate/")}
    assert rates == {"embeddings": 0.25e-3, "layer_0": 0.5e-3, "encoder": 1e-3, "heads": 1e-3}
