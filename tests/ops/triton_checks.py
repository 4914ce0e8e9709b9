"""What the tests of the Triton kernels have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sbrrt_fast.kernels.launch import Launch, recording
from tests.ops.backends import INTERPRETED, assert_all_right, fitted
from tests.ops.cases import OPS
from tests.ops.cases.base import Op, Sample
from tests.ops.test_opcheck import native_calls
from tests.ops.triton_only import DEVICE

F16 = torch.float16
interpreted = pytest.mark.skipif(not INTERPRETED, reason="changes an interpreted kernel")


def here(x: object) -> object:
    """Tensors inside lists and tuples, where the kernels run."""
    return tree_map(lambda y: y.to(DEVICE) if isinstance(y, Tensor) else y, x)


@contextmanager
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN, as it may."""

    def wrap(empty: Callable) -> Callable:
        def fresh(*args, **kwargs):
            x = empty(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return fresh

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", wrap(torch.empty))
        patch.setattr(torch.Tensor, "new_empty", wrap(torch.Tensor.new_empty))
        yield


def triton_calls(op: Op, sample: Sample) -> list[tuple]:
    """(Triton's op, its arguments where it runs): the calls that C++ gets for a sample."""
    return [
        (getattr(torch.ops.sbrrt_triton, overload._opname).default, here(arguments))
        for overload, arguments in native_calls(op, "cpu", sample)
    ]


def by_name(op: torch._ops.OpOverload, arguments: tuple) -> dict[str, object]:
    names = [argument.name for argument in op._schema.arguments]
    return dict(zip(names, arguments, strict=True))


def assert_caught(op: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample's numbers are wrong now, fresh memory being NaN."""
    (_, sample), *_ = fitted(OPS[op].table("triton")[name], "triton")
    with poisoned(monkeypatch), pytest.raises(AssertionError):
        assert_all_right(OPS[op], "triton", sample)


def assert_compiles_once(*calls: Callable[[], object]) -> None:
    """All calls' launches are one to Triton: same constants, dtypes and specialised numbers."""
    launched = []
    for call in calls:
        with recording() as launches:
            call()
        launched.append([_compiled_for(launch) for launch in launches])
    assert launched[0]
    assert all(launches == launched[0] for launches in launched)


def _compiled_for(launch: Launch) -> tuple:
    kernel, free = launch.kernel, _free_arguments(launch.kernel)
    kinds = [
        _kind(value, name in free)
        for name, value in zip(kernel.arg_names, launch.arguments, strict=False)
    ]
    return kernel, kinds, launch.constants


def _free_arguments(kernel) -> set[str]:
    """Names of the arguments that Triton does not specialise."""
    if INTERPRETED:
        return set(kernel.kwargs.get("do_not_specialize") or ())
    return {p.name for p in kernel.params if p.do_not_specialize}


def _kind(value: object, is_free: bool) -> object:
    """What Triton compiles for: a 1 and multiples of 16 are known, where not told otherwise."""
    if isinstance(value, Tensor):
        return value.dtype
    if not isinstance(value, int) or isinstance(value, bool):
        return type(value)
    return "wide" if value >= 2**31 else is_free or (value == 1, value % 16 == 0)
