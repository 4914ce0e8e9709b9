"""Which instruction set the C++ ops take, and how the environment narrows it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sbrrt_fast import _extension

pytestmark = pytest.mark.skipif(_extension.extension is None, reason="the C++ ops are not built")

TELL = "from sbrrt_fast._extension import extension as e; print(e.build_info()['cpu_capability'])"
RUN = (
    "import torch; from sbrrt_fast.ops.attention import attention; x = torch.ones(3, 64);"
    "attention(x, x, x, torch.tensor([0, 3], dtype=torch.int32), 3, 2, backend='cpu')"
)
INFO = "import sys; from sbrrt_fast.cli import main; sys.exit(main(['info']))"


def run(code: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "SBRRT_CPU_ISA"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
    )


def test_the_environment_narrows_the_choice():
    assert run(TELL, SBRRT_CPU_ISA="plain").stdout.strip() == "plain"
    assert run(TELL, ATEN_CPU_CAPABILITY="default", SBRRT_CPU_ISA="").stdout.strip() == "plain"
    lines = [line.split() for line in run(INFO, SBRRT_CPU_ISA="plain").stdout.splitlines()]
    assert ["CPU", "code", "plain"] in lines


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="no AVX-512 here")
def test_bfloat16_instructions_are_taken_where_there_are_any():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = file.read().split()
    best = "AVX-512-bf16" if "avx512_bf16" in flags else "AVX-512"
    assert run(TELL).stdout.strip() == best
    assert run(TELL, SBRRT_CPU_ISA="avx512").stdout.strip() == "AVX-512"
    assert run(TELL, SBRRT_CPU_ISA="avx2").stdout.strip() == "AVX2"


@pytest.mark.parametrize("code", [TELL, RUN])
@pytest.mark.parametrize(
    ("isa", "message"),
    [
        ("AVX2", "SBRRT_CPU_ISA must be plain, avx2, avx512 or avx512_bf16, got AVX2"),
        ("avx2", "SBRRT_CPU_ISA=avx2 is more than this processor and ATEN_CPU_CAPABILITY allow"),
    ],
)
def test_what_cannot_be_had_is_told(code, isa, message):
    result = run(code, SBRRT_CPU_ISA=isa, ATEN_CPU_CAPABILITY="default")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith(f"ValueError: {message}")


def test_info_tells_it_in_one_line():
    result = run(INFO, SBRRT_CPU_ISA="sse")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "SBRRT_CPU_ISA must be plain" in result.stderr
