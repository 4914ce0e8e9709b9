"""Named settings of SMART's one mechanism.

``paper`` is Algorithm 1 of arXiv 1911.03437 with its epsilon, sigma and eta. ``mtdnn`` is what
published code computes: an unnormalised gradient added to noise that dominates it, scaled to unit
sup-norm per token. ``adversarial`` is the gradient's direction alone, at a radius chosen by the
size of R_s. ``docs/smart.md`` has the measurements behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from sbrrt_fast.ranges import FLOAT32, Rule, check, is_float32
from sbrrt_fast.settings import SmartConfig

PRESETS: dict[str, dict] = {
    "paper": {
        "sigma": 1e-5,
        "step_size": 1e-3,
        "num_steps": 1,
        "normalize_gradient": True,
        "projection": "ball",
        "radius": 1e-5,
        "norm": "inf",
        "level": "sequence",
        "perturb_special": True,
    },
    "mtdnn": {
        "sigma": 1e-5,
        "step_size": 1e-3,
        "num_steps": 1,
        "normalize_gradient": False,
        "projection": "normalize",
        "radius": 1.0,
        "norm": "inf",
        "level": "token",
        "perturb_special": True,
    },
    "adversarial": {
        "sigma": 1e-5,
        "step_size": math.inf,
        "num_steps": 1,
        "normalize_gradient": True,
        "projection": "normalize",
        "radius": 0.02,
        "norm": "inf",
        "level": "token",
        "perturb_special": False,
    },
}


def resolve(config: SmartConfig) -> SmartConfig:
    """The configuration with every None filled from its preset.

    Raises:
        ConfigError: a value outside its range, naming ``smart.<field>``.
    """
    preset = PRESETS[config.preset]
    values = {name: value for name, value in preset.items() if getattr(config, name) is None}
    resolved = replace(config, **values)
    assert all(getattr(resolved, f.name) is not None for f in fields(resolved))
    check(_rules(resolved))
    return resolved


def weighted(config: SmartConfig | None, owner: str) -> SmartConfig:
    """The resolved settings of what adds R_s to a loss by itself; a weight of 1 if None.

    Raises:
        ConfigError: a value outside its range. ValueError: the weight is 0, naming the owner.
    """
    config = resolve(config or SmartConfig(weight=1.0))
    if config.weight == 0:
        raise ValueError(f"{owner}: smart.weight is 0; give SmartConfig(weight=1.0)")
    return config


def ascent_options(config: SmartConfig) -> dict[str, Any]:
    """Keyword arguments of ``smart_ascend`` from a resolved configuration."""
    names = ("step_size", "normalize_gradient", "projection", "radius", "norm", "level")
    return {name: getattr(config, name) for name in names}


def _rules(s: SmartConfig) -> Iterator[Rule]:
    yield "smart.weight", s.weight, 0 <= s.weight < math.inf, "at least 0"
    yield "smart.sigma", s.sigma, 0 < s.sigma < math.inf, "above 0"
    yield "smart.step_size", s.step_size, s.step_size > 0, "above 0"
    yield "smart.num_steps", s.num_steps, s.num_steps >= 1, "at least 1"
    yield "smart.radius", s.radius, 0 < s.radius < math.inf, "above 0"
    for name in ("weight", "sigma", "step_size", "radius"):
        value = getattr(s, name)
        is_infinite_step = name == "step_size" and value == math.inf
        yield f"smart.{name}", value, is_infinite_step or is_float32(value), FLOAT32
    yield (
        "smart.radius",
        s.radius,
        is_float32(s.radius**2),
        "from 1.1e-19 to 1.8e+19: R_s is quadratic in it, and float32 has to hold the square",
    )
