"""An extension for another torch is refused in one line; the package works without one."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sbrrt_fast import _extension
from sbrrt_fast.torch_build import torch_build

HERE = torch_build(torch)
# Runs a command with this torch under another name.
AS = """
import sys, torch
torch.__version__, torch.version.cuda = sys.argv[1], sys.argv[2] or None
from sbrrt_fast.cli import main
sys.exit(main(sys.argv[3:]))
"""
BUILT = pytest.mark.skipif(_extension.extension is None, reason="the C++ ops are not built")


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("version", "kinds", "told"),
    [
        ("2.13.0", {}, "2.13.0+cpu"),
        ("2.13.0+cpu", {}, "2.13.0+cpu"),
        ("2.13.0", {"cuda": "13.0"}, "2.13.0+cu130"),
        ("2.14.0.dev20260101+cu128", {"cuda": "12.8"}, "2.14.0.dev20260101+cu128"),
        ("2.13.0", {"hip": "6.4.43482-0f2d60242"}, "2.13.0+rocm6.4"),
        ("2.13.0+xpu", {"xpu": "20250302"}, "2.13.0+xpu"),
        ("2.14.0a0+git1234abc", {}, "2.14.0a0+cpu"),
    ],
)
def test_release_and_kind_are_told(version, kinds, told):
    kinds = {"cuda": None, "hip": None, **kinds}
    stand_in = types.SimpleNamespace(__version__=version, version=types.SimpleNamespace(**kinds))
    assert torch_build(stand_in) == told


@BUILT
def test_the_extension_here_says_which_torch_it_is_for():
    assert _extension.built_for(Path(_extension.extension.__file__)) == HERE


@BUILT
@pytest.mark.parametrize(
    ("version", "cuda", "told"),
    [("2.99.0", "", "2.99.0+cpu"), (torch.__version__, "13.9", f"{HERE.partition('+')[0]}+cu139")],
)
@pytest.mark.parametrize("command", [("info",), ("train", "--rounds", "1"), ("evaluate", "x")])
def test_another_torch_is_one_line_and_an_exit_status(version, cuda, told, command):
    result = run(AS, version, cuda, *command)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"sbrrt-fast {command[0]}: the C++ ops were compiled for torch {HERE},")
    assert f"torch {told} is here" in line
    assert "`pip install .`" in line and "SBRRT_EXTENSION=0" in line


@BUILT
def test_another_torch_is_an_error_in_python_too():
    code = AS.replace("from sbrrt_fast.cli import main", "from sbrrt_fast import MiniBert")
    result = run(code, "2.99.0", "")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("sbrrt_fast.errors.ExtensionError: the C++ ops were compiled for torch")


def test_an_extension_that_does_not_load_is_one_line(tmp_path):
    """Such as one whose record was lost."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / f"_C{suffix}").write_bytes(b"no library")
    code = (
        f"import sys, sbrrt_fast; sbrrt_fast.__path__.insert(0, {str(tmp_path)!r});"
        "from sbrrt_fast.cli import main; sys.exit(main(['info']))"
    )
    result = run(code)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"sbrrt-fast info: the C++ ops do not load with torch {HERE} (")


def test_the_extension_can_be_left_out():
    result = run(AS, "2.99.0", "", "info", "--json", SBRRT_EXTENSION="0")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["extension"]["reason"] == "the C++ ops are left out: SBRRT_EXTENSION=0 is set"
    assert {reasons["reference"] for reasons in facts["ops"].values()} == {None}
    assert None not in {reasons["cpu"] for reasons in facts["ops"].values()}


def test_other_values_of_the_variable_are_told():
    result = run(AS, torch.__version__, "", "info", SBRRT_EXTENSION="no")
    assert result.returncode == 2
    assert result.stderr == "sbrrt-fast info: SBRRT_EXTENSION is 0 or 1, not 'no'\n"


def test_an_extension_without_a_record_is_for_any_torch(tmp_path):
    assert _extension.built_for(tmp_path / "_C.so") is None
    (tmp_path / "_C.json").write_text('{"torch": "2.13.0+cpu"}')
    assert _extension.built_for(tmp_path / "_C.so") == "2.13.0+cpu"
