"""The build backend takes the environment's torch under isolation, and needs none for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).resolve().parents[2]
# What pip's isolation does: the environment's packages go from the path.
ISOLATE = """
import sys
sys.path[:] = [p for p in sys.path if not p.endswith(("site-packages", "dist-packages"))]
sys.path.append({isolated!r})
"""
BACKEND = """
import sys
sys.path.insert(0, "build_backend")
import sbrrt_build
"""
FIND = """
import importlib.util, setuptools
assert importlib.util.find_spec("torch") is None, "not isolated"
sbrrt_build.show_environment()
import torch
print(torch.__file__, setuptools.__file__)
"""


@pytest.fixture
def isolated(tmp_path) -> dict[str, str]:
    """The environment of a Python that sees setuptools alone."""
    place = tmp_path / "isolated"
    place.mkdir()
    installed = Path(setuptools.__file__).parents[1]
    for path in (*installed.glob("setuptools*"), installed / "_distutils_hack"):
        (place / path.name).symlink_to(path)
    (tmp_path / "sitecustomize.py").write_text(ISOLATE.format(isolated=str(place)))
    return {**os.environ, "PYTHONPATH": str(tmp_path), "SBRRT_EXTENSION": "1"}


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BACKEND + code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_environment_s_torch_is_found_behind_what_isolation_brought(isolated):
    result = run(FIND, isolated)
    assert result.returncode == 0, result.stderr
    found, tools = result.stdout.split()
    assert found == torch.__file__
    assert Path(tools).parents[1] == Path(isolated["PYTHONPATH"], "isolated")


@pytest.mark.parametrize("hook", ["wheel", "editable"])
def test_no_hook_asks_for_a_torch(isolated, hook):
    result = run(f"print(sbrrt_build.get_requires_for_build_{hook}())", isolated)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("hook", "asked"), [("sdist", "1"), ("wheel", "0"), ("editable", "0")])
def test_what_has_no_extension_needs_no_torch(isolated, hook, asked):
    code = "import site; site.getsitepackages = site.getusersitepackages = lambda: []\n"
    code += "sys.modules['torch'] = None\n"
    result = run(
        f"{code}print(sbrrt_build.get_requires_for_build_{hook}())",
        isolated | {"SBRRT_EXTENSION": asked},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("hook", ["wheel", "editable"])
def test_a_build_that_sees_no_torch_is_refused_before_it_starts(isolated, hook):
    """Such as `python -m build`, whose environment is nobody's."""
    code = "import site; site.getsitepackages = lambda: []\n"
    result = run(f"{code}print(sbrrt_build.get_requires_for_build_{hook}())", isolated)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("sbrrt_fast: building needs torch >= 2.11 in this Python")
    assert "--no-isolation" in line and "SBRRT_EXTENSION=0" in line


def test_other_values_of_the_variable_are_told(isolated):
    code = "sbrrt_build.get_requires_for_build_wheel()"
    result = run(code, isolated | {"SBRRT_EXTENSION": "no"})
    assert result.returncode == 1
    assert result.stderr == "sbrrt_fast: SBRRT_EXTENSION is 0 or 1, not 'no'.\n"
