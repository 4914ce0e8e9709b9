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
BENCHES, REPORT_SECONDS = ("round", "ops", "sweep"), 8.0


def stages(output: Path, dry_run: bool) -> list[Stage]:
    """In the order in which they run; their limits add up to nine minutes.

    ``no CUDA`` is not counted: it takes the place of a build that failed.
    """
    device = {"DEVICE": "cpu" if dry_run else "cuda", "QUICK": "1"}
    gpu = () if dry_run else ("gpu",)
    small = (PYTHON, "-m", "benchmarks.small_calls")
    sanitizer = (sanitizer_path(), "--error-exitcode", "9", "--tool", "memcheck", *small)
    one_by_one = {**device, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found = [
        Stage("build", build_command(), 150, ("gpu", "nvcc"), build_environment()),
        Stage("no CUDA", build_command(), 60, ("gpu", "a failed build"), {"SBRRT_CUDA": "0"}),
        Stage("calls", small, 45, gpu, device),
        Stage("round", bench(output, "machine", "round", "stages"), 110, gpu, device),
        Stage("tests", test_command(), 60, ("gpu", "pytest", "gpu tests")),
        Stage("sanitizer", (*sanitizer, "--backends", "cuda", "--without", "bert-base"), 40,
              ("gpu", "compute-sanitizer"), one_by_one),
        Stage("ops", bench(output, "ops", "evaluate"), 60, gpu, device),
        Stage("train", train_command(output, dry_run), 30, (*gpu, "tokenizers", "weights"), device),
        Stage("sweep", bench(output, "sweep", "memory"), 40, gpu, device),
    ]  # fmt: skip
    return [_with_limits(stage, PATIENCE if dry_run else 1.0) for stage in found]


def _with_limits(stage: Stage, patience: float) -> Stage:
    """A run of the benchmarks ends by itself in time for its report."""
    limit, command = stage.limit * patience, stage.command
    if stage.name in BENCHES:
        command = (*command, "--seconds", f"{limit - REPORT_SECONDS * patience:.0f}")
    return replace(stage, limit=limit, command=command)


def bench(output: Path, *stages: str) -> tuple[str, ...]:
    """The command of some stages of a run of the benchmarks, which draws nothing."""
    return PYTHON, "-m", "benchmarks.run", str(output), "--no-plots", "--stages", *stages


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
    options = ("-q", "--durations=5", "--continue-on-collection-errors")
    return PYTHON, "-m", "pytest", *options, *gpu_tests()


def train_command(output: Path, dry_run: bool) -> tuple[str, ...]:
    """A short run on DATA, or on the built-in sample; its scores are in ``short_run.json``."""
    rounds = "2" if dry_run else "200"
    return PYTHON, "-m", "benchmarks.short_run", str(output), "--rounds", rounds


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
    from benchmarks.short_run import backbone
    from sbrrt_fast.errors import SbrrtError
    from sbrrt_fast.model.backbone import resolve_backbone

    try:
        resolve_backbone(backbone())
    except SbrrtError as error:
        return str(error)
    return None


def _extension() -> str | None:
    return "the extension was built" if list((ROOT / "sbrrt_fast").glob("_C*.so")) else None


MISSING: dict[str, Callable[[], str | None]] = {
    "gpu": _no_gpu,
    "a failed build": _extension,
    "nvcc": lambda: versions()["CUDA toolkit"]["reason"],
    "compute-sanitizer": lambda: (
        None if shutil.which(sanitizer_path()) else "compute-sanitizer is not there"
    ),
    "gpu tests": lambda: None if gpu_tests() else "there are no GPU tests",
    "weights": _no_weights,
}
