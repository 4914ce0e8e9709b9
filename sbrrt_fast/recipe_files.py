"""The recipes that come with the package.

They are ``configs/*.yaml`` of the source tree, and ``sbrrt_fast/recipes/*.yaml`` where the package
is installed from a wheel.
"""

from __future__ import annotations

from pathlib import Path

from sbrrt_fast.config_fields import did_you_mean
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

_PACKAGE = Path(__file__).resolve().parent


def recipes_folder() -> Path:
    """The folder of the recipes; in a source tree, an editable install included, ``configs/``."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def recipe_names() -> list[str]:
    """The names of all recipes, such as ``sbrrt``, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe.

    Args:
        name: without folder and ending, such as ``sbrrt``.

    Raises:
        ConfigError: there is no recipe of that name; the message has the nearest one, or all.
    """
    names = recipe_names()
    if name not in names:
        hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
        raise ConfigError(f"there is no recipe '{shown(name)}'{hint}")
    return recipes_folder() / f"{name}.yaml"
