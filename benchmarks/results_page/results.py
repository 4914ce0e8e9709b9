"""The records that the page is made of, and what it says of them."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.experiments.record import RunRecord, read_records
from sbrrt_fast.experiments.report import Report, RowResult
from sbrrt_fast.experiments.statistics import PairedDifference, Spread, paired_difference
from sbrrt_fast.experiments.table import Table
from sbrrt_fast.experiments.table_rows import TABLES

RECORDS, SPEED, ROBUSTNESS = "metrics", "speed", "robustness"  # folders of the page's own
CLEAN = "clean"  # texts as they are, in a file of robustness


@dataclass(frozen=True)
class Perturbed:
    """Dev scores of a run's best model on changed texts: a file of ``sbrrt-fast robustness``.

    Attributes:
        row, seed: of the run.
        scores: overall, by change; ``clean`` is none.
        dev_rows: how many of each dev split were taken, the first ones; all if None.
    """

    row: str
    seed: int
    scores: dict[str, float | None]
    dev_rows: int | None = None


class Results:
    """All that is known of the tables' runs.

    Args:
        folder: with ``metrics/ROW/seedN.json``, ``speed/ROW/seedN.json`` of runs that were made for
            their speed alone, and ``robustness/ROW/seedN.json``.

    Raises:
        SbrrtError: a file is not a record.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._rows = {row.name: row for table in TABLES.values() for row in table.rows}
        self.runs = {name: read_records(folder / RECORDS, name) for name in self._rows}
        self.timed = {name: read_records(folder / SPEED, name) for name in self._rows}
        self.perturbed = list(_read_perturbed(folder / ROBUSTNESS))

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that have a run which no table before them has."""
        found, shown = {}, set()
        for name, table in TABLES.items():
            rows = {row.name for row in table.rows if self.runs[row.name]}
            if rows - shown:
                found[name] = table
            shown |= rows
        return found

    @property
    def records(self) -> list[RunRecord]:
        return [record for records in self.runs.values() for record in records]

    def report(self, table: str) -> Report:
        """A table's rows that have runs."""
        results = [
            RowResult(row, self.runs[row.name], self.timed[row.name])
            for row in TABLES[table].rows
            if self.runs[row.name]
        ]
        return Report(TABLES[table], results)

    # What the text names: each raises KeyError where no run is behind it.

    def has(self, *rows: str) -> bool:
        """Whether all these rows have runs."""
        return all(self.runs[name] for name in rows)

    def score(self, row: str, name: str = "overall") -> str:
        """Mean and standard deviation of a row's score."""
        return f"{self._spread(row, name):.3f}"

    def seeds(self, row: str) -> int:
        """How many runs a row has."""
        return len(self.runs[row])

    def minutes(self, row: str) -> str:
        """Mean minutes of a row's runs that had the machine for themselves; KeyError without."""
        minutes = RowResult(self._rows[row], self.runs[row]).minutes
        if minutes is None:
            raise KeyError(f"no run of {row} had the machine for itself")
        return f"{minutes:.1f}"

    def term(self, row: str, task: str, name: str) -> str:
        """A term's mean over the runs of a row, such as R_s (``smart``)."""
        return f"{statistics.fmean(run.means[f'{task}/{name}'] for run in self.runs[row]):.2g}"

    def difference(self, row: str, base: str, name: str = "overall") -> PairedDifference:
        """A row's score less another's, seed by seed."""
        pairs = [{run.seed: run.scores[name] for run in self.runs[r]} for r in (row, base)]
        if (found := paired_difference(*pairs)) is None:
            raise KeyError(f"{row} and {base} have no seed in common")
        return found

    def _spread(self, row: str, name: str) -> Spread:
        if not self.runs[row]:
            raise KeyError(f"there is no run of {row}")
        return Spread(tuple(run.scores[name] for run in self.runs[row]))

    # Lists of facts

    def verdicts(self, table: str) -> dict[str, list[str]]:
        """Rows less their bases by the last column: ``above``, ``below``, and ``open`` ones."""
        report, found = self.report(table), {"above": [], "below": [], "open": []}
        name = report.table.columns[-1]
        for result in report.rows:
            difference = report.difference(result, name)
            if difference is None or difference.num_pairs < 2:
                continue
            kind = "open"
            if difference.is_clear:
                kind = "above" if difference.mean > 0 else "below"
            found[kind].append(f"`{result.row.name}` ({difference:.3f})")
        return found

    def commands(self, table: str, runs: dict[str, list[RunRecord]] | None = None) -> list[str]:
        """Commands that train a table's runs: rows of the same flags in one.

        Args:
            runs: by row; those that have the scores if None.
        """
        groups: dict[str, list[RunRecord]] = {}
        runs = self.runs if runs is None else runs
        with_runs = [row.name for row in TABLES[table].rows if runs[row.name]]
        for record in (record for name in with_runs for record in runs[name]):
            groups.setdefault(_flags(record.command), []).append(record)
        return [_command(table, flags, records, with_runs) for flags, records in groups.items()]

    def timed_on(self, table: str) -> list[str]:
        """The machines whose speeds a table has, with their threads, sorted."""
        rows = (row.name for row in TABLES[table].rows)
        runs = (run for row in rows for run in (*self.runs[row], *self.timed[row]) if run.is_alone)
        machines = {(run.machine["processor"], run.machine["threads"]) for run in runs}
        return sorted(f"{processor}, {threads} thread(s)" for processor, threads in machines)

    def facts(self, of: Callable[[RunRecord], Any]) -> list[str]:
        """The different values of all records, sorted."""
        return sorted({str(value) for value in map(of, self.records) if value})

    @cached_property
    def robustness(self) -> dict[str, dict[str, Spread]]:
        """By row and change: overall on changed texts less overall on clean ones, over seeds."""
        found: dict[str, dict[str, list]] = {}
        for one in self.perturbed:
            clean = one.scores.get(CLEAN)
            for change, score in one.scores.items():
                if change != CLEAN:
                    lost = None if None in (score, clean) else score - clean
                    found.setdefault(one.row, {}).setdefault(change, []).append(lost)
        return {
            row: {change: Spread(tuple(values)) for change, values in changes.items()}
            for row, changes in found.items()
        }

    def robustness_commands(self) -> list[str]:
        """One for each number of dev rows."""
        counts = dict.fromkeys(one.dev_rows for one in self.perturbed)
        flags = ["" if count is None else f" --dev-rows {count}" for count in counts]
        return [f"sbrrt-fast robustness runs/reproduce{flag}" for flag in flags]

    def robustness_table(self) -> list[list[str]]:
        """Cells: a row per row, with what each change to the texts takes from the overall score."""
        changes = list(dict.fromkeys(c for of_row in self.robustness.values() for c in of_row))
        lines = [["row", "seeds", "clean", *changes]]
        for row, of_row in self.robustness.items():
            clean = Spread(tuple(p.scores.get(CLEAN) for p in self.perturbed if p.row == row))
            cells = [f"{of_row[change]:+.3f}" if change in of_row else "" for change in changes]
            lines.append([row, str(len(clean.values)), f"{clean:.3f}", *cells])
        return lines


