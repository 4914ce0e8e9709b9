"""A table of results, the paper's values beside ours, as text, Markdown and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sbrrt_fast.data.sources import uses_sample
from sbrrt_fast.experiments.tables import Row, Run, Table
from sbrrt_fast.training.scores.metrics import main_metric
from sbrrt_fast.training.scores.table import exposure_note, undefined_notes

UNKNOWN, UNDEFINED = "—", "undefined"
SAMPLE_WARNING = (
    "THESE NUMBERS MEAN NOTHING: the runs were trained on the built-in sample, which is made up. "
    "Name the task files with --data-dir."
)


@dataclass(frozen=True)
class Spread:
    """A value over seeds, None where it is undefined for one of them.

    ``sd`` is the sample standard deviation; it is None for one seed.
    """

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        return None if None in self.values else statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        is_known = len(self.values) > 1 and None not in self.values
        return statistics.stdev(self.values) if is_known else None

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}

    def __format__(self, spec: str) -> str:
        if self.mean is None:
            return UNDEFINED
        return f"{self.mean:{spec}} ± {_number(self.sd, spec)}"


@dataclass(frozen=True)
class RowResult:
    """A row and its finished runs, one per seed."""

    row: Row
    runs: Sequence[Run]

    @property
    def scores(self) -> dict[str, Spread]:
        """Dev scores of the best models by task, and ``overall``; empty without runs."""
        flat = [_flat_scores(run.metrics["dev"]) for run in self.runs]
        return {name: Spread(tuple(s[name] for s in flat)) for name in (flat[0] if flat else ())}

    @property
    def rounds_per_second(self) -> Spread | None:
        return Spread(self.setting("rounds_per_second")) if self.runs else None

    def mean_term(self, task: str, term: str) -> float | None:
        """A term's mean over rounds and seeds, such as R_s (``smart``); None if never measured."""
        means = [run.metrics["means"].get(f"{task}/{term}") for run in self.runs]
        known = [value for value in means if value is not None]
        return statistics.fmean(known) if known else None

    def setting(self, name: str) -> tuple[Any, ...]:
        """A value of ``metrics.json`` by seed."""
        return tuple(run.metrics[name] for run in self.runs)

    @property
    def backbone(self) -> str:
        return self.runs[0].config.model.backbone

    def to_dict(self, tasks: Sequence[str]) -> dict[str, Any]:
        paper = self.row.paper
        record: dict[str, Any] = {
            "row": self.row.name,
            "seeds": list(self.setting("seed")),
            "paper": {
                "scores": dict(paper.scores),
                "overall": paper.overall,
                "rounds_per_second": paper.rounds_per_second,
            },
        }
        if not self.runs:
            return record
        return record | {
            "backbone": self.backbone,
            "data_dir": str(self.runs[0].config.data_dir or "") or None,
            "precision": self.runs[0].metrics["precision"],
            "backend": self.runs[0].metrics["backend"],
            "rounds": self.runs[0].metrics["rounds"],
            "scores": {name: spread.to_dict() for name, spread in self.scores.items()},
            "rounds_per_second": self.rounds_per_second.to_dict(),
            "smart": {task: self.mean_term(task, "smart") for task in tasks},
            "gain": {task: self.mean_term(task, "gain") for task in tasks},
            "runs": [str(run.folder) for run in self.runs],
        }


