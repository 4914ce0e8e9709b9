"""Runs the kernels of csrc/cuda on the CPU.

``library("gelu")`` compiles ``ops/gelu.cpp``, whose exported functions take the place of the
binding, and the kernel files of csrc/cuda behind the headers it includes.
``.call("gelu_forward", x, y, n, seed=3)`` runs one on copies of the tensors in device memory of
exact bounds, and copies the results back into them.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from tests.cuda_on_cpu.build import VARIANTS, build, sources

ELEMENT = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/cuda/element_type.h
POINTER_LETTERS = "cp"
_noted: set[tuple] = set()  # what this process has told of kernels


class Launches(NamedTuple):
    """How often a kernel ran to its end; the most threads and shared bytes a block had."""

    count: int
    num_threads: int
    shared_bytes: int


class CudaError(RuntimeError):
    """What a launch did wrong: kernel, block, thread, place."""


def library(op: str, variant: str | None = None) -> Library:
    """The kernels of one op; ``variant`` is a key of build.VARIANTS.

    Unless named it is "checked", or what ``SBRRT_CUDA_ON_CPU_VARIANT`` says.
    """
    return _library(op, variant or os.environ.get("SBRRT_CUDA_ON_CPU_VARIANT", "checked"))


@cache
def _library(op: str, variant: str) -> Library:
    assert variant in VARIANTS
    return Library(build(op, sources(op), variant))


class Library:
    """A compiled library, its exported functions and its kernels."""

    def __init__(self, path: Path) -> None:
        self._native = ctypes.CDLL(str(path))
        for name in ("buffer", "next_kernel"):
            getattr(self._native, f"cuda_on_cpu_{name}").restype = ctypes.c_void_p
        for name in ("error", "kernel_name"):
            getattr(self._native, f"cuda_on_cpu_{name}").restype = ctypes.c_char_p
        for name in ("num_launches", "num_threads", "shared_bytes", "num_global_reads"):
            getattr(self._native, f"cuda_on_cpu_{name}").restype = ctypes.c_uint64

    def call(self, function: str, *arguments: object, seed: int = 0) -> None:
        """Call an exported function; tensors become device memory and are copied back.

        ``seed`` draws the order of threads and blocks; 0 is their natural one. Raises CudaError.
        """
        with self.device(seed) as device:
            device.call(function, *arguments)

    def device(self, seed: int = 0) -> Device:
        """Device memory that lives for several calls."""
        return Device(self, seed)

    @property
    def num_global_reads(self) -> int:
        """Reads of device memory by all threads of this process; the variant must be checked."""
        return self._native.cuda_on_cpu_num_global_reads()

    def kernels(self) -> dict[str, Launches]:
        """Every kernel instantiation, and its launches in this process."""
        found, kernel, native = {}, None, self._native
        while kernel := native.cuda_on_cpu_next_kernel(ctypes.c_void_p(kernel)):
            pointer = ctypes.c_void_p(kernel)
            name = short_name(_kernel_name(native.cuda_on_cpu_kernel_name(pointer).decode()))
            found[name] = Launches(
                native.cuda_on_cpu_num_launches(pointer),
                native.cuda_on_cpu_num_threads(pointer),
                native.cuda_on_cpu_shared_bytes(pointer),
            )
        return found


class Device:
    """Device memory: a copy of each tensor's storage, red zones around it."""

    def __init__(self, library: Library, seed: int) -> None:
        self._library, self._native, self._seed = library, library._native, seed
        self._storages: dict[int, tuple[torch.Tensor, int]] = {}

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.copy_back()
        self._native.cuda_on_cpu_release_all()

    def pointer(self, tensor: torch.Tensor, name: str = "a buffer") -> int:
        """The device address of a tensor's first element."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self._storages:
            bytes_ = storage.nbytes()
            address = self._native.cuda_on_cpu_buffer(ctypes.c_size_t(bytes_), name.encode(), 1)
            ctypes.memmove(address, key, bytes_)
            self._storages[key] = (tensor, address)
        offset = tensor.storage_offset() * tensor.element_size()
        return self._storages[key][1] + offset

    def copy_back(self) -> None:
        """Bring every tensor's storage up to date."""
        for key, (tensor, address) in self._storages.items():
            ctypes.memmove(key, address, tensor.untyped_storage().nbytes())

    def call(self, function: str, *arguments: object) -> None:
        """Call an exported function with pointers where tensors are given. Raises CudaError."""
        letters = getattr(self._native, f"{function}_letters")
        letters.restype = ctypes.c_char_p
        address = getattr(self._native, f"{function}_address")
        address.restype = ctypes.c_void_p
        expected = letters().decode()
        assert len(expected) == len(arguments), f"{function} takes {len(expected)} arguments"
        native = ctypes.CFUNCTYPE(ctypes.c_int, *map(_ctype, expected))(address())
        values = [
            self._value(function, i, letter, argument)
            for i, (letter, argument) in enumerate(zip(expected, arguments, strict=True))
        ]
        before = self._library.kernels() if "SBRRT_KERNEL_COUNTS" in os.environ else {}
        self._native.cuda_on_cpu_begin(ctypes.c_uint64(self._seed))
        code = native(*values)
        self._record_launches(before)
        error = self._native.cuda_on_cpu_error().decode()
        assert code or not error, f"{function} hides an error: {error}"
        if code:
            raise CudaError(_readable(error) or f"{function} returned error {code}")

    def _value(self, function: str, i: int, letter: str, argument: object) -> object:
        where = f"argument {i} of {function}"
        if letter in POINTER_LETTERS:
            if isinstance(argument, torch.Tensor):
                return self.pointer(argument, where)
            assert argument is None or isinstance(argument, int), f"{where} is a pointer"
            return argument
        if isinstance(argument, torch.dtype):
            argument = ELEMENT[argument]
        kind = int if letter == "i" else (int, float)
        assert isinstance(argument, kind), f"{where}: {argument!r}"
        return argument

    def _record_launches(self, before: dict[str, Launches]) -> None:
        """Note the kernels that ran where `python -m tests.cuda_on_cpu.counts` looks."""
        if folder := os.environ.get("SBRRT_KERNEL_COUNTS"):
            after = self._library.kernels().items()
            ran = [(name, *now[1:]) for name, now in after if now.count > before[name].count]
            new = {(*kernel, self._seed) for kernel in ran} - _noted
            _noted.update(new)
            with open(Path(folder, f"{os.getpid()}.txt"), "a") as file:
                file.writelines("\t".join(map(str, line)) + "\n" for line in sorted(new))


def _ctype(letter: str) -> type:
    return {"i": ctypes.c_int64, "d": ctypes.c_double}.get(letter, ctypes.c_void_p)


@cache
def short_name(kernel: str) -> str:
    """A kernel's name without namespaces, the same from every compiler."""
    kernel = re.sub(r"\bsbrrt::cuda::|\{anonymous\}::|\(anonymous namespace\)::", "", kernel)
    kernel = re.sub(r"\b(long|short) unsigned int\b", r"unsigned \1", kernel)
    return kernel.replace("> >", ">>")


@cache
def _kernel_name(pretty: str) -> str:
    """``gelu_kernel<float>`` out of what the compiler calls launch<gelu_kernel<float>>."""
    found = re.search(r"\[with auto kernel = (.*)\]$|\[kernel = (.*)\]$", pretty)
    return (found[1] or found[2]) if found else pretty


def _readable(message: str) -> str:
    """The error with the kernel's name as the source has it."""
    function, bracket, rest = message.partition("]")
    return _kernel_name(function + bracket) + rest