def _read_perturbed(folder: Path) -> Iterable[Perturbed]:
    for path in sorted(folder.glob("*/seed*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            scores = {change: of["overall"] for change, of in values["scores"].items()}
            dev_rows = values.get("settings", {}).get("dev_rows")
            yield Perturbed(values["row"], values["run_seed"], scores, dev_rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SbrrtError(f"{path}: is no record of perturbed texts ({error})") from None


def _flags(command: str) -> str:
    """A command's flags but for table, rows and seeds, which come first."""
    words = shlex.split(command)
    options = ("--table", "--rows", "--seeds")
    flags, skips = [], False
    for word in words[2:]:
        if word.startswith("--"):
            skips = word in options
        if not skips:
            flags.append(word)
    return shlex.join(flags)


def _command(table: str, flags: str, records: list[RunRecord], all_rows: list[str]) -> str:
    rows = list(dict.fromkeys(record.row for record in records))
    named = "" if rows == all_rows else f" --rows {' '.join(rows)}"
    seeds = max(record.seed for record in records) + 1
    return f"sbrrt-fast reproduce --table {table}{named} --seeds {seeds} {flags}".rstrip()


def shared_settings(records: Mapping[str, list[RunRecord]]) -> dict[str, set[str]]:
    """Settings of each row's records, as JSON: one text where they belong together."""
    return {
        row: {json.dumps(record.settings, sort_keys=True) for record in of_row}
        for row, of_row in records.items()
    }
