"""Compiles kernels with the host's C++ compiler, once per content of the sources."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import filelock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("SBRRT_CUDA_ON_CPU_CACHE", ROOT / "build" / "cuda_on_cpu"))

COMMON = ["-std=c++20", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-DSBRRT_CUDA_ON_CPU"]
UNDEFINED = "undefined,float-cast-overflow"
# How kernels are compiled. `plain` is quick; `checked` reports every access to src/memory.cpp and
# undefined behaviour to src/hooks.cpp; `sanitized` needs a process that loaded libasan first.
VARIANTS = {
    "plain": ["-O2"],
    "checked": ["-O1", f"-fsanitize=thread,{UNDEFINED}", "-fno-sanitize-recover=all"],
    "sanitized": ["-O1", f"-fsanitize=address,{UNDEFINED}", "-fno-sanitize-recover=all"],
}


def compiler() -> list[str]:
    """The C++ compiler, as setup.py chooses it."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def sources(op: str) -> list[Path]:
    """``ops/<op>.cpp`` and the kernel files behind the headers of csrc/cuda it includes.

    Those are the ``.cu`` files named after the op, those that include such a header, and those
    named after a header that these need.
    """
    export, folder = HERE / "ops" / f"{op}.cpp", ROOT / "csrc" / "cuda"
    kernels = sorted(folder.glob("*.cu"))
    wanted = [
        path
        for path in kernels
        if path.stem.startswith(op) or _op_headers(path) & _op_headers(export)
    ]
    for path in wanted:  # grows while it is gone through
        for name in _op_headers(path):
            wanted += [other for other in kernels if other.stem == name and other not in wanted]
    return [export, *wanted]


def _op_headers(source: Path) -> set[str]:
    """The names of the launchers' headers that a source includes."""
    return set(re.findall(r'#include "cuda/(\w+)\.h"', source.read_text())) - {"element_type"}


def build(name: str, sources: list[Path], variant: str) -> Path:
    """The shared library of these sources and the machine; compiled if it is not there yet."""
    machine = sorted((HERE / "src").glob("*.cpp"))
    machine_variant = "sanitized" if variant == "sanitized" else "machine"
    jobs = [(path, variant) for path in sources] + [(path, machine_variant) for path in machine]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: _object(*job), jobs))
    flags = ["-shared", *(VARIANTS[variant] if variant == "sanitized" else [])]
    library = CACHE / f"{name}-{variant}-{_digest(*map(str, objects))}.so"
    return _made(library, [*flags, *map(str, objects)])


def _object(source: Path, variant: str) -> Path:
    flags = [*COMMON, *VARIANTS.get(variant, ["-O2"])]
    flags += [f"-I{HERE / 'include'}", f"-I{ROOT / 'csrc'}"]
    key = _digest(source.read_text(), _headers(), *compiler(), *flags)
    return _made(
        CACHE / f"{source.stem}-{variant}-{key}.o", [*flags, "-x", "c++", "-c", str(source)]
    )


@cache
def _headers() -> str:
    """The text of everything a source may include."""
    folders = [ROOT / "csrc" / "common", ROOT / "csrc" / "cuda", HERE]
    paths = [path for folder in folders for path in folder.rglob("*") if _is_header(path)]
    return "\n".join(f"{path}\n{path.read_text()}" for path in sorted(paths))


def _is_header(path: Path) -> bool:
    return path.suffix in {".h", ".cuh"}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _made(target: Path, arguments: list[str]) -> Path:
    """`target`, which the compiler makes with these arguments; one process makes it."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            partial = target.with_suffix(".partial")
            command = [*compiler(), *arguments, "-o", str(partial)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{shlex.join(command)}\n{result.stderr}")
            os.replace(partial, target)
    return target
