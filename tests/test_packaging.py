"""The sdist and the wheel are complete, install elsewhere, and fail to build with clear words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from sbrrt_fast._extension import extension, extension_error

assert extension is not None, extension_error
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["csrc", "kernels", "sbrrt_fast", "configs", "tests", "docs", "benchmarks", ".ci"]
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"]
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")


def run(command: list, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the source tree without anything built."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(checkout) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it alone."""
    result = run([sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"], checkout)
    assert result.returncode == 0, result.stdout + result.stderr
    return next((checkout / "dist").glob("*.tar.gz")), next((checkout / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """Python of a fresh environment with the wheel and, beside it, this environment's torch."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    result = run([*pip, "install", "--no-deps", "--no-index", built[1]], folder)
    assert result.returncode == 0, result.stdout + result.stderr
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    borrowed = Path(torch.__file__).resolve().parent.parent
    Path(site.stdout.strip(), "borrowed.pth").write_text(f"{borrowed}\n")
    return python


def python_files(folder: Path) -> set[str]:
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.py")}


def test_sdist_has_every_source(checkout, built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {p.relative_to(checkout).as_posix() for p in checkout.glob("csrc/**/*") if p.is_file()}
    assert {"csrc/bindings.cpp", "csrc/common/philox.h"} <= native
    wanted = native | python_files(checkout / "sbrrt_fast") | python_files(checkout / "kernels")
    wanted |= {name for name in FILES if (checkout / name).exists()}
    assert wanted - names == set()


def test_wheel_has_every_module_and_nothing_else(checkout, built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    kernels = {f"sbrrt_fast/{name}" for name in python_files(checkout / "kernels")}
    assert "sbrrt_fast/kernels/__init__.py" in kernels
    modules = {name for name in names if name.endswith(".py")}
    wanted = python_files(checkout / "sbrrt_fast") | kernels
    assert modules == wanted, "list the package in pyproject.toml, [tool.setuptools] packages"
    assert [name for name in names if name.startswith("sbrrt_fast/_C.") and name.endswith(".so")]
    assert {name.split("/")[0] for name in names} == {"sbrrt_fast", "sbrrt_fast-0.1.0.dist-info"}


USE = """
import importlib.util, sys
import sbrrt_fast
assert "torch" not in sys.modules, "import sbrrt_fast loads torch"
import torch
from sbrrt_fast._extension import extension, extension_error
assert extension is not None, extension_error
import sbrrt_fast.kernels
assert importlib.util.find_spec("kernels") is None
rng = torch.tensor([1, 2])
mask = torch.ops.sbrrt.dropout_mask(torch.tensor([0, 8]), 6, 0.5, rng, 3, torch.float32)
print(sbrrt_fast.__version__, sbrrt_fast.__file__, sbrrt_fast.kernels.__file__, mask.tolist())
"""


def test_wheel_runs_in_a_fresh_environment(installed, tmp_path):
    result = run([installed, "-c", USE], tmp_path)
    assert result.returncode == 0, result.stderr
    version, package, kernels, mask = result.stdout.strip().split(maxsplit=3)
    assert version == "0.1.0"
    home = installed.parent.parent.as_posix()
    assert package.startswith(home)
    assert kernels.startswith(home)
    offsets, rng = torch.tensor([0, 8]), torch.tensor([1, 2])
    here = torch.ops.sbrrt.dropout_mask(offsets, 6, 0.5, rng, 3, torch.float32)
    assert mask == str(here.tolist())


def build_output(checkout: Path, **environment: str) -> str:
    """Everything a wheel build says that is meant to fail."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "."]
    result = run(command, checkout, **environment)
    assert result.returncode != 0
    return result.stdout + result.stderr


def test_missing_torch_is_one_clear_message(checkout, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    output = build_output(checkout, PYTHONPATH=str(tmp_path))
    assert "sbrrt_fast: building needs torch >= 2.11" in output
    assert "No module named 'torch'" in output
    assert "pip install torch" in output
    assert "Traceback" not in output


def test_missing_compiler_is_one_clear_message(checkout):
    output = build_output(checkout, CXX="/nonexistent")
    assert "the C++ compiler `/nonexistent` cannot be used: No such file or directory" in output
    assert "apt-get install g++" in output
    assert "Traceback" not in output


def test_old_compiler_is_one_clear_message(checkout, tmp_path):
    compiler = tmp_path / "old-g++"
    compiler.write_text("#!/bin/sh\necho \"unrecognized option '-std=c++20'\" >&2\nexit 1\n")
    compiler.chmod(0o755)
    output = build_output(checkout, CXX=str(compiler))
    assert f"`{compiler}` cannot be used: unrecognized option '-std=c++20'" in output
    assert "g++ >= 11 or clang >= 14" in output
    assert "Traceback" not in output
