"""What is installed, which devices there are, and which implementation of which op can run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import warnings
from importlib import import_module, metadata
from pathlib import Path

import torch

from sbrrt_fast import _extension
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.ops.registry import OPS

_PACKAGES = ("numpy", "tokenizers", "safetensors")


def collect() -> dict:
    """Everything that ``sbrrt-fast info`` prints, as JSON values.

    ``versions``: name -> ``{"version", "reason"}``, one of them None; ``devices``: the CPU, the
    GPUs and, without any, ``gpu_reason``; ``extension``: of the C++ ops ``{"loaded", "reason",
    "path", "build"}``; ``ops``: op -> backend -> None if it can run, or the reason why not.
    It needs neither GPU nor network nor the extension.
    """
    return {
        "versions": versions(),
        "devices": devices(),
        "extension": extension_state(),
        "ops": op_table(),
    }


def versions() -> dict[str, dict[str, str | None]]:
    """Versions of this package, the packages it computes with, and the CUDA toolkit."""
    packages = {"sbrrt_fast": _distribution("sbrrt_fast")}
    packages["python"] = _present(platform.python_version())
    packages["torch"] = _present(torch.__version__)
    packages["torch CUDA"] = (
        _present(torch.version.cuda)
        if torch.version.cuda
        else _absent("torch is built without CUDA")
    )
    packages["triton"] = _triton()
    packages["CUDA toolkit"] = _toolkit()
    return packages | {name: _distribution(name) for name in _PACKAGES}


def devices() -> dict:
    """The CPU with its instruction set and threads, and the GPUs with their memory in bytes."""
    gpus, reason = _gpus()
    cpu = {
        "name": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
    }
    return {"cpu": cpu, "gpus": gpus, "gpu_reason": reason}


def extension_state() -> dict:
    """Whether ``sbrrt_fast._C`` is loaded, how it was built, or why it is not there."""
    extension, reason = _extension.extension, _extension.extension_error
    if extension is None:
        return {"loaded": False, "reason": reason, "path": None, "build": None}
    try:
        build = extension.build_info()
    except ValueError as error:  # of SBRRT_CPU_ISA
        raise ConfigError(str(error)) from None
    return {"loaded": True, "reason": None, "path": extension.__file__, "build": build}


def op_table() -> dict[str, dict[str, str | None]]:
    """Op -> backend -> None if it can run on this machine, or the reason why not."""
    return {
        op.name: {name: None if state == "yes" else state for name, state in op.table()}
        for op in OPS
    }


def _present(version: str) -> dict[str, str | None]:
    return {"version": version, "reason": None}


def _absent(reason: str) -> dict[str, str | None]:
    return {"version": None, "reason": reason}


def _distribution(name: str) -> dict[str, str | None]:
    try:
        return _present(metadata.version(name))
    except metadata.PackageNotFoundError:
        return _absent("not installed")


def _triton() -> dict[str, str | None]:
    try:
        return _present(import_module("triton").__version__)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return _absent("not installed; `pip install triton` (Linux, for GPUs alone)")
        reason = error
    except Exception as error:  # a broken installation may raise anything
        reason = error
    return _absent(f"does not import: {_first_line(reason)}")


def _toolkit() -> dict[str, str | None]:
    """The CUDA toolkit that compiling CUDA sources would use."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    for command in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if path := shutil.which(command):
            return _nvcc_version(path)
    return _absent("no nvcc in CUDA_HOME, PATH or /usr/local/cuda")


def _nvcc_version(path: str) -> dict[str, str | None]:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _absent(f"{path} does not run: {_first_line(error)}")
    release = re.search(r"release ([\d.]+)", output.stdout)
    return _present(f"{release[1]} ({path})") if release else _absent(f"{path} tells no release")


def _cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.machine()


def _gpus() -> tuple[list[dict], str | None]:
    """The GPUs that torch sees, and the reason if there is none."""
    if not torch.version.cuda:
        return [], f"torch {torch.__version__} is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:  # torch warns of a driver it cannot use
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return [], _first_line(caught[0].message) if caught else "torch sees no NVIDIA GPU"
    return [_gpu(index) for index in range(count)], None


def _gpu(index: int) -> dict:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
    }


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
