"""Builds sbrrt_fast._C, the C++ ops. Everything else is in pyproject.toml."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from setuptools import setup

HOW = (
    "`pip install torch setuptools wheel ninja pybind11`, then `pip install --no-build-isolation .`"
)
try:
    import torch
except ImportError as error:
    raise SystemExit(
        f"sbrrt_fast: building needs torch >= 2.11 in this Python ({sys.executable}), and importing"
        f" it failed: {error}. Do {HOW}"
    ) from None
if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 11):
    raise SystemExit(
        f"sbrrt_fast: building needs torch >= 2.11, and this Python ({sys.executable}) has"
        f" {torch.__version__}. Do {HOW.replace('install', 'install --upgrade', 1)}"
    )
from torch.utils.cpp_extension import BuildExtension, CppExtension  # noqa: E402

# Answers whether the compiler is new enough for torch's headers, and whose OpenMP it speaks.
PROBE = """
#include <concepts>
#if defined(__clang__)
#if __clang_major__ < 14
#error "clang is older than 14"
#endif
#elif defined(__GNUC__) && __GNUC__ < 11
#error "GCC is older than 11"
#endif
template <std::integral T> T twice(T x) { return x + x; }
int main() { return twice(0); }
"""


def compiler_command() -> list[str]:
    """The C++ compiler that setuptools will call."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shlex.split(command)


def is_gcc() -> bool:
    """Whether the C++ compiler is GCC; a missing compiler is reported when it is needed."""
    try:
        version = subprocess.run([*compiler_command(), "--version"], capture_output=True, text=True)
    except OSError:
        return False
    return "Free Software Foundation" in version.stdout


def check_headers() -> None:
    """Exit with one sentence unless Python's headers are there."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise SystemExit(
            f"sbrrt_fast: {header} is missing. Install the development files of this Python"
            " (Debian, Ubuntu: `apt-get install python3-dev`)."
        )


def first_error(stderr: str) -> str:
    """What a compiler complains of first, without the place."""
    lines = stderr.strip().splitlines() or ["it failed without a message"]
    line = next((line for line in lines if "error: " in line), lines[0])
    return re.sub(r"^.*?error: (#error )?", "", line).strip('"')


def check_compiler() -> None:
    """Exit with one sentence unless the C++ compiler can compile C++20."""
    command = compiler_command()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        probe = [*command, "-std=c++20", "-c", str(source), "-o", str(Path(folder, "probe.o"))]
        try:
            result = subprocess.run(probe, capture_output=True, text=True, check=False)
        except OSError as error:
            reason = error.strerror
        else:
            if result.returncode == 0:
                return
            reason = first_error(result.stderr)
    raise SystemExit(
        f"sbrrt_fast: the C++ compiler `{shlex.join(command)}` cannot be used: {reason}. Install"
        " g++ >= 11 or clang >= 14 (Debian, Ubuntu: `apt-get install g++`), or name one in CXX."
    )


class BuildNative(BuildExtension):
    """BuildExtension that looks at headers and compiler first."""

    def build_extensions(self) -> None:
        check_headers()
        check_compiler()
        super().build_extensions()


def compile_flags() -> list[str]:
    """-fopenmp compiles at::parallel_for; it is not linked, so that torch's own OpenMP serves it.

    GCC alone: torch's wheels carry GCC's OpenMP, and what clang compiles calls another one.
    """
    flags = ["-O3", "-Wall"]
    if is_gcc():
        flags += ["-fopenmp", "-Wno-maybe-uninitialized"]  # GCC 12 warns in its own intrinsics
    return flags


setup(
    ext_modules=[
        CppExtension(
            "sbrrt_fast._C",
            sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
            include_dirs=[str(Path("csrc").resolve())],
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            extra_compile_args=compile_flags(),
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
