"""What a table is made of: rows, their settings, and what the paper has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Paper:
    """The paper's results for a row.

    Attributes:
        scores: dev scores by task, of bert-base-uncased.
        rounds_per_second: its speed; None where it gives none.
        benchmark: dev scores by task that the course's handout names.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    rounds_per_second: float | None = None
    benchmark: Mapping[str, float] = field(default_factory=dict)

    @property
    def overall(self) -> float | None:
        """The plain mean of the scores."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: of the row and of the folder of its runs.
        recipe: in the configs folder. overrides: settings that differ from it, by dotted key.
        paper: the paper's results.
        base: the row that it is tested against, seed by seed; none if empty.
        plain: the row that is trained likewise without SMART, whose speed it is compared with.
    """

    name: str
    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    paper: Paper = field(default_factory=Paper)
    base: str = ""
    plain: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: what ``--table`` takes. title: its heading.
        tasks: its score columns. has_overall: whether there is one of the overall score.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    has_overall: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the score columns."""
        return (*self.tasks, "overall") if self.has_overall else self.tasks
