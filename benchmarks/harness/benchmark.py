"""What a benchmark of one op consists of: its variants, a check of each, and calls to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.measure import Call, WrongResult, check_close, relative_difference
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import BACKWARD, FORWARD, RNG_SEED, Case, cases

P, SITE = 0.1, 2  # dropout
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
BACKENDS = ("cuda", "triton", "cpu")
FLOOR = "copy"
MOST_SETS = 64  # of inputs


class Absent(Exception):
    """A variant cannot be compared here; its text is the reason."""


@dataclass(frozen=True)
class Cost:
    """What a call cannot do without."""

    bytes: float = 0.0
    flops: float = 0.0


class Benchmark:
    """A comparison of variants, case by case.

    A subclass says what its cases and variants are and makes calls of them; ``runner`` leaves out
    what is absent or fails, with the reason. Variants are checked in ``calls`` before they are
    timed.

    Attributes:
        name: of the op. variants: names, in the order of the tables.
        graph: whether a GPU may replay its calls from a graph.
        is_captured: whether the variant at hand may capture graphs; not where that failed before.
    """

    name: str
    variants: Sequence[str]
    graph = True
    is_captured = True

    def __init__(self, settings: Settings):
        self.settings, self.device = settings, settings.device
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        """Keeps what a reader of the figures should know, once."""
        if line not in self.notes:
            self.notes.append(line)

    def cases(self) -> Iterator[Case]:
        raise NotImplementedError

    def calls(self, case: Case, variant: str, num_sets: int) -> list[Call]:
        """Checked calls on so many sets of inputs; Absent where it cannot run."""
        raise NotImplementedError

    def cost(self, case: Case) -> Cost:
        return Cost()

    def tokens(self, case: Case) -> int | None:
        return case.num_tokens

    def budget(self, case: Case):
        return self.settings.op_budget

    def share(self, case: Case) -> float:
        """Of the time that its stage has left, what the case may take."""
        return 1.0

    def all_variants(self, case: Case) -> list[str]:
        """Those that are prepared, in this order; last a copy of the bytes that a call moves."""
        return [*self.variants, *([FLOOR] if self.cost(case).bytes else [])]

    def ready(self, case: Case, variant: str) -> list[Call]:
        """Checked calls of a variant, each on inputs of its own, drawn alike for all variants.

        Raises:
            Absent, BackendError: it cannot be compared here. WrongResult: it is not to be timed.
        """
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

    def backend_or_absent(self, variant: str) -> str | None:
        """A backend's name if the variant is one that this device could run, None for a peer."""
        if variant not in BACKENDS:
            return None
        if (variant == "cpu") != (self.device.type == "cpu"):
            raise Absent(f"runs on {'a CPU' if variant == 'cpu' else 'a GPU'} alone")
        return variant


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

    ``tensors`` gives fresh inputs, ``variant`` how to compute, ``exact`` the truth in float64.
    """

    dropout = P

    def tensors(self, case: Case) -> list[Tensor]:
        raise NotImplementedError

    def variant(self, case: Case, name: str, backend: str | None) -> Variant:
        """How a variant computes; ``backend`` is set where it is ours. Raises Absent."""
        raise NotImplementedError

    def exact(self, case: Case, inputs: list[Tensor], p: float) -> Tensor:
        raise NotImplementedError

    def cases(self) -> Iterator[Case]:
        return cases(self.settings)

    @property
    def rng(self) -> Tensor:
        return torch.tensor(RNG_SEED, device=self.device)

    def calls(self, case: Case, variant: str, num_sets: int) -> list[Call]:
        backend = self.backend_or_absent(variant)
        chosen = self.variant(case, variant, backend)
        self._check(case, variant, chosen, is_ours=backend is not None)
        return [self._call(case, chosen) for _ in range(num_sets)]

    def _leaves(self, inputs: list[Tensor], chosen: Variant) -> list[Tensor]:
        prepared = [chosen.prepare(x.detach()) for x in inputs]
        for x in prepared[: chosen.num_leaves]:
            x.requires_grad_()
        return prepared

    def _call(self, case: Case, chosen: Variant) -> Call:
        inputs = self._leaves(self.tensors(case), chosen)
        leaves, p = inputs[: chosen.num_leaves], self.dropout

        def forward():
            with torch.no_grad():
                return chosen.run(inputs, p)

        if case.part == FORWARD:
            return forward
        y = chosen.run(inputs, p)
        grad = torch.randn_like(y)
        if case.part == BACKWARD:
            return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)
        return lambda: torch.autograd.grad(chosen.run(inputs, p), leaves, grad)

    def _check(self, case: Case, name: str, chosen: Variant, is_ours: bool) -> None:
        """Result and gradients: ours with dropout, a peer without, as it draws other masks."""
        inputs, p = self.tensors(case), self.dropout if is_ours else 0.0
        what, tolerance = f"{self.name} {case} {name}", TOLERANCE[case.dtype]
        leaves = self._leaves(inputs, chosen)
        found = chosen.run(leaves, p)
        truth = [x.detach().double().requires_grad_() for x in inputs]
        expected = self.exact(case, truth, p)
        check_close(what, [chosen.restore(found)], [expected], tolerance)
        self._check_dropout(what, chosen, leaves, found, p)
        if case.part == FORWARD:
            return
        grad = torch.randn_like(expected).to(found.dtype)
        ours = torch.autograd.grad(found, leaves[: chosen.num_leaves], chosen.prepare(grad))
        exact = torch.autograd.grad(expected, truth[: chosen.num_leaves], grad.double())
        check_close(f"{what} gradient", map(chosen.restore, ours), exact, tolerance)

    def _check_dropout(
        self, what: str, chosen: Variant, leaves: list[Tensor], found: Tensor, p: float
    ) -> None:
        """That what is timed does drop out."""
        if not self.dropout:
            return
        with torch.no_grad():
            other = chosen.run(leaves, 0.0 if p else self.dropout)
        if relative_difference(chosen.restore(other), chosen.restore(found)) < 1e-3:
            raise WrongResult(f"{what}: does not drop out")


class Plain(Benchmark):
    """An op without derivatives: ``run`` computes from fresh ``tensors``, ``check`` looks at it."""

    def tensors(self, case: Case) -> tuple:
        raise NotImplementedError

    def function(self, case: Case, name: str, backend: str | None) -> Callable:
        """Of the tensors. Raises Absent."""
        raise NotImplementedError

    def check(self, case: Case, name: str, found: object, tensors: tuple) -> None:
        """Raises WrongResult."""
        raise NotImplementedError

    def calls(self, case: Case, variant: str, num_sets: int) -> list[Call]:
        function = self.function(case, variant, self.backend_or_absent(variant))
        sets = [self.tensors(case) for _ in range(num_sets)]
        self.check(case, variant, function(*sets[0]), sets[0])
        return [lambda tensors=tensors: function(*tensors) for tensors in sets]