@dataclass(frozen=True)
class Report:
    """A table with our results.

    Attributes:
        rows: results in the table's order; rows without runs are shown as such.
        failures: a sentence for each run that could not be had.
    """

    table: Table
    rows: Sequence[RowResult]
    failures: Sequence[str] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.table.tasks

    @property
    def title(self) -> str:
        backbones = sorted({row.backbone for row in self.rows if row.runs})
        named = f"backbone {', '.join(backbones)}" if backbones else "no runs yet"
        warning = " (built-in sample: no results)" if self.is_sample else ""
        return f"{self.table.title}: dev scores, {named}{warning}"

    @property
    def is_sample(self) -> bool:
        configs = [run.config for row in self.rows for run in row.runs]
        return any(uses_sample(config.tasks, config.data_dir) for config in configs)

    @property
    def notes(self) -> list[str]:
        """Footnotes: what the numbers are, and what they are not."""
        counts = sorted({len(row.runs) for row in self.rows})
        seeds = "/".join(str(count) for count in counts)
        notes = [
            f"ours: each run's best model on dev, mean ± standard deviation over {seeds} seed(s); "
            f"with one seed it is {UNKNOWN}, and single runs prove little.",
            f"paper: bert-base, dev; {UNKNOWN}: the paper's value is not known to us.",
        ]
        if any(row.row.paper.scores for row in self.rows):
            notes.append(
                "paper, overall: the plain mean of its three scores. The paper has one SBRRT row; "
                "our variants of it all stand beside that one."
            )
        exposures = {exposure_note(run.config) for row in self.rows for run in row.runs} - {""}
        notes += sorted(exposures)
        notes.append(
            "R_s: SMART's term, mean over the run, before its weight. gain: R_s over that of a "
            "random direction of the same size, mean over the logged rounds."
        )
        for row in self.rows:
            lines = [line for run in row.runs for line in undefined_notes(run.metrics["dev"])]
            notes += [f"{row.row.name}: {line}." for line in dict.fromkeys(lines)]
        if any(not row.runs for row in self.rows):
            notes.append("rows with 0 seeds have no finished run.")
        return notes + [f"failed: {failure}" for failure in self.failures]

    def to_dict(self) -> dict[str, Any]:
        return {
            "table": self.table.number,
            "title": self.title,
            "is_sample": self.is_sample,
            "rows": [row.to_dict(self.tasks) for row in self.rows],
            "notes": self.notes,
            "failures": list(self.failures),
        }

    def text(self) -> str:
        tables = [_aligned(self._score_table()), _aligned(self._run_table())]
        return "\n\n".join([*self._head(self.title), *tables, "\n".join(self.notes)])

    def markdown(self) -> str:
        tables = [_pipes(self._score_table()), _pipes(self._run_table())]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join([*self._head(f"## {self.title}"), *tables, notes]) + "\n"

    def _head(self, title: str) -> list[str]:
        warning = f"!!! {SAMPLE_WARNING} !!!"
        return [warning, title] if self.is_sample else [title]

    def _score_table(self) -> list[list[str]]:
        columns = (*self.tasks, "overall")
        header = ["row", *(cell for name in columns for cell in (name, "paper")), "it/s", "paper"]
        return [header, *(self._score_cells(row, columns) for row in self.rows)]

    def _score_cells(self, result: RowResult, columns: Sequence[str]) -> list[str]:
        scores, paper = result.scores, result.row.paper
        known = {**paper.scores, "overall": paper.overall}
        cells = [result.row.name]
        for name in columns:
            is_missing = bool(scores) and name not in scores  # the row does not train this task
            cells.append(f"{scores[name]:.3f}" if name in scores else "")
            cells.append("" if is_missing else _number(known.get(name), ".3f"))
        speed = result.rounds_per_second
        return [
            *cells,
            f"{speed.mean:.2f}" if speed else "",
            _number(paper.rounds_per_second, ".2f"),
        ]

    def _run_table(self) -> list[list[str]]:
        header = ["row", "seeds", "backbone", "precision", "rounds"]
        header += [f"{name} {task}" for name in ("R_s", "gain") for task in self.tasks]
        return [header, *(self._run_cells(row) for row in self.rows)]

    def _run_cells(self, result: RowResult) -> list[str]:
        cells = [result.row.name, str(len(result.runs))]
        if not result.runs:
            return cells + [""] * (3 + 2 * len(self.tasks))
        metrics = result.runs[0].metrics
        cells += [result.backbone, metrics["precision"], str(metrics["rounds"])]
        for term in ("smart", "gain"):
            means = (result.mean_term(task, term) for task in self.tasks)
            cells += ["" if value is None else f"{value:.3g}" for value in means]
        return cells


def _flat_scores(dev: Mapping[str, Any]) -> dict[str, float | None]:
    """Each task's main metric, and ``overall``."""
    return {name: main_metric(score) for name, score in dev.items()}


def _number(value: float | None, spec: str) -> str:
    return UNKNOWN if value is None else format(value, spec)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
