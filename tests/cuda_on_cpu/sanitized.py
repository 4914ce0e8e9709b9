"""Processes in which kernels run under the address and undefined-behaviour sanitizers.

Their libraries must be in a process before anything else, so Python itself starts with them.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cuda_on_cpu.build import ROOT, compiler


def run_sanitized(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python -m module``; every ``library`` in it is of the variant ``sanitized``."""
    libraries = [
        subprocess.check_output([*compiler(), f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | environment
    environment |= {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python's own
        "SBRRT_CUDA_ON_CPU_VARIANT": "sanitized",
    }
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
