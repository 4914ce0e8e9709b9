"""The stages of ``gpu_check``, the most valuable first, and what each of them needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu_check import PATIENCE, Stage
from benchmarks.machine import ROOT
from sbrrt_fast.info import versions

GPU_TESTS = ("test_gpu_*.py", "test_triton_*.py")  # run on a GPU where there is one
NO_TESTS = ("test_gpu_check.py", "test_triton_aot.py", "test_triton_launch_table.py")  # not these
PYTHON = sys.executable


def stages(output: Path, dry_run: bool) -> list[Stage]:
    """In the order in which they run; their limits add up to nine minutes."""
    device = {"DEVICE": "cpu" if dry_run else "cuda", "QUICK": "1"}
    gpu = () if dry_run else ("gpu",)
    small = (PYTHON, "-m", "benchmarks.small_calls")
    bench = (PYTHON, "-m", "benchmarks.run", str(output), "--no-plots", "--stages")
    sanitizer = () if dry_run else (sanitizer_path(), "--error-exitcode", "9", "--tool", "memcheck")
    found = [
        Stage("build", build_command(), 150, ("gpu", "nvcc"), build_environment()),
        Stage("calls", small, 30, gpu, device),
        Stage("round", (*bench, "machine", "round", "stages"), 120, gpu, device),
        Stage("tests", test_command(), 60, ("gpu", "pytest", "gpu tests")),
        Stage("sanitizer", (*sanitizer, *small), 40, ("gpu", "compute-sanitizer"), device),
        Stage("ops", (*bench, "ops", "evaluate"), 60, gpu, device),
        Stage("train", train_command(dry_run), 30, (*gpu, "tyro", "pydantic", "weights")),
        Stage("sweep", (*bench, "sweep", "memory"), 45, gpu, device),
    ]  # fmt: skip
    return [replace(s, limit=PATIENCE * s.limit) for s in found] if dry_run else found


def build_command() -> tuple[str, ...]:
    """Compiles in place and makes the package importable, from what is installed alone."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "-v")
    return PYTHON, "-m", "pip", "install", *options, "-e", "."


def build_environment() -> dict[str, str]:
    """Compiles for the GPU that is there alone, on all cores."""
    environment = {"MAX_JOBS": str(os.cpu_count()), "SBRRT_CUDA": "1"}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    return environment


def gpu_tests() -> list[str]:
    found = [path for pattern in GPU_TESTS for path in sorted((ROOT / "tests").glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found if path.name not in NO_TESTS]


def test_command() -> tuple[str, ...]:
    return PYTHON, "-m", "pytest", "-q", "--durations=5", *gpu_tests()


def train_command(dry_run: bool) -> tuple[str, ...]:
    """A short run on DATA, or on the built-in sample; its scores are the last lines of its log."""
    command = [PYTHON, "-m", "sbrrt_fast.cli", "train", "--config", "configs/sbrrt.yaml"]
    command += ["--rounds", "2" if dry_run else "100", "--output", "runs/gpu-check", "--overwrite"]
    command += ["--backbone", os.environ.get("BACKBONE", "minilm"), "--profile"]
    command += ["--device", "cpu" if dry_run else "cuda"]
    if data := os.environ.get("DATA"):
        command += ["--data-dir", data]
    return tuple(command)


def sanitizer_path() -> str:
    """Of compute-sanitizer; its bare name where it is not found."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = os.pathsep.join([os.environ.get("PATH", ""), *(f"{h}/bin" for h in homes if h)])
    return shutil.which("compute-sanitizer", path=folders) or "compute-sanitizer"


def missing() -> Callable[[str], str | None]:
    """A function of what a stage needs: the reason why it is not there, or None."""
    return cache(lambda need: MISSING[need]() if need in MISSING else _module(need))


def _module(name: str) -> str | None:
    return None if find_spec(name) else f"{name} is not installed"


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no GPU"


def _no_weights() -> str | None:
    from sbrrt_fast.errors import SbrrtError
    from sbrrt_fast.model.backbone import resolve_backbone

    try:
        resolve_backbone(os.environ.get("BACKBONE", "minilm"))
    except SbrrtError as error:
        return str(error)
    return None


MISSING: dict[str, Callable[[], str | None]] = {
    "gpu": _no_gpu,
    "nvcc": lambda: versions()["CUDA toolkit"]["reason"],
    "compute-sanitizer": lambda: (
        None if shutil.which(sanitizer_path()) else "compute-sanitizer is not there"
    ),
    "gpu tests": lambda: None if gpu_tests() else "there are no GPU tests",
    "weights": _no_weights,
}
