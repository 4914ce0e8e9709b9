"""What ``apply_sbrrt_kernels`` took of a model, and what it left alone and why."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KernelRow:
    """A module of a model.

    Attributes:
        name: as ``named_modules`` has it. kind: its class.
        ops: those that it runs, none where it was left alone.
        reason: why it was left alone; empty where it was taken.
    """

    name: str
    kind: str
    ops: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class KernelReport:
    """The result of ``apply_sbrrt_kernels``; printed, a table.

    Attributes:
        rows: the modules that the kernels are for, and other parts with parameters.
        choices: by op, the implementation that it takes on the model's device and dtype, and why
            not those before it.
    """

    rows: list[KernelRow] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def taken(self) -> list[str]:
        """Names of the modules that run fused ops."""
        return [row.name for row in self.rows if not row.reason]

    @property
    def left_alone(self) -> dict[str, str]:
        """The reason by the name of each module that runs as before."""
        return {row.name: row.reason for row in self.rows if row.reason}

    def __str__(self) -> str:
        """A line per kind of module; the layers of an encoder share theirs."""
        groups: dict[tuple, list[KernelRow]] = {}
        for row in self.rows:
            pattern = re.sub(r"\.\d+(?=\.|$)", ".*", row.name)
            groups.setdefault((pattern, row.kind, row.ops, row.reason), []).append(row)
        cells = [("module", "number", "class", "runs")]
        for (pattern, kind, ops, reason), rows in groups.items():
            what = f"as before: {reason}" if reason else ", ".join(ops)
            cells.append((pattern, str(len(rows)), kind, what))
        ops = [f"{op}: {choice}" for op, choice in self.choices.items()]
        return "\n".join([*_aligned(cells), *ops])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = [zip(row, widths, strict=True) for row in rows]
    return ["  ".join(cell.ljust(width) for cell, width in pair).rstrip() for pair in pairs]
