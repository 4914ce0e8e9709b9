"""Recipes by name. That a wheel has them: tests/build/test_packaging.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from sbrrt_fast.config_io import load_config
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.recipe_files import recipe_names, recipe_path

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_recipe_has_a_name_and_can_be_read():
    assert recipe_names() == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert "sbrrt" in recipe_names()
    for name in recipe_names():
        assert load_config(recipe_path(name)) == load_config(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sbrt", "there is no recipe 'sbrt'; did you mean 'sbrrt'?"),
        ("../configs/sbrrt", "there is no recipe '../configs/sbrrt'; there are"),
        ("xyz", "there is no recipe 'xyz'; there are cfimdb-finetune, "),
        ("", "there is no recipe ''; there are "),
    ],
)
def test_an_unknown_name_is_told_the_known_ones(name, message):
    with pytest.raises(ConfigError) as caught:
        recipe_path(name)
    assert str(caught.value).startswith(message)
