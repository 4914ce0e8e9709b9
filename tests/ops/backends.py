"""The backends that the generic tests run, what each can take, and how it computes a case."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial

import pytest
import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import INTERPRETED, triton_missing
from tests.cuda_on_cpu.kernels import KERNELS
from tests.ops.cases import OPS
from tests.ops.cases.base import Case, Op, Sample
from tests.ops.on_device import moved, no_gpu
from tests.ops.op_checks import BF16, F32, F64, float_tangent

F16 = torch.float16
PUBLIC = ("reference", "cpu", "triton", "cuda")  # those of the public functions
FUSED = ("cpu", "triton", "cuda")
ALL = (*PUBLIC, "cuda_on_cpu")

GPU = "cuda" if torch.cuda.is_available() else "cpu"
DEVICES = {"cuda": "cuda", "triton": "cpu" if INTERPRETED else "cuda"}
REPEATS = {"cuda": 250, "triton": 1 if INTERPRETED else 250}
# The interpreter warns of what masks leave out and of branches that are not taken.
_masked_out = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow):RuntimeWarning"
)
_no_triton = pytest.mark.skipif(triton_missing() is not None, reason=triton_missing() or "")


def marks(op: Op, backend: str) -> list:
    if backend == "cuda":
        return [no_gpu]
    if backend == "triton":
        return [_no_triton, *([_masked_out] if op.warns and INTERPRETED else [])]
    return []


def halves(backend: str) -> tuple[torch.dtype, ...]:
    """What stands for bfloat16 in a table's samples: the interpreter truncates what it stores."""
    if backend == "cuda" or (backend == "triton" and not INTERPRETED):
        return BF16, F16
    return {"triton": (F16,), "reference": (F64,)}.get(backend, (BF16,))


def fitted(sample: Sample, backend: str) -> Iterator[tuple[str, Sample]]:
    """The sample in dtypes that the backend takes, and what to call it."""
    if backend == "reference":
        yield "", _with(sample, {F32: F64, BF16: F64, F16: F64})
    elif _has(sample, BF16):
        for half in halves(backend):
            yield f" in {half}".replace("torch.", ""), _with(sample, {BF16: half})
    else:
        yield "", sample


def _with(sample: Sample, dtypes: dict) -> Sample:
    """A sample, or a part of it that is a tuple, with other dtypes."""
    parts = (_with(x, dtypes) if isinstance(x, tuple) else x for x in sample)
    return tuple(dtypes.get(x, x) if isinstance(x, torch.dtype) else x for x in parts)


def _has(sample: Sample, dtype: torch.dtype) -> bool:
    return any(_has(x, dtype) if isinstance(x, tuple) else x is dtype for x in sample)


def params(
    backends: Iterable[str] = ALL,
    *,
    names: Callable[[Op, str], Iterable[str]] = lambda op, backend: op.table(backend),
    where: Callable[[Op, str], bool] = lambda op, backend: True,
) -> pytest.MarkDecorator:
    """Parametrises a test by (op, backend, sample) over the table of cases.

    Args:
        names: of an op's samples that a backend is given; all of them if not told.
        where: whether a test is for an op and backend at all.
    """
    found = [
        pytest.param(op, backend, sample, id=f"{op.name}-{backend}-{name}{as_}",
                     marks=marks(op, backend))
        for op in OPS.values()
        for backend in backends
        if runs(op, backend) and where(op, backend)
        for name in names(op, backend)
        for as_, sample in fitted(op.table(backend)[name], backend)
    ]  # fmt: skip
    return pytest.mark.parametrize(("op", "backend", "sample"), found)


def backends_of(op: str, *others: str) -> pytest.MarkDecorator:
    """Parametrises a test of one op by the fused backends and others."""
    names = (*FUSED, *others)
    found = [pytest.param(name, marks=marks(OPS[op], name)) for name in names]
    return pytest.mark.parametrize("backend", found)


def small(op: Op, backend: str) -> list[str]:
    return [op.small]


def repeated(op: Op, backend: str) -> list[str]:
    """But for the large ones, which the interpreter's table has not."""
    return [name for name in dict.fromkeys([*op.repeated, op.small]) if name in op.table(backend)]


def runs(op: Op, backend: str) -> bool:
    if backend == "cuda_on_cpu":
        assert op.name in KERNELS, f"add {op.name} to KERNELS in tests/cuda_on_cpu/kernels"
    return True


