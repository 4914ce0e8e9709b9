"""The choice of implementation: each one says why it can not take these inputs.

``backend="auto"`` takes the first implementation without a reason; a named one that has a reason
raises ``BackendError`` with it. The choice is a pure function of device, dtype and shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sbrrt_fast.errors import BackendError

BACKENDS = ("cuda", "triton", "cpu", "reference")


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


def never() -> None:
    """For implementations that are always there."""
    return


class Op:
    """A named op and its implementations in order of preference."""

    def __init__(self, name: str, implementations: list[Implementation]):
        self.name = name
        self.implementations = implementations

    def choose(self, backend: str, *args, **kwargs) -> Implementation:
        """The implementation that takes these arguments.

        Raises:
            BackendError: the named backend cannot run them, or none can; with each one's reason.
        """
        candidates = [i for i in self.implementations if backend in ("auto", i.backend)]
        reasons = []
        for implementation in candidates:
            reason = implementation.missing() or implementation.why_not(*args, **kwargs)
            if reason is None:
                return implementation
            reasons.append(f"{implementation.backend}: {reason}")
        if not candidates:
            reasons.append(f"{backend}: there is no such implementation")
        raise BackendError(f"{self.name} cannot run here ({'; '.join(reasons)})")

    def __call__(self, *args, backend: str = "auto", **kwargs):
        return self.choose(backend, *args, **kwargs).run(*args, **kwargs)

    def table(self) -> list[tuple[str, str]]:
        """(backend, "yes" or the reason why not) for every backend there could be."""
        present = {i.backend: i.missing() for i in self.implementations}
        absent = "not implemented for this op"
        return [(name, present.get(name, absent) or "yes") for name in BACKENDS]


def reference_only(name: str, run: Callable) -> Op:
    """An op that has its reference and nothing else yet."""
    return Op(name, [Implementation("reference", run, lambda *a, **k: None, never)])
