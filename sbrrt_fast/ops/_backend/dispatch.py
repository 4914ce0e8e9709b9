"""The choice of implementation: each one says why it can not take these inputs.

``backend="auto"`` takes the first implementation without a reason; a named one that has a reason
raises ``BackendError`` with it. The choice is a pure function of device, dtype and shape, made at
every call; it costs a few microseconds (``docs/architecture.md``), most of them for reading these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from sbrrt_fast._extension import INSTALL
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops._backend.backends import CPU, CUDA, INTERPRETED, TRITON

BACKENDS = ("cuda", "triton", "cpu", "reference")
_DISPATCH_KEYS = {"cuda": "CUDA", "cpu": "CPU"}  # the backends that are ops of the extension


@dataclass(frozen=True)
class Implementation:
    """One way to run an op.

    Attributes:
        backend: one of ``BACKENDS``.
        run: the callable; all implementations of an op take the same arguments.
        why_not: given those arguments, the reason this one cannot take them, or None.
        missing: the reason it cannot run on this machine at all, or None.
    """

    backend: str
    run: Callable
    why_not: Callable[..., str | None]
    missing: Callable[[], str | None]


@dataclass(frozen=True)
class Choice:
    """What an op takes for some inputs.

    Attributes:
        op: its name.
        backend: the one that takes them; None where none of those asked can.
        reasons: by backend, why each of those asked before it cannot.
    """

    op: str
    backend: str | None
    reasons: dict[str, str]

    @property
    def reasons_text(self) -> str:
        """``cpu: the reason; triton: the reason``."""
        return "; ".join(f"{backend}: {reason}" for backend, reason in self.reasons.items())


class Op:
    """A named op and its implementations in order of preference.

    The ``cpu`` and ``cuda`` ones call the extension's ``<name>_into`` or ``<name>_forward_into``
    and are missing where the extension was built without it.
    """

    def __init__(self, name: str, implementations: list[Implementation]):
        self.name = name
        self.implementations = implementations
        self._candidates = {"auto": implementations} | {i.backend: [i] for i in implementations}
        self._not_built = {i.backend: _not_built(name, i.backend) for i in implementations}

    def choose(self, backend: str, *args, **kwargs) -> Implementation:
        """The implementation that takes these arguments.

        Raises:
            BackendError: the named backend cannot run them, or none can; with each one's reason.
        """
        for implementation in self._candidates.get(backend, ()):
            if self._why_not(implementation, args, kwargs) is None:
                return implementation
        reasons = self.explain(backend, *args, **kwargs).reasons_text
        raise BackendError(f"{self.name} cannot run here ({reasons})")

    def explain(self, backend: str, *args, **kwargs) -> Choice:
        """What ``choose`` takes for these arguments, and why not those before it; never raises."""
        if backend not in self._candidates:
            return Choice(self.name, None, {backend: "there is no such implementation"})
        reasons: dict[str, str] = {}
        for implementation in self._candidates[backend]:
            reason = self._why_not(implementation, args, kwargs)
            if reason is None:
                return Choice(self.name, implementation.backend, reasons)
            reasons[implementation.backend] = reason
        return Choice(self.name, None, reasons)

    def __call__(self, *args, backend: str = "auto", **kwargs):
        return self.choose(backend, *args, **kwargs).run(*args, **kwargs)

    def missing(self, implementation: Implementation) -> str | None:
        """Why an implementation cannot run on this machine at all, or None."""
        return implementation.missing() or self._not_built[implementation.backend]

    def table(self) -> list[tuple[str, str]]:
        """(backend, "yes" or the reason why not) for every backend there could be."""
        present = {i.backend: self.missing(i) for i in self.implementations}
        absent = "not implemented for this op"
        return [(name, present.get(name, absent) or "yes") for name in BACKENDS]

    def _why_not(self, implementation: Implementation, args: tuple, kwargs: dict) -> str | None:
        return self.missing(implementation) or implementation.why_not(*args, **kwargs)


def _not_built(op: str, backend: str) -> str | None:
    """Why the extension has no such op for a backend, or None."""
    key = _DISPATCH_KEYS.get(backend)
    if key is None:
        return None
    for name in (f"{op}_forward_into", f"{op}_into", op):
        has_schema = hasattr(torch.ops.sbrrt, name)
        if has_schema and torch._C._dispatch_has_kernel_for_dispatch_key(f"sbrrt::{name}", key):
            return None
    return f"this build of the C++ ops has no {op} for {key}; reinstall it: {INSTALL}"


def fused_op(name: str, run: Callable, why_not: Callable, reference: Callable) -> Op:
    """An op that every backend has.

    The interpreter shows that Triton's kernels are right, slowly, so ``auto`` never takes it there.

    Args:
        run: (backend, *arguments) -> the result, over the backend's writing ops.
        why_not: (backend, *arguments) -> the reason why it cannot take them, or None.
        reference: the op in plain PyTorch, which takes everything.
    """
    cuda, triton, cpu = (
        Implementation(b.name, partial(run, b), partial(why_not, b), b.missing)
        for b in (CUDA, TRITON, CPU)
    )
    plain = Implementation("reference", reference, no_reason, always_available)
    order = [cuda, cpu, plain, triton] if INTERPRETED else [cuda, cpu, triton, plain]
    return Op(name, order)


def no_reason(*args, **kwargs) -> None:
    """For implementations that take everything."""


def always_available() -> None:
    """For implementations that are on every machine."""
