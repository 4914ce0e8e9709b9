"""The stages of the check, the most valuable first, and what each of them needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu_check.native_build import extension_info, is_complete
from benchmarks.gpu_check.runner import Stage
from benchmarks.harness.machine import ROOT

GPU_TESTS = ("test_gpu_*.py", "test_triton_*.py")  # run on a GPU where there is one
NO_TESTS = ("test_gpu_check.py", "test_triton_aot.py", "test_triton_launch_table.py")  # not these
VALUE_TESTS = tuple(
    f"tests/ops/test_{name}.py" for name in ("values", "gradients", "tangents", "repeats")
)  # of every op and backend; here those of CUDA
STEP_TESTS = ("tests/training/test_graph_step.py", "tests/training/test_graph_replaced.py")
PYTHON = sys.executable
PATIENCE = 3.0  # a dry run may take so many times as long
BENCHES, REPORT_SECONDS = ("round", "ops", "sweep"), 8.0
DRY_TESTS = {
    "step": "summary or broken",
    "values": "bias_gelu-cpu",
    "tests": "reads_what_has_changed or limits_are_those",
}
SELECTED = {"values": "cuda and not cuda_on_cpu"}
DRY_SECONDS = 30.0  # of a run of the benchmarks
TOOLS = {"memcheck": 40.0, "racecheck": 30.0, "synccheck": 25.0}  # of compute-sanitizer
BUILD_LIMIT = 130.0  # hardly any of it is taken where the extension of an earlier call is there
CALLS_SECONDS, PATCH_SECONDS = 50, 15  # of the calls, and of transformers' models


def stages(output: Path, dry_run: bool) -> list[Stage]:
    """In the order in which they run.

    ``no CUDA`` takes the place of a build that failed.
    """
    both = [*first_call(output, dry_run), *second_call(output, dry_run)]
    return [_with_limits(stage, dry_run) for stage in both]


def seconds_of(chosen: Sequence[Stage]) -> float:
    """What stages may take together.

    ``no CUDA`` runs where others then lack what they need, so it takes their time.
    """
    return sum(stage.limit for stage in chosen if stage.name != "no CUDA")


def first_call(output: Path, dry_run: bool) -> list[Stage]:
    """A build, and whether what it built is right; in 5 minutes."""
    gpu, device = _where(dry_run)
    native = (*gpu, "extension")
    build = (PYTHON, "-m", "benchmarks.gpu_check.native_build")
    if dry_run:
        build = (*build, "--no-compile")
    without_cuda = (*build, "--without-cuda")
    return [
        Stage("build", (*build, "--copy-to", str(output)), BUILD_LIMIT, gpu, build_environment()),
        Stage("no CUDA", without_cuda, 60, ("gpu", "a failed build"), {"SBRRT_CUDA": "0"}),
        Stage("step", tests("step", dry_run, *STEP_TESTS), 45, (*native, *PYTEST), call=1),
        Stage("kernels", kernels(dry_run), 30, native, device, call=1),
        *(sanitizer(tool, limit, dry_run) for tool, limit in TOOLS.items()),
    ]


def second_call(output: Path, dry_run: bool) -> list[Stage]:
    """Tests, figures, and a training; in 8 minutes with the first call's extension."""
    gpu, device = _where(dry_run)
    needs = *gpu, "tokenizers", "weights"
    of_call = [
        Stage("calls", calls(dry_run), 60, gpu, device),
        Stage("values", tests("values", dry_run, *VALUE_TESTS), 45, (*gpu, "extension", *PYTEST)),
        Stage("tests", tests("tests", dry_run, *gpu_tests()), 80, (*gpu, *PYTEST)),
        Stage("round", bench(output, "machine", "round", "stages"), 85, gpu, device),
        Stage("train", train_command(output, dry_run), 50, needs, device),
        Stage("ops", bench(output, "ops", "evaluate"), 45, gpu, device),
        Stage("sweep", bench(output, "sweep", "memory"), 35, gpu, device),
        Stage("transformers", hf_patch(dry_run), 40, (*gpu, "transformers"), device),
    ]
    return [replace(stage, call=2) for stage in of_call]


