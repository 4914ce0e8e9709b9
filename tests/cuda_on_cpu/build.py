"""Compiles kernels with the host's C++ compiler, once per content of the sources."""

from __future__ import annotations

import hashlib
import os
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
# How kernels are compiled. `plain` is quick; `checked` reports every access to src/memory.cpp and
# undefined behaviour to src/hooks.cpp; `sanitized` needs a process with libasan loaded first.
VARIANTS = {
    "plain": ["-O2"],
    "checked": ["-O1", "-fsanitize=thread"],
    "sanitized": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


def compiler() -> list[str]:
    """The C++ compiler, as setup.py chooses it."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


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
