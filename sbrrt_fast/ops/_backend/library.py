"""The ops that backends implement: each writes into given memory and returns nothing.

``define`` makes one schema an op of two torch libraries: ``sbrrt``, whose kernels are the
extension's (CPU, CUDA and, for tracing, Meta), and ``sbrrt_triton``, whose kernels are the host
functions of ``sbrrt_fast.kernels``. Forms that allocate are plain Python beside the schemas.

A ``torch.library.Library`` op costs 3 us on top of a Triton host function, where a ``custom_op`` or
a ``triton_op`` costs 10 or 11. Kernels are imported when the first of them runs: no Triton is
needed here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import SimpleNamespace

import torch
from torch import Tensor

from sbrrt_fast import _extension

_native = torch.library.Library("sbrrt", "FRAGMENT")
_triton = torch.library.Library("sbrrt_triton", "FRAGMENT")

HOST_FUNCTIONS: dict[str, tuple[str, str]] = {}
"""(module, function) of ``sbrrt_fast.kernels`` by op."""

NATIVE_OPS = SimpleNamespace()
TRITON_OPS = SimpleNamespace()
"""The ops of each library by name, ``NATIVE_OPS.bias_gelu_forward_into(x, bias, out)``."""


def define(schema: str, host_function: str) -> None:
    """Makes a schema an op of both libraries.

    Args:
        schema: ``name(arguments)``, with the results among the arguments, as torch writes it.
        host_function: ``module.function`` of ``sbrrt_fast.kernels`` with the same arguments.
    """
    name = schema.partition("(")[0]
    _define_native(f"{schema} -> ()")
    _triton.define(f"{schema} -> ()")
    module, _, function = host_function.partition(".")
    HOST_FUNCTIONS[name] = module, function
    for key in ("CPU", "CUDA"):
        _triton.impl(name, _calling(module, function), key)
    torch.library.register_fake(f"sbrrt_triton::{name}", _write_nothing, lib=_triton)
    if hasattr(torch.ops.sbrrt, name):
        setattr(NATIVE_OPS, name, getattr(torch.ops.sbrrt, name).default)
    setattr(TRITON_OPS, name, getattr(torch.ops.sbrrt_triton, name).default)


def _define_native(schema: str) -> None:
    """An extension that was compiled from other sources is one that cannot be used."""
    try:
        _native.define(schema)
    except RuntimeError:
        _extension.refuse(schema.partition("(")[0])


def _calling(module: str, function: str) -> Callable[..., None]:
    def run(*arguments) -> None:
        _host_function(module, function)(*arguments)

    return run


def _write_nothing(*arguments) -> None:
    """What tracing does in an op's place."""


@cache
def _host_function(module: str, function: str) -> Callable[..., None]:
    return getattr(import_module(f"sbrrt_fast.kernels.{module}"), function)


def empty_like(x: Tensor) -> Tensor:
    """A contiguous result of the shape, dtype and device of ``x``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def empty_floats(x: Tensor, *shape: int) -> Tensor:
    """A float32 result where ``x`` is."""
    return torch.empty(shape, dtype=torch.float32, device=x.device)