def _where(dry_run: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """What a stage on the device needs, and its environment."""
    return () if dry_run else ("gpu",), {"DEVICE": "cpu" if dry_run else "cuda", "QUICK": "1"}


def _with_limits(stage: Stage, dry_run: bool) -> Stage:
    """A run of the benchmarks ends by itself in time for its report."""
    limit, command = stage.limit * (PATIENCE if dry_run else 1.0), stage.command
    if stage.name in BENCHES:
        seconds = DRY_SECONDS if dry_run else limit - REPORT_SECONDS
        command = (*command, "--seconds", f"{seconds:.0f}")
    return replace(stage, limit=limit, command=command)


def bench(output: Path, *stages: str) -> tuple[str, ...]:
    """The command of some stages of a run of the benchmarks, which draws nothing."""
    return PYTHON, "-m", "benchmarks.run", str(output), "--no-plots", "--stages", *stages


def build_environment() -> dict[str, str]:
    """Compiles for the GPU that is there alone, on all cores."""
    environment = {"MAX_JOBS": str(os.cpu_count()), "SBRRT_CUDA": "1"}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    return environment


def kernels(dry_run: bool) -> tuple[str, ...]:
    """The command that lists the kernels of replayed rounds."""
    few = ("--rounds", "1", "--warm-up", "1", "--updates", "joint") if dry_run else ()
    return PYTHON, "-m", "benchmarks.tune.kernel_list", *few


def sanitizer(tool: str, limit: float, dry_run: bool) -> Stage:
    """compute-sanitizer over small shapes; a dry run makes the calls once, without it."""
    program = (PYTHON, "-m", "tests.ops.small_shapes")
    if dry_run:
        needs = () if tool == "memcheck" else ("gpu",)
        return Stage(tool, program, limit, needs, {"DEVICE": "cpu"}, call=1)
    check = sanitizer_path(), "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"
    # Without torch's cache every tensor has memory of its own, so that memcheck sees its ends.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
    needs = ("gpu", "extension", "compute-sanitizer", "pytest")
    return Stage(tool, (*check, *program), limit, needs, {"DEVICE": "cuda", **alone}, call=1)


def calls(dry_run: bool) -> tuple[str, ...]:
    """The command that calls every op once; no op may take the time of the others."""
    few = ("--seconds", "3") if dry_run else ("--seconds", str(CALLS_SECONDS))
    return PYTHON, "-m", "benchmarks.gpu_check.small_calls", *few


def gpu_tests() -> list[str]:
    paths = [path for pattern in GPU_TESTS for path in sorted((ROOT / "tests").rglob(pattern))]
    return [str(path.relative_to(ROOT)) for path in paths if path.name not in NO_TESTS]


PYTEST = ("pytest", "xdist", "gpu tests")


def tests(stage: str, dry_run: bool, *files: str) -> tuple[str, ...]:
    """The command that runs test files in several processes; a test that hangs says where."""
    workers = 2 if dry_run else max(2, min(8, (os.cpu_count() or 2) // 2))
    chosen = (DRY_TESTS if dry_run else SELECTED).get(stage)
    selected = ("-k", chosen) if chosen else ()
    options = (
        # Others take what waits behind a test that hangs.
        *("-q", "-n", str(workers), "--dist", "worksteal", "-p", "tests.benchmarks.live_log"),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors"),
        *("-o", "faulthandler_timeout=40"),
    )
    return PYTHON, "-m", "pytest", *options, *selected, *files


def train_command(output: Path, dry_run: bool) -> tuple[str, ...]:
    """A short run on DATA, or on the built-in sample; its scores are in ``short_run.json``."""
    rounds = "2" if dry_run else "400"
    return PYTHON, "-m", "benchmarks.harness.short_run", str(output), "--rounds", rounds


def hf_patch(dry_run: bool) -> tuple[str, ...]:
    """The command that times transformers' models with and without the kernels."""
    few = ("--seconds", str(PATCH_SECONDS), "--batch", "32")
    if dry_run:
        few = ("--seconds", "1", "--batch", "2", "--shapes", "minilm", "--tasks", "sst")
    return PYTHON, "-m", "benchmarks.tune.hf_patch", *few


def sanitizer_path() -> str:
    """Of compute-sanitizer; its bare name where it is not found."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = os.pathsep.join([os.environ.get("PATH", ""), *(f"{h}/bin" for h in homes if h)])
    return shutil.which("compute-sanitizer", path=folders) or "compute-sanitizer"


def missing() -> Callable[[str], str | None]:
    """A function of what a stage needs: the reason why it is not there, or None."""
    cached = cache(lambda need: MISSING[need]() if need in MISSING else _module(need))
    # What an earlier stage may have built is looked at anew.
    return lambda need: MISSING[need]() if need in ("extension", "a failed build") else cached(need)


def _module(name: str) -> str | None:
    return None if find_spec(name) else f"{name} is not installed"


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no GPU"


def _no_weights() -> str | None:
    from benchmarks.harness.rounds import backbone
    from sbrrt_fast.errors import SbrrtError
    from sbrrt_fast.model.backbone import resolve_backbone

    try:
        resolve_backbone(backbone())
    except SbrrtError as error:
        return str(error)
    return None


def _no_failure() -> str | None:
    return "the extension imports" if extension_info() else None


def _no_extension() -> str | None:
    info = extension_info()
    if info is None:
        return "the extension does not import"
    return None if is_complete(info, bool(torch.version.cuda)) else "the extension has no CUDA"


def _no_sanitizer() -> str | None:
    path = sanitizer_path()
    return None if shutil.which(path) else f"{path} is neither in PATH nor in CUDA's folder"


MISSING: dict[str, Callable[[], str | None]] = {
    "gpu": _no_gpu,
    "a failed build": _no_failure,
    "extension": _no_extension,
    "compute-sanitizer": _no_sanitizer,
    "gpu tests": lambda: None if gpu_tests() else "there are no GPU tests",
    "weights": _no_weights,
}
