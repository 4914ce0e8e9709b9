"""Torch ops of the Triton kernels' host functions, and the reasons why they cannot run.

The ops are ``torch.ops.sbrrt_triton.<op>``, with the schemas of ``torch.ops.sbrrt``. They are
defined in a ``torch.library.Library``, whose call costs 3 us on top of the host function where a
``custom_op`` or a ``triton_op`` costs 10 or 11; torch.compile sees a call with a known result.
Kernels are imported when the first of them runs: this module needs no Triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from sbrrt_fast.ops.autodiff import has_tangent, tangent_is_differentiated
from sbrrt_fast.ops.dispatch import Implementation

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # as Triton reads it, once
ops = torch.ops.sbrrt_triton
_library = torch.library.Library("sbrrt_triton", "DEF")


def define(
    schema: str, module: str, function: str, fake: Callable, *, takes_nothing: bool = False
) -> None:
    """Makes a host function the op ``sbrrt_triton::<name in schema>``.

    Args:
        schema: ``name(arguments) -> results``, as in csrc/bindings.cpp.
        module: of ``sbrrt_fast.kernels``, where the function is.
        function: its name; it takes the schema's arguments in order.
        fake: makes empty results from the same arguments, for tracing.
        takes_nothing: also runs with lists without a tensor, which name no device.
    """
    name = schema.partition("(")[0]

    def run(*arguments):
        return _host_function(module, function)(*arguments)

    _library.define(schema)
    for key in ("CPU", "CUDA", *(["CompositeExplicitAutograd"] if takes_nothing else [])):
        _library.impl(name, run, key)
    torch.library.register_fake(f"sbrrt_triton::{name}", fake, lib=_library)


def register_backward(name: str, backward: Callable, keep: Callable) -> None:
    """The derivative of an op for torch.compile; see torch.library.register_autograd."""
    torch.library.register_autograd(
        f"sbrrt_triton::{name}", backward, setup_context=keep, lib=_library
    )


@cache
def _host_function(module: str, function: str) -> Callable:
    return getattr(import_module(f"sbrrt_fast.kernels.{module}"), function)


def missing() -> str | None:
    """Why no Triton kernel can run on this machine, or None."""
    return _missing()


missing._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, without its import


@cache
def _missing() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` (Linux)"
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no NVIDIA GPU (and TRITON_INTERPRET=1 is not set)"
    try:
        import_module("sbrrt_fast.kernels.philox")
    except Exception as error:  # a broken installation may raise anything
        return f"Triton does not work: {type(error).__name__}: {error}"
    return None


def triton_reason(*, differentiable: dict[str, Tensor], constant: dict[str, Tensor]) -> str | None:
    """Why the Triton kernels cannot take these floating-point tensors, or None.

    Args:
        differentiable: by name, those in which the op has a forward-mode derivative.
        constant: by name, those in which it has none.
    """
    for name, tensor in (differentiable | constant).items():
        if reason := device_reason(name, tensor):
            return reason
        if tensor.dtype not in TRITON_DTYPES:
            return f"{name} is {str(tensor.dtype)[6:]}, which runs on the reference"
        if INTERPRETED and tensor.dtype is torch.bfloat16:
            return f"{name} is bfloat16, which Triton's interpreter truncates where a GPU rounds"
    for name, tensor in differentiable.items():
        if tangent_is_differentiated(tensor):
            return f"the tangent of {name} is itself being differentiated"
    for name, tensor in constant.items():
        if has_tangent(tensor):
            return f"{name} has a tangent, which runs on the reference"
    return None


def device_reason(name: str, tensor: Tensor) -> str | None:
    """Why a tensor is where no Triton kernel can reach it, or None."""
    device = "cpu" if INTERPRETED else "cuda"
    if tensor.device.type == device:
        return None
    hint = " in the interpreter" if INTERPRETED else ""
    return f"{name} is on {tensor.device}, not {device}{hint}"


def with_triton(triton: Implementation, *others: Implementation) -> list[Implementation]:
    """An op's implementations in order of preference; ``others`` ends with the reference.

    The interpreter shows that kernels are right, slowly, so ``auto`` never takes it.
    """
    return [*others, triton] if INTERPRETED else [*others[:-1], triton, others[-1]]
