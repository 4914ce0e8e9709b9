"""Named settings of SMART's one mechanism.

``paper`` is Algorithm 1 of arXiv 1911.03437 with its epsilon, sigma and eta. ``mtdnn`` is what
published code computes: an unnormalised gradient added to noise that dominates it, scaled to unit
sup-norm per token. ``adversarial`` is the gradient's direction alone, at a radius chosen by the
size of R_s. ``docs/smart.md`` has the measurements behind them.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.errors import ConfigError

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
    for name, ok, rule in (
        ("num_steps", resolved.num_steps >= 1, ">= 1"),
        ("sigma", resolved.sigma > 0, "> 0"),
        ("step_size", resolved.step_size > 0, "> 0"),
        ("radius", 0 < resolved.radius < math.inf, "> 0 and finite"),
        ("weight", resolved.weight >= 0, ">= 0"),
    ):
        if not ok:
            raise ConfigError(f"smart.{name} must be {rule}, got {getattr(resolved, name)}")
    return resolved
