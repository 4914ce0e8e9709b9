"""The sdist and the wheel are complete, install elsewhere, and fail to build with clear words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.torch_build import torch_build

assert extension is not None, extension_error
slow = pytest.mark.slow  # the one compilation takes minutes
ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    "build_backend",
    "csrc",
    "kernels",
    "sbrrt_fast",
    "configs",
    "tests",
    "docs",
    "benchmarks",
    ".ci",
]
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"]
IGNORED = shutil.ignore_patterns("__pycache__", "_C*", "*.egg-info")


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


@dataclass(frozen=True)
class Built:
    """The sdist, the wheel that was built from it alone, and what the build printed."""

    sdist: Path
    wheel: Path
    output: str


@pytest.fixture(scope="module")
def built(checkout) -> Built:
    result = run([sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"], checkout)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    dist = checkout / "dist"
    return Built(next(dist.glob("*.tar.gz")), next(dist.glob("*.whl")), output)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """Python of a fresh environment with the wheel and, beside it, this environment's torch."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    result = run([*pip, "install", "--no-deps", "--no-index", built.wheel], folder)
    assert result.returncode == 0, result.stdout + result.stderr
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    borrowed = Path(torch.__file__).resolve().parents[1]
    Path(site.stdout.strip(), "borrowed.pth").write_text(f"{borrowed}\n")
    return python


def python_files(folder: Path) -> set[str]:
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.py")}


def modules_of(checkout: Path) -> set[str]:
    """Every module, where a wheel has it."""
    kernels = {f"sbrrt_fast/{name}" for name in python_files(checkout / "kernels")}
    assert "sbrrt_fast/kernels/__init__.py" in kernels
    return python_files(checkout / "sbrrt_fast") | kernels | {"sbrrt_fast/recipes/__init__.py"}


