"""The ranges of a configuration's values."""

from __future__ import annotations

import math

import pytest

from sbrrt_fast.commands.compare import with_overrides
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_cli import parse_cli, parse_run_config
from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError
from tests.helpers import config_file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 0),
        ("epochs", 0),
        ("seed", -1),
        ("model.hidden_dropout", 1.0),
        ("model.attention_dropout", -0.1),
        ("model.hidden_dropout", 1.0 - 1e-12),  # 1 as float32
        ("model.max_length", 2),
        ("smart.weight", -1.0),
        ("smart.weight", math.nan),
        ("smart.sigma", -1e-9),
        ("smart.sigma", 0.0),
        ("smart.step_size", 0.0),
        ("smart.num_steps", 0),
        ("smart.radius", 0.0),
        ("smart.radius", math.inf),
        ("bregman.weight", -0.5),
        ("bregman.beta", 1.01),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.head_learning_rate", -1e-5),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.betas", (0.9, 1.0)),
        ("optimizer.eps", 0.0),
        ("optimizer.warmup", 1.5),
        ("optimizer.clip_norm", -1.0),
        ("optimizer.layer_decay", 0.0),
        ("optimizer.layer_decay", 1.01),
        ("round.batch_size", 0),
        ("round.epoch_task", "cfimdb"),
        ("log.every", 0),
        ("log.evaluate_every", 0),
        ("log.dev_rows", 0),
        ("optimizer.eps", 1e-42),  # no normal float32
        ("tasks.sst.weight", -1.0),
        ("tasks.sst.num_classes", 1_000_001),
    ],
)
def test_senseless_values_are_named_by_their_key(key, value):
    with pytest.raises(ConfigError) as caught:
        load_config(None, {key: value})
    assert str(caught.value).startswith(f"overrides: {key}: must be ")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("smart.step_size", math.inf),
        ("bregman.beta", 1.0),
        ("optimizer.warmup", 1.0),
        ("optimizer.clip_norm", 0.0),
        ("optimizer.layer_decay", 1.0),
        ("optimizer.head_learning_rate", None),
        ("round.epoch_task", "sts"),
    ],
)
def test_limits_are_allowed(key, value):
    load_config(None, {key: value})


def test_a_cross_task_needs_a_longer_sequence(tmp_path):
    for encoding, shortest in (("siamese", 3), ("cross", 5)):
        values = {"tasks.para.encoding": encoding, "model.max_length": shortest}
        config = load_config(None, values)
        with pytest.raises(ConfigError, match=f"^model.max_length: must be at least {shortest}"):
            parse_cli([f"--model.max-length={shortest - 1}"], config)


def test_a_value_out_of_range_is_named_with_its_file(tmp_path):
    path = config_file(tmp_path, "smart: {sigma: 0}\n")
    message = f"{path}: smart.sigma: must be above 0, got 0.0"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == message
    with pytest.raises(ConfigError, match=r"x.yaml: smart.sigma: must be above 0"):
        parse_run_config(["--config", str(path)], "p")
    with pytest.raises(ConfigError, match=r"^--a: smart.sigma: must be above 0, got 0"):
        with_overrides(RunConfig(), "smart.sigma=0", "--a")
