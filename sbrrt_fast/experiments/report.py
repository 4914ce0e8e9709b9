"""A table of results, the paper's values beside ours, as text, Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sbrrt_fast.experiments.record import RunRecord
from sbrrt_fast.experiments.statistics import (
    UNKNOWN,
    PairedDifference,
    Spread,
    number,
    paired_difference,
)
from sbrrt_fast.experiments.table import Row, Table

SAMPLE_WARNING = (
    "THESE NUMBERS MEAN NOTHING: the runs were trained on the built-in sample, which is made up. "
    "Name the task files with --data-dir."
)
Cells = list[str]


@dataclass(frozen=True)
class RowResult:
    """A row and its finished runs, one per seed.

    Attributes:
        timed: further runs of the row that were made for their speed alone, of any length.
    """

    row: Row
    runs: Sequence[RunRecord]
    timed: Sequence[RunRecord] = ()

    @property
    def scores(self) -> dict[str, Spread]:
        """Dev scores of the best models by task, and ``overall``; empty without runs."""
        names = self.runs[0].scores if self.runs else ()
        return {name: Spread(tuple(run.scores[name] for run in self.runs)) for name in names}

    def by_seed(self, name: str) -> dict[int, float | None]:
        """A score of each run; empty where the row has none of that name."""
        return {run.seed: run.scores[name] for run in self.runs if name in run.scores}

    @property
    def rounds_per_second(self) -> Spread | None:
        """Of the runs that had the machine for themselves; None without any."""
        runs = [run for run in (*self.runs, *self.timed) if run.is_alone]
        return Spread(tuple(run.rounds_per_second for run in runs)) if runs else None

    @property
    def minutes(self) -> float | None:
        """Mean time of training and evaluation of the runs that had the machine for themselves."""
        seconds = [r.train_seconds + r.evaluation_seconds for r in self.runs if r.is_alone]
        return statistics.fmean(seconds) / 60 if seconds else None

    def mean_term(self, task: str, term: str) -> float | None:
        """A term's mean over rounds and seeds, such as R_s (``smart``); None if never measured."""
        means = [run.means.get(f"{task}/{term}") for run in self.runs]
        known = [value for value in means if value is not None]
        return statistics.fmean(known) if known else None

    def to_dict(self, tasks: Sequence[str]) -> dict[str, Any]:
        paper, speed = self.row.paper, self.rounds_per_second
        record: dict[str, Any] = {
            "row": self.row.name,
            "seeds": [run.seed for run in self.runs],
            "paper": asdict(paper) | {"overall": paper.overall},
        }
        if not self.runs:
            return record
        first = self.runs[0]
        return record | {
            "backbone": first.backbone,
            "precision": first.precision,
            "backend": first.backend,
            "rounds": first.rounds,
            "scores": {name: spread.to_dict() for name, spread in self.scores.items()},
            "rounds_per_second": speed and speed.to_dict(),
            "smart": {task: self.mean_term(task, "smart") for task in tasks},
            "gain": {task: self.mean_term(task, "gain") for task in tasks},
        }


