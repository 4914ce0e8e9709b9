"""What the table of cases is made of; see ``tests.ops.cases``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tests.ops.op_checks import F32, F64, assert_as_good_as_stock, laid_out

Sample = tuple  # hashable; what it holds is said beside each op's samples


class Case(ABC):
    """The inputs of a sample, and how to compute with them.

    Attributes:
        inputs: the tensors in which the op has gradients, or all that it computes with.
        constants: the tensors that it has besides.
        grad: of the result, or None where the op is not differentiated.
        tangents: by number of an input, its tangent.
    """

    inputs: list[Tensor]
    constants: tuple[Tensor, ...] = ()
    grad: Tensor | None = None
    tangents: dict[int, Tensor] = {}  # noqa: RUF012 - each case that has some sets its own

    @abstractmethod
    def function(self, backend: str) -> Callable:
        """The public function of ``(*inputs, *constants)``; of the case it holds numbers alone."""

    @abstractmethod
    def stock(self, *inputs: Tensor) -> Tensor | list[Tensor]:
        """The definition in torch's own operations."""

    def call(self, *inputs: Tensor, backend: str) -> Tensor | list[Tensor]:
        return self.function(backend)(*inputs, *self.constants)

    def exact_inputs(self) -> list[Tensor]:
        return [x.double() for x in self.inputs]

    def check(self, ours: list, stock: list, exact: list, approximation: float) -> None:
        """Compares results; ``approximation`` is what a backend may add to the error."""
        for triple in zip(ours, stock, exact, strict=True):
            assert_as_good_as_stock(*triple, approximation)

    def check_value(self, value: list[Tensor], exact: list[Tensor]) -> None:  # noqa: B027 - none
        """What must hold of the result besides."""


class Drawn:
    """Standard normal tensors, the same for every backend, in a layout."""

    def __init__(self, seed: int, layout: str = "dense"):
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = layout

    def __call__(self, *size: int, dtype: torch.dtype = F64, scale=1.0, shift=0.0) -> Tensor:
        x = torch.randn(size, generator=self.generator, dtype=F64)
        return (x * scale + shift).to(dtype)

    def rows(self, *size: int, **change) -> Tensor:
        return laid_out(self(*size, **change), self.layout)

    def indices(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self.generator)


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of biases and LayerNorm's weights: float32, but where all is float64."""
    return torch.promote_types(dtype, F32)


def writing(op: str, *parts: str) -> tuple[str, ...]:
    """The names of its writing ops."""
    return tuple(f"{op}_{part}_into" for part in parts)


class Bad(NamedTuple):
    """An argument that the kernels refuse, and what they say.

    Attributes:
        where: the libraries that say it, ``sbrrt`` and ``sbrrt_triton``.
        parts: those of the op's calls that are tried; None: all that take the argument.
    """

    argument: str
    value: object
    error: type[Exception]
    message: str
    where: tuple[str, ...] = ("sbrrt", "sbrrt_triton")
    parts: tuple[str, ...] | None = None


class Reason(NamedTuple):
    """A call that a named backend does not take: ``call(backend)`` raises with this message."""

    call: Callable[[str], object]
    message: str
    backends: tuple[str, ...] = ("cpu", "triton")


@dataclass(frozen=True, eq=False)
class Op:
    """All that the generic tests know of an op.

    Attributes:
        case: of a sample.
        samples: for every backend.
        native: for C++ and CUDA besides; Triton's interpreter takes long for them.
        triton, cuda: at the edges of Triton's tiles; for each instantiation of a CUDA kernel.
        cpu: for C++ besides.
        small: the name of a sample of few elements, for what depends on no size.
        repeated: names of samples of several blocks of work, whose bits are compared.
        orders: names of samples that run every CUDA kernel, in many orders of its threads.
        sized: a sample of so many rows.
        approximation: what Triton's instructions on a GPU add to the error, see ``triton_only``.
        good: arguments of the writing ops by name, results included; small.
        calls: the writing ops themselves; ``<name>_into`` unless told.
        weights: numbers of the inputs whose gradients ``input_gradients_only`` leaves out.
        is_differentiated: whether it has gradients.
        has_tangent: whether it has a forward-mode derivative.
        without_tangent: backends that compute none even so.
        warns: whether the interpreter warns of what Triton's masks leave out.
    """

    name: str
    case: Callable[[Sample], Case]
    samples: dict[str, Sample]
    small: str
    repeated: tuple[str, ...]
    sized: Callable[[int], Sample]
    good: Callable[[], dict]
    native: dict[str, Sample] = field(default_factory=dict)
    cpu: dict[str, Sample] = field(default_factory=dict)
    triton: dict[str, Sample] = field(default_factory=dict)
    cuda: dict[str, Sample] = field(default_factory=dict)
    orders: tuple[str, ...] = ()
    calls: tuple[str, ...] | None = None
    weights: tuple[int, ...] = ()
    approximation: float = 0.0
    bad: tuple[Bad, ...] = ()
    reasons: tuple[Reason, ...] = ()
    is_differentiated: bool = True
    has_tangent: bool = True
    without_tangent: tuple[str, ...] = ()
    warns: bool = False

    @property
    def writing(self) -> tuple[str, ...]:
        """The writing ops of the schemas."""
        return self.calls or (f"{self.name}_into",)

    def table(self, backend: str) -> dict[str, Sample]:
        """The samples of a backend."""
        if backend == "triton":
            return self.samples | self.triton
        own = {"cpu": self.cpu, "cuda_on_cpu": self.cuda}.get(backend, {})
        return self.samples | self.native | own
