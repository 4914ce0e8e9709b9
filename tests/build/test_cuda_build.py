"""What setup.py compiles, in which order; whether with CUDA: what is asked for, and why not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A torch with CUDA, and what setup.py would compile and for which GPUs.
TELL = """
import os, runpy, sys, setuptools, torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME = {cuda!r}, os.environ["CUDA_HOME"]
def told(ext_modules, cmdclass, options):
    macros = dict(ext_modules[0].define_macros)
    print(macros["SBRRT_NO_CUDA_REASON"], any(s.endswith(".cu") for s in ext_modules[0].sources))
    print(os.environ["TORCH_CUDA_ARCH_LIST"])
    flags = ext_modules[0].extra_compile_args
    print("-lineinfo" in flags["nvcc"] if isinstance(flags, dict) else "")
setuptools.setup = told
sys.argv = ["setup.py"]
runpy.run_path("setup.py")
"""
# What the compiler is given for the sources of an extension, one a line.
TELL_COMPILED = """
import setuptools, sys, runpy
def compiled(ext_modules, cmdclass, options):
    command = cmdclass["build_ext"](setuptools.Distribution())
    command.build_temp = sys.argv[1]
    print(*command.swig_sources({sources!r}, ext_modules[0]), sep="\\n")
setuptools.setup = compiled
runpy.run_path("setup.py")
"""


@pytest.fixture
def toolkit(tmp_path) -> Path:
    """A folder with an nvcc of CUDA 13.0 that compiles nothing."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    return tmp_path


def run_setup(cuda: str | None, toolkit: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("SBRRT_CUDA", "TORCH_CUDA_ARCH_LIST")}
    command = [sys.executable, "-c", TELL.format(cuda=cuda)]
    variables = {**kept, "CUDA_HOME": str(toolkit), **environment}
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("cuda", "asked", "told"),
    [
        ("13.2", "", "0 True"),  # another minor release will do
        ("13.0", "1", "0 True"),
        ("13.0", "0", "1 False"),
        (None, "", "2 False"),
        ("12.8", "", "4 False"),
    ],
)
def test_what_is_built(cuda, asked, told, toolkit):
    result = run_setup(cuda, toolkit, SBRRT_CUDA=asked)
    assert result.returncode == 0, result.stderr
    lineinfo = "True" if told.endswith("True") else ""  # profilers name source lines
    assert result.stdout.splitlines() == [told, "8.0;9.0+PTX", lineinfo]


@pytest.mark.parametrize("names", ["9.0", "8.6;8.9", "8.0 12.0+PTX", "9.0a", "Ampere;Hopper"])
def test_the_gpus_named_are_the_ones_compiled_for(names, toolkit):
    result = run_setup("13.0", toolkit, TORCH_CUDA_ARCH_LIST=names)
    assert result.stdout.splitlines() == ["0 True", names, "True"], result.stderr


@pytest.mark.parametrize(
    ("names", "old"), [("7.5;8.0", "7.5"), ("8.6, 7.0+PTX", r"7.0\+PTX"), ("Turing", "Turing")]
)
def test_gpus_that_are_too_old_are_named(names, old, toolkit):
    result = run_setup("13.0", toolkit, TORCH_CUDA_ARCH_LIST=names)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.match(f"sbrrt_fast: TORCH_CUDA_ARCH_LIST names {old}, but .* 8.0", result.stderr)
    left_out = run_setup("13.0", toolkit, TORCH_CUDA_ARCH_LIST=names, SBRRT_CUDA="0")
    assert left_out.returncode == 0, left_out.stderr


@pytest.mark.parametrize(
    ("cuda", "asked", "message"),
    [
        (None, "1", "SBRRT_CUDA=1, but torch .* is built without CUDA"),
        ("12.8", "1", "SBRRT_CUDA=1, but .*nvcc is of CUDA 13.0, torch was built with 12.8"),
        ("13.0", "yes", "SBRRT_CUDA is 0 or 1, not 'yes'"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(cuda, asked, message, toolkit):
    result = run_setup(cuda, toolkit, SBRRT_CUDA=asked)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.fullmatch(f"sbrrt_fast: {message}\\.", result.stderr.strip()), result.stderr


def all_sources() -> list[str]:
    paths = [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def compiled(sources: list[str], folder: Path) -> list[str]:
    """What the compiler is given for these sources, in its order."""
    command = [sys.executable, "-c", TELL_COMPILED.format(sources=sources), str(folder)]
    environment = {**os.environ, "SBRRT_CUDA": "0"}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_longest_compilations_come_first(tmp_path):
    given = compiled(all_sources(), tmp_path)
    assert sorted(given) == all_sources()
    names = [Path(path).name for path in given]
    assert names[:3] == ["attention_backward.cu", "attention_forward.cu", "attention_jvp.cu"]
    last = max(names.index(name) for name in names if name.endswith(".cu"))
    others = [name for name in names[: last + 1] if name.endswith(".cpp")]
    assert others == ["attention.cpp"]