@dataclass(frozen=True)
class Report:
    """A table with our results.

    Attributes:
        rows: results in the table's order; rows without runs are shown as such.
        failures: a sentence for each run that could not be had.
        bases: results of rows that others are tested against and that are not shown.
    """

    table: Table
    rows: Sequence[RowResult]
    failures: Sequence[str] = ()
    bases: Sequence[RowResult] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.table.tasks

    @property
    def title(self) -> str:
        backbones = sorted({run.backbone for row in self.rows for run in row.runs})
        named = f"backbone {', '.join(backbones)}" if backbones else "no runs yet"
        warning = " (built-in sample: no results)" if self.is_sample else ""
        return f"{self.table.title}: dev scores, {named}{warning}"

    @property
    def is_sample(self) -> bool:
        return any(run.is_sample for row in self.rows for run in row.runs)

    @cached_property
    def _by_name(self) -> dict[str, RowResult]:
        return {result.row.name: result for result in (*self.bases, *self.rows)}

    def difference(self, result: RowResult, name: str) -> PairedDifference | None:
        """A row's score ``name`` less its base's; None where the two have no seed in common."""
        base = self._by_name.get(result.row.base)
        return base and paired_difference(result.by_seed(name), base.by_seed(name))

    def slowdown(self, result: RowResult) -> float | None:
        """How many times slower a row's rounds are than those of its plain row, both alone."""
        plain = self._by_name.get(result.row.plain)
        speeds = [one and one.rounds_per_second for one in (plain, result)]
        return speeds[0].mean / speeds[1].mean if all(speeds) else None

    def paper_slowdown(self, result: RowResult) -> float | None:
        """The same by the paper's speeds."""
        plain = self._by_name.get(result.row.plain)
        speeds = [one and one.row.paper.rounds_per_second for one in (plain, result)]
        return speeds[0] / speeds[1] if all(speeds) else None

    @property
    def notes(self) -> list[str]:
        """Footnotes: what the numbers are, and what they are not."""
        counts = "/".join(map(str, sorted({len(row.runs) for row in self.rows})))
        notes = [
            f"ours: each run's best model on dev, mean ± standard deviation over {counts} seed(s); "
            f"with one seed it is {UNKNOWN}, and single runs prove little.",
        ]
        if self._has_paper:
            notes.append(f"paper: bert-base, dev; {UNKNOWN}: the paper has no such value.")
        if any(len(row.row.paper.scores) > 1 for row in self.rows):
            notes.append("paper, overall: the plain mean of its three scores.")
        notes += sorted({note for row in self.rows for run in row.runs for note in run.notes})
        notes.append(
            "R_s: SMART's term, mean over the run, before its weight. gain: R_s over that of a "
            "random direction of the same size, mean over the logged rounds."
        )
        if any(not row.runs for row in self.rows):
            notes.append("rows with 0 seeds have no finished run.")
        return notes + [f"failed: {failure}" for failure in self.failures]

    @property
    def _has_paper(self) -> bool:
        return any(row.row.paper.scores for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "table": self.table.name,
            "title": self.title,
            "is_sample": self.is_sample,
            "rows": [self._row_dict(row) for row in self.rows],
            "notes": self.notes,
            "failures": list(self.failures),
        }

    def _row_dict(self, result: RowResult) -> dict[str, Any]:
        differences = {name: self.difference(result, name) for name in self.table.columns}
        return result.to_dict(self.tasks) | {
            "base": result.row.base,
            "differences": {name: d and asdict(d) for name, d in differences.items()},
            "slowdown": self.slowdown(result),
            "paper_slowdown": self.paper_slowdown(result),
        }

    def text(self) -> str:
        tables = [_aligned(table) for table in self._tables()]
        return "\n\n".join([*self._head(self.title), *tables, "\n".join(self.notes)])

    def markdown(self) -> str:
        notes = "\n".join(f"- {note}" for note in self.notes)
        tables = [pipes(table) for table in self._tables()]
        return "\n\n".join([*self._head(f"## {self.title}"), *tables, notes]) + "\n"

    def _head(self, title: str) -> list[str]:
        warning = f"!!! {SAMPLE_WARNING} !!!"
        return [warning, title] if self.is_sample else [title]

    def _tables(self) -> list[list[Cells]]:
        tables = [self.score_table(), self.difference_table(), self.run_table(), self.speed_table()]
        return [table for table in tables if len(table) > 1]

    def score_table(self) -> list[Cells]:
        """Our scores, with the paper's and the handout's beside where there are any."""
        names = self.table.columns
        extra = [
            [word] if any(getattr(row.row.paper, kind) for row in self.rows) else []
            for word, kind in (("paper", "scores"), ("handout", "benchmark"))
        ]
        header = ["row", *(cell for name in names for cell in (name, *extra[0], *extra[1]))]
        return [header, *(self._score_cells(row, *map(bool, extra)) for row in self.rows)]

    def _score_cells(self, result: RowResult, has_paper: bool, has_benchmark: bool) -> Cells:
        scores, paper, cells = result.scores, result.row.paper, [result.row.name]
        known = {**paper.scores, "overall": paper.overall}
        for name in self.table.columns:
            is_missing = bool(scores) and name not in scores  # the row has no such task
            cells.append(f"{scores[name]:.3f}" if name in scores else "")
            for shown, values in ((has_paper, known), (has_benchmark, paper.benchmark)):
                if shown:
                    cells.append("" if is_missing else number(values.get(name), ".3f"))
        return cells

    def difference_table(self) -> list[Cells]:
        """Each row less its base, seed by seed, with 95% intervals."""
        header = ["row", "less", "pairs", *self.table.columns]
        return [header, *(self._difference_cells(row) for row in self._compared())]

    def _compared(self) -> list[RowResult]:
        columns = self.table.columns
        return [r for r in self.rows if any(self.difference(r, name) for name in columns)]

    def _difference_cells(self, result: RowResult) -> Cells:
        differences = [self.difference(result, name) for name in self.table.columns]
        pairs = max(d.num_pairs for d in differences if d)
        cells = [f"{d:.3f}" if d else "" for d in differences]
        return [result.row.name, result.row.base, str(pairs), *cells]

    def run_table(self) -> list[Cells]:
        """What was trained, and how large R_s was."""
        header = ["row", "seeds", "backbone", "precision", "rounds", "minutes"]
        header += [f"{name} {task}" for name in ("R_s", "gain") for task in self.tasks]
        return [header, *(self._run_cells(row) for row in self.rows)]

    def _run_cells(self, result: RowResult) -> Cells:
        cells = [result.row.name, str(len(result.runs))]
        if not result.runs:
            return cells + [""] * (4 + 2 * len(self.tasks))
        first = result.runs[0]
        minutes = "" if result.minutes is None else f"{result.minutes:.1f}"
        cells += [first.backbone, first.precision, str(first.rounds), minutes]
        for term in ("smart", "gain"):
            means = (result.mean_term(task, term) for task in self.tasks)
            cells += ["" if value is None else f"{value:.3g}" for value in means]
        return cells

    def speed_table(self) -> list[Cells]:
        """Rounds per second of runs that had the machine for themselves, beside the paper's."""
        rows = [row for row in self.rows if row.rounds_per_second]
        header = ["row", "it/s", "paper", "times slower than", "ours", "paper's"]
        return [header, *(self._speed_cells(row) for row in rows)]

    def _speed_cells(self, result: RowResult) -> Cells:
        ratios = self.slowdown(result), self.paper_slowdown(result)
        return [
            result.row.name,
            f"{result.rounds_per_second:.2f}",
            number(result.row.paper.rounds_per_second, ".2f"),
            result.row.plain,
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        ]


def _aligned(rows: Sequence[Cells]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def pipes(rows: Sequence[Cells]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
