"""Whether setup.py builds the CUDA kernels: what is asked for, and why not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A torch with CUDA, and what setup.py would compile and for which GPUs.
TELL = """
import os, runpy, sys, setuptools, torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME = {cuda!r}, os.environ["CUDA_HOME"]
def told(ext_modules, cmdclass):
    macros = dict(ext_modules[0].define_macros)
    print(macros["SBRRT_NO_CUDA_REASON"], any(s.endswith(".cu") for s in ext_modules[0].sources))
    print(os.environ["TORCH_CUDA_ARCH_LIST"])
setuptools.setup = told
sys.argv = ["setup.py"]
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
    assert result.stdout.splitlines() == [told, "8.0;9.0+PTX"]


def test_the_gpus_named_are_the_ones_compiled_for(toolkit):
    result = run_setup("13.0", toolkit, TORCH_CUDA_ARCH_LIST="9.0")
    assert result.stdout.splitlines() == ["0 True", "9.0"]


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