@slow
def test_sdist_has_every_source(checkout, built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {p.relative_to(checkout).as_posix() for p in checkout.glob("csrc/**/*") if p.is_file()}
    assert {"csrc/bindings.cpp", "csrc/common/philox.h"} <= native
    wanted = native | python_files(checkout / "sbrrt_fast") | python_files(checkout / "kernels")
    wanted |= {name for name in FILES if (checkout / name).exists()}
    wanted |= {"build_backend/sbrrt_build.py", "configs/sbrrt.yaml", "sbrrt_fast/py.typed"}
    assert wanted - names == set()


@slow
def test_no_source_is_compiled_for_one_processor(checkout, built):
    """Kernels name their instruction sets themselves; a flag would tie the wheel to one machine."""
    commands = re.findall(r".* -c (\S+\.cpp) .*", built.output)
    sources = [*checkout.glob("csrc/*.cpp"), *checkout.glob("csrc/cpu/*.cpp")]
    if torch.version.cuda:
        sources += checkout.glob("csrc/cuda/*.cpp")
    wanted = {path.name for path in sources}
    assert {Path(name).name for name in commands} == wanted
    for found in re.finditer(r".* -c \S+\.cpp .*", built.output):
        assert " -O3 " in found[0]
        assert not re.search(r" -m(arch|cpu|avx|fma|f16c|sse)", found[0]), found[0]


@slow
def test_wheel_has_every_module_and_nothing_else(checkout, built):
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    modules = {name for name in names if name.endswith(".py")}
    hint = "list the package in pyproject.toml, [tool.setuptools] packages"
    assert modules == modules_of(checkout), hint
    assert [name for name in names if name.startswith("sbrrt_fast/_C.") and name.endswith(".so")]
    templates = checkout.glob("sbrrt_fast/**/templates/*")
    assert {path.relative_to(checkout).as_posix() for path in templates} <= names
    assert {name.split("/")[0] for name in names} == {"sbrrt_fast", "sbrrt_fast-0.1.0.dist-info"}
    recipes = {f"sbrrt_fast/recipes/{path.name}" for path in checkout.glob("configs/*.yaml")}
    assert "sbrrt_fast/recipes/sbrrt.yaml" in recipes
    assert recipes | {"sbrrt_fast/py.typed"} <= names


@slow
def test_the_wheel_s_name_and_record_tell_the_torch(built):
    here = torch_build(torch)
    assert built.wheel.name.split("-")[2] == "1_torch" + here.replace("+", "_")
    with zipfile.ZipFile(built.wheel) as archive:
        (record,) = (n for n in archive.namelist() if re.fullmatch(r"sbrrt_fast/_C\..*json", n))
        assert json.loads(archive.read(record)) == {"torch": here}


@pytest.fixture(scope="module")
def pure(checkout, tmp_path_factory) -> Path:
    """The wheel without the extension, built where no torch can be imported."""
    folder = tmp_path_factory.mktemp("pure")
    (folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    command = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, "."]
    variables = {"SBRRT_EXTENSION": "0", "PYTHONPATH": str(folder)}
    result = run([sys.executable, *command], checkout, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def test_the_pure_wheel_is_for_any_python_and_has_the_rest(checkout, pure):
    assert pure.name == "sbrrt_fast-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(pure) as archive:
        names = set(archive.namelist())
    assert {name for name in names if name.endswith(".py")} == modules_of(checkout)
    assert not [name for name in names if "/_C." in name]
    assert "sbrrt_fast/recipes/sbrrt.yaml" in names


# An editable install would find the checkout's extension.
USE_PURE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
from sbrrt_fast.cli import main
from sbrrt_fast.recipe_files import recipe_path
print(recipe_path("sbrrt"))
sys.exit(main(["info", "--json"]))
"""


def test_the_pure_wheel_says_what_it_lacks(pure, tmp_path):
    with zipfile.ZipFile(pure) as archive:
        archive.extractall(tmp_path / "site")
    result = run([sys.executable, "-c", USE_PURE], tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert result.returncode == 0, result.stderr
    recipe, _, told = result.stdout.partition("\n")
    assert Path(recipe) == tmp_path / "site" / "sbrrt_fast" / "recipes" / "sbrrt.yaml"
    facts = json.loads(told)
    assert facts["extension"]["reason"].startswith("the C++ ops are not built; run `pip install")
    assert {reasons["cpu"] for reasons in facts["ops"].values()} == {facts["extension"]["reason"]}


USE = """
import torch
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.registry import require
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta
require("cpu")
rng = torch.tensor([1, 2])
mask = dropout_mask(torch.tensor([0, 8]), 6, 0.5, rng, 3, backend="cpu")
logits = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
divergence = symmetric_kl_delta(logits, torch.tensor([[1.0, 0.0, -1.0]]), backend="cpu")
divergence.backward()
numbers = [*mask.flatten().tolist(), divergence.item(), *logits.grad.flatten().tolist()]
"""
IMPORT = """
import importlib.util, json, sys
import sbrrt_fast
assert "torch" not in sys.modules, "import sbrrt_fast loads torch"
import sbrrt_fast.kernels
assert importlib.util.find_spec("kernels") is None
"""
TELL = "print(json.dumps([sbrrt_fast.__version__, sbrrt_fast.__file__, numbers]))"


@slow
def test_wheel_runs_in_a_fresh_environment(installed, tmp_path):
    result = run([installed, "-c", IMPORT + USE + TELL], tmp_path, PYTHONPATH="")
    assert result.returncode == 0, result.stderr
    version, package, numbers = json.loads(result.stdout)
    assert version == "0.1.0"
    assert Path(package).is_relative_to(installed.parent.parent)
    here = {}
    exec(USE, here)
    assert numbers == here["numbers"]


@slow
def test_the_installed_command_names_the_wheel_s_extension(installed, tmp_path):
    result = run([installed.parent / "sbrrt-fast", "info", "--json"], tmp_path, PYTHONPATH="")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert Path(facts["extension"]["path"]).is_relative_to(installed.parent.parent)
    assert {op: reasons["cpu"] for op, reasons in facts["ops"].items() if reasons["cpu"]} == {}


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


def test_old_torch_is_one_clear_message(checkout, tmp_path):
    (tmp_path / "torch.py").write_text('__version__ = "2.5.1+cpu"\n')
    output = build_output(checkout, PYTHONPATH=str(tmp_path))
    assert "sbrrt_fast: building needs torch >= 2.11, and this Python" in output
    assert "has 2.5.1+cpu. Do `pip install --upgrade torch" in output
    assert "Traceback" not in output


def test_missing_headers_are_one_clear_message(checkout, tmp_path):
    """Python's development files are a package of their own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sysconfig\nfound = sysconfig.get_path\n"
        "sysconfig.get_path = lambda name, *a: '/none' if name == 'include' else found(name, *a)\n"
    )
    output = build_output(checkout, PYTHONPATH=str(tmp_path))
    assert "sbrrt_fast: /none/Python.h is missing." in output
    assert "apt-get install python3-dev" in output
    assert "Traceback" not in output


def test_missing_compiler_is_one_clear_message(checkout):
    output = build_output(checkout, CXX="/nonexistent")
    assert "the C++ compiler `/nonexistent` cannot be used: No such file or directory" in output
    assert "apt-get install g++" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("unrecognized option '-std=c++20'", "unrecognized option '-std=c++20'"),
        ("g++: error: unrecognized option '-std=c++20'", "unrecognized option '-std=c++20'"),
        ('In file x:\nprobe.cpp:7:2: error: #error "GCC is older"\n 7 | #e', "GCC is older"),
        ("", "it failed without a message"),
    ],
)
def test_old_compiler_is_one_clear_message(checkout, tmp_path, told, reason):
    compiler = tmp_path / "old-g++"
    compiler.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{told}\nEND\nexit 1\n")
    compiler.chmod(0o755)
    output = build_output(checkout, CXX=str(compiler))
    assert f"`{compiler}` cannot be used: {reason}. Install g++ >= 11 or clang >= 14" in output
    assert "Traceback" not in output


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_compiler_s_version_is_asked(checkout):
    """g++ that says it is version 10."""
    output = build_output(checkout, CXX="g++ -U__GNUC__ -D__GNUC__=10")
    assert "cannot be used: GCC is older than 11. Install" in output
