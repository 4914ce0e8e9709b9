"""The package without Triton, and with Triton where nothing can run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

HIDE = "import sys; sys.modules['triton'] = None\n"  # importing it now fails
IMPORT_ALL = """
import pkgutil, sys
from importlib import import_module
import sbrrt_fast
for module in pkgutil.walk_packages(sbrrt_fast.__path__, "sbrrt_fast."):
    if not module.name.startswith(("sbrrt_fast.kernels", "sbrrt_fast._C")):
        if not module.name.endswith("__main__"):
            try:
                import_module(module.name)
            except ModuleNotFoundError as error:  # no dependency of the package
                if "Lightning is not installed" not in str(error):
                    raise
print(*[name for name in sys.modules if name.startswith("sbrrt_fast.")])
"""
USE = """
import torch
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.gelu import bias_gelu
x, bias = torch.randn(5, 7), torch.randn(7)
assert torch.allclose(bias_gelu(x, bias), torch.nn.functional.gelu(x + bias), atol=1e-6)
try:
    bias_gelu(x, bias, backend="triton")
except BackendError as error:
    print(error)
"""
INFO = "from sbrrt_fast.cli import main; main(['info', '--json'])"


def run(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_but_the_kernels_imports():
    imported = run(HIDE + IMPORT_ALL).split()
    assert "sbrrt_fast.ops._backend.library" in imported and len(imported) > 50
    assert not [name for name in imported if name.startswith("sbrrt_fast.kernels")]


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_ops_run_without_it_and_say_why_it_does_not(interpret):
    told = run(HIDE + USE, TRITON_INTERPRET=interpret)
    assert told.strip() == (
        "bias_gelu cannot run here (triton: Triton is not installed; `pip install triton` (Linux))"
    )


def test_info_names_the_reason_of_every_op_without_triton():
    ops = json.loads(run(HIDE + INFO))["ops"]
    assert len(ops) >= 12
    assert {reasons["triton"] for reasons in ops.values()} == {
        "Triton is not installed; `pip install triton` (Linux)"
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("interpret", ["0", "1"])
def test_info_with_triton_and_no_gpu(interpret):
    """The interpreter runs every op; otherwise each says what it lacks."""
    pytest.importorskip("triton")
    ops = json.loads(run(INFO, TRITON_INTERPRET=interpret))["ops"]
    reasons = {found["triton"] for found in ops.values()}
    lacks = "there is no NVIDIA GPU (and TRITON_INTERPRET=1 is not set)"
    assert reasons == ({None} if interpret == "1" else {lacks})
