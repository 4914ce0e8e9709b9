"""What a run of the benchmarks leaves: one JSON file of stages, each with its rows.

{"format": 1, "environment": {...}, "stages": {"ops": {"rows": [...], "absent": [...],
 "failures": [...], "notes": [...], "details": {...}, "seconds": ...}, ...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from benchmarks.harness.measure import Samples
from benchmarks.harness.text import describe
from sbrrt_fast.files import write_text

FORMAT, FILE = 1, "results.json"
STAGE_RESULT = "result.json"


@dataclass(frozen=True)
class Row:
    """The time of one variant in one case.

    Attributes:
        benchmark: such as ``bias_gelu``; case: such as ``minilm round bf16 forward``.
        variant: whose implementation; ``cpu``, ``triton`` and ``cuda`` are ours, as is what
            begins with ``fast``.
        seconds: of a call, the median; low, high: its quartiles; samples: how many.
        method: how a sample was taken.
        tokens, bytes, flops: that a call deals with, must move and must do; None if not counted.
    """

    benchmark: str
    case: str
    variant: str
    seconds: float
    low: float
    high: float
    samples: int
    method: str
    tokens: int | None = None
    bytes: float | None = None
    flops: float | None = None

    @classmethod
    def of(cls, benchmark: str, case: str, variant: str, samples: Samples, **cost) -> Row:
        low, median, high = samples.quartiles
        count = len(samples.seconds)
        return cls(benchmark, case, variant, median, low, high, count, samples.method, **cost)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.benchmark, self.case, self.variant


@dataclass
class Stage:
    """One part of a run.

    Attributes:
        absent: ``{"benchmark", "variant", "reason"}`` of peers that could not be compared.
        failures: ``{"what", "error"}`` of benchmarks that stopped.
        notes: what a reader of the figures should know.
        details: figures that are no times of variants.
        seconds: that the stage took.
    """

    rows: list[Row] = field(default_factory=list)
    absent: list[dict] = field(default_factory=list)
    failures: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict = field(default_factory=dict)
    seconds: float = 0.0

    def note_failure(self, what: str, error: Exception | str) -> None:
        error = error if isinstance(error, str) else describe(error)
        self.failures.append({"what": what, "error": error})

    def note_absent(self, benchmark: str, variant: str, reason: str) -> None:
        """Once each, however many cases there are."""
        entry = {"benchmark": benchmark, "variant": variant, "reason": reason}
        if entry not in self.absent:
            self.absent.append(entry)


@dataclass
class Results:
    """A run: what it ran on, and its stages by name."""

    environment: dict
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return [row for stage in self.stages.values() for row in stage.rows]

    @property
    def failures(self) -> list[dict]:
        return [failure for stage in self.stages.values() for failure in stage.failures]

    def detail(self, name: str) -> dict:
        """Details by that name, of whichever stage has them, or {}."""
        return next((s.details[name] for s in self.stages.values() if name in s.details), {})

    def save(self, folder: Path) -> Path:
        """Writes ``results.json``, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        stages = {name: asdict(stage) for name, stage in self.stages.items()}
        record = {"format": FORMAT, "environment": self.environment, "stages": stages}
        return write_json(folder / FILE, record)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a folder's ``results.json``, or a file.

        Raises:
            ValueError: it is not a file of this format.
        """
        path = path / FILE if path.is_dir() else path
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise ValueError(f"{path}: not results of these benchmarks, format {FORMAT}")
        stages = {name: stage_from(stage) for name, stage in record["stages"].items()}
        return cls(record["environment"], stages)


def stage_from(record: dict) -> Stage:
    """A stage from its JSON."""
    names = {f.name for f in fields(Row)}
    rows = [Row(**{k: v for k, v in row.items() if k in names}) for row in record["rows"]]
    return Stage(**{**record, "rows": rows})


def write_json(path: Path, record: object) -> Path:
    write_text(path, json.dumps(record, indent=1) + "\n")
    return path


def leave_result(record: object) -> None:
    """Writes what a stage of the GPU check comes to; elsewhere there is no such folder."""
    if path := stage_result():
        write_json(path, record)


def stage_result() -> Path | None:
    """The result's file in the folder that STAGE in the environment names."""
    folder = os.environ.get("STAGE")
    return Path(folder) / STAGE_RESULT if folder else None


def is_ours(variant: str) -> bool:
    """Whether a variant is this package's, not a peer's."""
    return variant.split()[0] in ("cpu", "cuda", "triton", "fast", "plain", "ours")


def is_floor(variant: str) -> bool:
    """Whether a variant is a copy of the same bytes, the least the memory allows."""
    return variant == "copy"


def is_peer(variant: str) -> bool:
    return not is_ours(variant) and not is_floor(variant)


def quickest(rows: dict[str, Row], belongs: Callable[[str], bool]) -> Row | None:
    """Of a case's rows, those of the variants that belong; None where there is none."""
    selected = [row for row in rows.values() if belongs(row.variant)]
    return min(selected, key=lambda row: row.seconds, default=None)


def by_case(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(benchmark, case) -> variant -> row."""
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.benchmark, row.case), {})[row.variant] = row
    return cases
