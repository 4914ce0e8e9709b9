"""What a benchmark of one op consists of: its variants, a check of each, and calls to be timed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.harness.check import WrongResult, check_close, relative_difference
from benchmarks.harness.measure import Budget, Call, Stopwatch
from benchmarks.harness.results import is_ours
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import BACKWARD, FORWARD, RNG_SEED, Case, cases
from benchmarks.harness.text import describe
from sbrrt_fast.errors import BackendError

P, SITE = 0.1, 2  # dropout
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
BACKENDS, REFERENCE = ("cuda", "triton", "cpu"), "reference"
FLOOR = "copy"
MOST_SETS = 64  # of inputs
T = TypeVar("T")


class Absent(Exception):
    """A variant cannot be compared here; its text is the reason."""


def absence(variant: str, error: Exception) -> str | None:
    """Why a variant cannot be compared here; None where the error is a failure.

    A peer that stops is absent, with what it says. A wrong result is a failure whoever has it.
    """
    if isinstance(error, (Absent, BackendError)):
        return str(error)
    if is_ours(variant) or isinstance(error, AssertionError):
        return None
    return f"stopped: {describe(error).splitlines()[0]}"


@dataclass(frozen=True)
class Cost:
    """What a call cannot do without."""

    bytes: float = 0.0
    flops: float = 0.0


class Benchmark(ABC):
    """A comparison of variants, case by case.

    A subclass says what its cases and variants are and makes calls of them, which it checks first.
    ``runner`` times all variants of a case in turn, pytest-benchmark each by itself.

    Attributes:
        name: of the op. variants: names, in the order of the tables.
        graph: whether a GPU may replay its calls from a graph.
        is_interleaved: whether all its cases take turns, not only the variants of one.
        is_captured: whether the variant at hand may capture graphs; not where that failed before.
    """

    name: str
    variants: Sequence[str]
    graph = True
    is_interleaved = False
    is_captured = True

    def __init__(self, settings: Settings):
        self.settings, self.device = settings, settings.device
        self.notes: list[str] = []
        self._last: dict[str, tuple[Case, object]] = {}

    def note(self, line: str) -> None:
        """Keeps what a reader of the figures should know, once."""
        if line not in self.notes:
            self.notes.append(line)

    def once(self, name: str, case: Case, make: Callable[[], T]) -> T:
        """What ``make`` returns, made once for all variants of a case."""
        if self._last.get(name, (None,))[0] != case:
            self._last[name] = case, make()
        return self._last[name][1]

    @abstractmethod
    def cases(self) -> Iterator[Case]:
        """Of the settings, the most telling first."""

    @abstractmethod
    def calls(self, case: Case, variant: str, num_sets: int) -> list[Call]:
        """Checked calls on so many sets of inputs; Absent where it cannot run."""

    def cost(self, case: Case) -> Cost:
        return Cost()

    def tokens(self, case: Case) -> int | None:
        return case.num_tokens

    def counts(self, case: Case) -> dict[str, float | None]:
        """What a call deals with, must move and must do; None where it is not counted."""
        cost = self.cost(case)
        return {
            "tokens": self.tokens(case),
            "bytes": cost.bytes or None,
            "flops": cost.flops or None,
        }

    def budget(self, case: Case) -> Budget:
        return self.settings.op_budget

    def share(self, case: Case) -> float:
        """Of the time that its stage has left, what the case may take."""
        return 1.0

    def all_variants(self, case: Case) -> list[str]:
        """Those that are prepared, in this order; last a copy of the bytes that a call moves."""
        return [*self.variants, *([FLOOR] if self.cost(case).bytes else [])]

    def refusal(self, variant: str) -> str:
        """Why the times that were just taken of a variant do not count; "" where they do."""
        return ""

    def watch(self, case: Case, variant: str, graph: bool = False, **clock) -> Stopwatch:
        """A variant that is checked and warmed up, on inputs drawn alike for all variants.

        Raises:
            Absent, BackendError: it cannot be compared here. WrongResult: it is not to be timed.
        """
        calls = self.ready(case, variant)
        return Stopwatch(calls, self.device, self.budget(case), graph and self.graph, **clock)

    def ready(self, case: Case, variant: str) -> list[Call]:
        num_sets = self._num_sets(case)
        if variant == FLOOR:
            return self._copies(self.cost(case).bytes, num_sets)
        torch.manual_seed(0)
        return self.calls(case, variant, num_sets)

    def _num_sets(self, case: Case) -> int:
        """As many sets of inputs as push each other out of a GPU's cache, within reason."""
        if self.device.type != "cuda":
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        moved = self.cost(case).bytes
        return min(MOST_SETS, math.ceil(2 * cache / moved)) if moved else 1

    def _copies(self, moved: float, num_sets: int) -> list[Call]:
        """Copies that read and write ``moved`` bytes in all."""
        shape = (2, max(1, int(moved) // 8))
        pairs = [torch.randn(shape, device=self.device) for _ in range(num_sets)]
        return [lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs]

    def check_device(self, variant: str) -> None:
        """Raises Absent where it is a backend of ours that is another device's."""
        if variant in BACKENDS and (variant == "cpu") != (self.device.type == "cpu"):
            raise Absent(f"runs on {'a CPU' if variant == 'cpu' else 'a GPU'} alone")

    @property
    def rng(self) -> Tensor:
        return torch.tensor(RNG_SEED, device=self.device)


@dataclass(frozen=True)
class Variant:
    """A way to compute an op that has derivatives.

    Attributes:
        run: (inputs, p) -> result, with dropout where p > 0.
        prepare: brings an input or the result's gradient into its layout, such as padded.
        restore: brings its result or an input's gradient back.
        num_leaves: of how many of the inputs, the first ones, it computes gradients; None: of all.
    """

    run: Callable[[list[Tensor], float], Tensor]
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    restore: Callable[[Tensor], Tensor] = lambda x: x
    num_leaves: int | None = None


class Differentiable(Benchmark):
    """An op with a backward: cases have a part, all inputs are floating point and differentiable.

    ``tensors`` gives fresh inputs; ``ours`` and ``peer`` say how to compute.
    """

    dropout = P

    @abstractmethod
    def tensors(self, case: Case) -> list[Tensor]:
        """Fresh inputs."""

    @abstractmethod
    def ours(self, case: Case, backend: str) -> Variant:
        """This package's, by a backend or by ``reference``, which takes float64 too."""

    @abstractmethod
    def peer(self, case: Case, name: str) -> Variant:
        """Anybody else's. Raises Absent."""

    def variant(self, case: Case, name: str) -> Variant:
        return (self.ours if name in (*BACKENDS, REFERENCE) else self.peer)(case, name)

    def exact(self, case: Case, inputs: list[Tensor], p: float) -> Tensor:
        """The truth, from inputs in float64."""
        return self.ours(case, REFERENCE).run(inputs, p)

    def cases(self) -> Iterator[Case]:
        return cases(self.settings)

    def calls(self, case: Case, variant: str, num_sets: int) -> list[Call]:
        self.check_device(variant)
        way = self.variant(case, variant)
        self._check(case, variant, way)
        return [self._call(case, way) for _ in range(num_sets)]

    def _leaves(self, inputs: list[Tensor], way: Variant) -> list[Tensor]:
        prepared = [way.prepare(x.detach()) for x in inputs]
        for x in prepared[: way.num_leaves]:
            x.requires_grad_()
        return prepared

    def _call(self, case: Case, way: Variant) -> Call:
        inputs = self._leaves(self.tensors(case), way)
        leaves, p = inputs[: way.num_leaves], self.dropout

        def forward():
            with torch.no_grad():
                return way.run(inputs, p)

        if case.part == FORWARD:
            return forward
        y = way.run(inputs, p)
        grad = torch.randn_like(y)
        if case.part == BACKWARD:
            return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)
        return lambda: torch.autograd.grad(way.run(inputs, p), leaves, grad)

    def _check(self, case: Case, name: str, way: Variant) -> None:
        """Result and gradients: ours with dropout, a peer without, as it draws other masks."""
        inputs, p = self.tensors(case), self.dropout if name in BACKENDS else 0.0
        what, tolerance = f"{self.name} {case} {name}", TOLERANCE[case.dtype]
        leaves = self._leaves(inputs, way)
        result = way.run(leaves, p)
        truth = [x.detach().double().requires_grad_() for x in inputs]
        expected = self.exact(case, truth, p)
        check_close(what, [way.restore(result)], [expected], tolerance)
        self._check_dropout(what, way, leaves, result, p)
        if case.part == FORWARD:
            return
        grad = torch.randn_like(expected).to(result.dtype)
        grads = torch.autograd.grad(result, leaves[: way.num_leaves], way.prepare(grad))
        exact = torch.autograd.grad(expected, truth[: way.num_leaves], grad.double())
        check_close(f"{what} gradient", map(way.restore, grads), exact, tolerance)

    def _check_dropout(
        self, what: str, way: Variant, leaves: list[Tensor], result: Tensor, p: float
    ) -> None:
        """That what is timed does drop out."""
        if not self.dropout:
            return
        with torch.no_grad():
            other = way.run(leaves, 0.0 if p else self.dropout)
        if relative_difference(way.restore(other), way.restore(result)) < 1e-3:
            raise WrongResult(f"{what}: does not drop out")


class Plain(Benchmark):
    """An op without derivatives: a function of fresh ``tensors``, whose result ``check`` sees."""

    @abstractmethod
    def tensors(self, case: Case) -> tuple:
        """Fresh inputs."""

    @abstractmethod
    def function(self, case: Case, name: str) -> Callable:
        """Of the tensors. Raises Absent."""

    @abstractmethod
    def check(self, case: Case, name: str, result: object, tensors: tuple) -> None:
        """Raises WrongResult."""

    def calls(self, case: Case, variant: str, num_sets: int) -> list[Call]:
        self.check_device(variant)
        function = self.function(case, variant)
        sets = [self.tensors(case) for _ in range(num_sets)]
        self.check(case, variant, function(*sets[0]), sets[0])
        return [lambda tensors=tensors: function(*tensors) for tensors in sets]
