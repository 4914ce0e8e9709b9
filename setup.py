"""Builds sbrrt_fast._C, the C++ ops and, where it can, the CUDA ones. Everything else is in
pyproject.toml.

SBRRT_CUDA=0 leaves CUDA out, SBRRT_CUDA=1 insists on it; TORCH_CUDA_ARCH_LIST names the GPUs. It is
compiled for the torch that is installed, whose release and kind are in the wheel's name and, beside
the extension, in _C.*.json. Builds without the extension do not come here: build_backend/.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from setuptools import setup

HOW = "`pip install torch`, then `pip install .`"
INSTEAD = (
    " `python -m build` and uv need --no-isolation and --no-build-isolation to see it;"
    " SBRRT_EXTENSION=0 builds the package without the C++ ops, which needs no torch."
)
try:
    import torch
except ImportError as error:
    raise SystemExit(
        f"sbrrt_fast: building needs torch >= 2.11 in this Python ({sys.executable}), and importing"
        f" it failed: {error}. Do {HOW}.{INSTEAD}"
    ) from None
if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 11):
    raise SystemExit(
        f"sbrrt_fast: building needs torch >= 2.11, and this Python ({sys.executable}) has"
        f" {torch.__version__}. Do {HOW.replace('install', 'install --upgrade', 1)}.{INSTEAD}"
    )
TORCH_BUILD = runpy.run_path("sbrrt_fast/torch_build.py")["torch_build"](torch)


def find_nvcc() -> str | None:
    """CUDA's compiler."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [Path(home, "bin") for home in homes if home]
    newest_first = sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    folders += [*map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    folders += [Path("/usr/local/cuda/bin"), *(path / "bin" for path in newest_first)]
    return next((found for folder in folders if (found := shutil.which(folder / "nvcc"))), None)


def cuda_home(nvcc: str) -> str:
    """Where nvcc's headers are: it may itself be a script that calls another one."""
    dry_run = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    told = subprocess.run(dry_run, capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
    return str(Path(found[1] if found else Path(nvcc).parent.parent).resolve())


NVCC = find_nvcc()
if NVCC:
    # Before the import below, which settles where CUDA is.
    os.environ["CUDA_HOME"] = cuda_home(NVCC)
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

# Why there is no CUDA, in the order of kCudaReasons in csrc/bindings.cpp.
CUDA_REASONS = ["", "SBRRT_CUDA=0", "torch without CUDA", "no nvcc", "nvcc of another release"]

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
        " g++ >= 11 or clang >= 14 (Debian, Ubuntu: `apt-get install g++`), or name one in CXX;"
        " or build without the C++ ops: SBRRT_EXTENSION=0."
    )


SLOWEST = re.compile(r"attention(?!_binding)")


def slowest_first(sources: list[str]) -> list[str]:
    """Attention before the other CUDA kernels before the rest, so that the last to end is short."""
    return sorted(sources, key=lambda p: (not SLOWEST.search(p), not p.endswith(".cu"), p))


class BuildNative(BuildExtension):
    """BuildExtension that looks at headers and compiler first, and compiles the slowest first.

    Objects of one torch are never taken for another; what was built says which torch it is for.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(Path(self.build_temp, TORCH_BUILD))

    def run(self) -> None:
        super().run()
        record = Path(self.get_ext_fullpath("sbrrt_fast._C")).with_suffix(".json")
        record.write_text(json.dumps({"torch": TORCH_BUILD}) + "\n", encoding="utf-8")

    def build_extensions(self) -> None:
        check_headers()
        check_compiler()
        super().build_extensions()

    def swig_sources(self, sources: list[str], extension: CppExtension) -> list[str]:
        """The order in which they are compiled; setuptools sorted them before."""
        return slowest_first(sources)


def compile_flags() -> list[str]:
    """-fopenmp compiles at::parallel_for; it is not linked, so that torch's own OpenMP serves it.

    GCC alone: torch's wheels carry GCC's OpenMP, and what clang compiles calls another one.
    """
    flags = ["-O3", "-Wall", "-g0"]  # Python's own -g would take 40% of the time
    if is_gcc():
        flags += ["-fopenmp", "-Wno-maybe-uninitialized"]  # GCC 12 warns in its own intrinsics
    return flags


def nvcc_release() -> str:
    """Such as 13.0."""
    told = subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", told)
    return found[1] if found else "unknown"


def why_no_cuda() -> int:
    """The index of the reason in CUDA_REASONS; 0 where CUDA is built."""
    asked = os.environ.get("SBRRT_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"sbrrt_fast: SBRRT_CUDA is 0 or 1, not {asked!r}.")
    if asked == "0":
        return 1
    reason, told = 0, ""
    if torch.version.cuda is None:
        reason, told = 2, f"torch {torch.__version__} is built without CUDA"
    elif NVCC is None:
        reason, told = 3, "there is no nvcc in CUDA_HOME, PATH or /usr/local/cuda*"
    elif nvcc_release().split(".")[0] != torch.version.cuda.split(".")[0]:
        reason = 4
        told = f"{NVCC} is of CUDA {nvcc_release()}, torch was built with {torch.version.cuda}"
    if asked == "1" and reason:
        raise SystemExit(f"sbrrt_fast: SBRRT_CUDA=1, but {told}.")
    return reason


OLDEST = 8.0  # compute capability; cp.async and the matrix instructions of bfloat16 need it
OLDER_NAMES = ("kepler", "maxwell", "pascal", "volta", "turing")


def check_architectures() -> None:
    """Exit with one sentence where TORCH_CUDA_ARCH_LIST names a GPU that the kernels cannot run on.

    From 8.0 on all can: blocks take no more shared memory than the least of them have, the 99 KB of
    8.6, 8.9 and 12.0 (csrc/cuda/common/device.cuh).
    """
    for name in re.split(r"[;,\s]+", os.environ["TORCH_CUDA_ARCH_LIST"].strip()):
        number = re.match(r"\d+\.\d+", name)
        if name.lower().startswith(OLDER_NAMES) or (number and float(number[0]) < OLDEST):
            raise SystemExit(
                f"sbrrt_fast: TORCH_CUDA_ARCH_LIST names {name}, but the kernels need compute"
                f" capability {OLDEST} or newer. Name others, or leave CUDA out with SBRRT_CUDA=0."
            )


def extension() -> CppExtension:
    """sbrrt_fast._C, with the sources of csrc/cuda where CUDA can be built."""
    reason = why_no_cuda()
    sources = glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")
    options = {
        "include_dirs": [str(Path("csrc").resolve())],
        "depends": sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/cuda/**/*.cuh")),
        "define_macros": [("SBRRT_NO_CUDA_REASON", str(reason))],
        "extra_compile_args": compile_flags(),
    }
    if reason:
        return CppExtension("sbrrt_fast._C", sorted(sources), **options)
    check_architectures()
    sources += glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu")
    # Headers of the CUDA libraries may lie beside torch; the toolkit's own come first.
    beside = glob(str(Path(torch.__file__).parent.parent / "nvidia" / "cu*" / "include"))
    after = [flag for folder in beside for flag in ("-idirafter", folder)]
    nvcc_flags = ["-O3", "-lineinfo"]  # profilers and compute-sanitizer then name source lines
    options["extra_compile_args"] = {"cxx": [*compile_flags(), *after], "nvcc": nvcc_flags}
    options["library_dirs"] = [str(Path(os.environ["CUDA_HOME"], "lib"))]
    return CUDAExtension("sbrrt_fast._C", sorted(sources), **options)


# Of a wheel: a build tag, since the version is that of the sources.
build_tag = "1_torch" + TORCH_BUILD.replace("+", "_")
setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"build_number": build_tag}},
)