def is_differentiated(op: Op, backend: str) -> bool:
    return op.is_differentiated


def has_tangent(op: Op, backend: str) -> bool:
    return op.is_differentiated and op.has_tangent and backend not in op.without_tangent


def listed(value: Tensor | list[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


class Derivatives:
    """The value of a function, its gradients and its tangent; each is computed when asked for."""

    def __init__(self, f: Callable, inputs: list[Tensor], grad: Tensor | None, tangents: dict):
        self.f, self.inputs, self.grad, self.tangents = f, inputs, grad, tangents

    @cached_property
    def _graph(self) -> tuple[list[Tensor], Tensor | list[Tensor]]:
        """The leaves and what became of them."""
        if self.grad is None:
            return [], self.f(*self.inputs)
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        return leaves, self.f(*leaves)

    @property
    def value(self) -> list[Tensor]:
        return [x.detach() for x in listed(self._graph[1])]

    @cached_property
    def gradients(self) -> list[Tensor]:
        leaves, out = self._graph
        grad = self.grad.to(out.device, out.dtype)
        return list(torch.autograd.grad(out, leaves, grad))

    @property
    def gradient_of_the_first(self) -> Tensor:
        """Where no other input has one."""
        first = self.inputs[0].detach().requires_grad_()
        out = self.f(first, *self.inputs[1:])
        return torch.autograd.grad(out, first, self.grad.to(out.device, out.dtype))[0]

    @cached_property
    def tangent(self) -> list[Tensor]:
        places = list(self.tangents)
        primals = [self.inputs[i] for i in places]
        pairs = zip(self.tangents.values(), primals, strict=True)
        tangents = [t.to(x.device, x.dtype) for t, x in pairs]
        return [float_tangent(partial(self._of_some, places), primals, tangents)]

    def _of_some(self, places: list[int], *some: Tensor) -> Tensor:
        given = dict(zip(places, some, strict=True))
        return self.f(*(given.get(i, x) for i, x in enumerate(self.inputs)))


@functools.cache
def case_of(op: Op, sample: Sample) -> Case:
    return op.case(sample)


def run(op: Op, backend: str, case: Case):
    """What a backend makes of a case: an object with ``value``, ``gradients``, ``tangent``."""
    if backend == "cuda_on_cpu":
        return KERNELS[op.name](case)
    case = moved(case, DEVICES.get(backend, "cpu"))
    return Derivatives(partial(case.call, backend=backend), case.inputs, case.grad, case.tangents)


@functools.cache
def computed(op: Op, backend: str, sample: Sample):
    """The same of a sample, once."""
    return run(op, backend, case_of(op, sample))


@functools.cache
def stock(op: Op, sample: Sample) -> Derivatives:
    """What stock PyTorch makes of it in the same dtypes."""
    case = case_of(op, sample)
    return Derivatives(case.stock, case.inputs, case.grad, case.tangents)


@functools.cache
def exact(op: Op, sample: Sample) -> Derivatives:
    """What it should be, in float64."""
    case = case_of(op, sample)
    return Derivatives(case.stock, case.exact_inputs(), case.grad, case.tangents)


def parts_of(op: Op, backend: str) -> list[str]:
    """What there is to compute."""
    derivatives = ["gradients"] if op.is_differentiated else []
    return ["value", *derivatives, *(["tangent"] if has_tangent(op, backend) else [])]


def assert_right(op: Op, backend: str, sample: Sample, part: str, found=None) -> None:
    """Compares ``value``, ``gradients`` or ``tangent`` with stock PyTorch's and the exact ones.

    They are ``found``'s, or what was or is computed now.
    """
    found = found or computed(op, backend, sample)
    results = [getattr(x, part) for x in (found, stock(op, sample), exact(op, sample))]
    ours, case = [x.cpu() for x in results[0]], case_of(op, sample)
    slack = {"reference": 1e-12, "triton": op.approximation}.get(backend, 0.0)
    case.check(ours, *results[1:], slack)
    if part == "value":
        case.check_value(ours, results[2])


def assert_all_right(op: Op, backend: str, sample: Sample) -> None:
    """Of all that there is, computed anew."""
    found = run(op, backend, case_of(op, sample))
    for part in parts_of(op, backend):
        assert_right(op, backend, sample, part, found)
