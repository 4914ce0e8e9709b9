"""Dev scores of finished runs on perturbed texts: one small JSON file per run.

A run in ``.../ROW/seedK`` has the file ``ROW/seedK.json``, so files of several seeds are those of a
row. It is written after every perturbation, and what is in it is not computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sbrrt_fast.checksums import CHECKSUMS
from sbrrt_fast.config import Device
from sbrrt_fast.data.perturb import Perturbation
from sbrrt_fast.data.perturbed import Perturbing
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.files import make_folder, write_json
from sbrrt_fast.json_file import read_json
from sbrrt_fast.training.build import load_splits
from sbrrt_fast.training.run_folder import BEST, RUN, is_finished, is_run
from sbrrt_fast.training.saved_run import SavedModel, read_model, read_settings
from sbrrt_fast.training.scores.evaluate import score_tasks
from sbrrt_fast.training.scores.perturbed import score_perturbed
from sbrrt_fast.training.scores.scored import ScoredTask, scores_of
from sbrrt_fast.training.scores.table import flatten_scores

CLEAN = "clean"  # the texts as they are
Log = Callable[[str], object]


@dataclass(frozen=True)
class RobustnessSettings:
    """What is measured; files of different settings do not belong into one table.

    Attributes:
        perturbing: perturbations, their rate and seed.
        dev_rows: take the first rows of each dev split alone; all if None.
    """

    perturbing: Perturbing
    dev_rows: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Those that every perturbation's scores depend on, as JSON values."""
        perturbing = self.perturbing
        return {"rate": perturbing.rate, "seed": perturbing.seed, "dev_rows": self.dev_rows}


@dataclass
class RobustnessRecord:
    """The content of a run's file.

    Attributes:
        row: name of the folder that the run's is in. run_seed: the run's own.
        recipe: the run's. settings: see ``RobustnessSettings.to_dict``.
        model: checksum of the best model's files.
        num_examples: dev rows by task.
        scores: by perturbation, ``clean`` first, ``{"sst/accuracy": 0.5, ..., "overall": 0.7}``;
            None where a score is undefined.
        rows_changed: by perturbation and task, how many rows have other tokens than before.
    """

    row: str
    recipe: str
    run_seed: int
    settings: dict[str, Any]
    model: int
    num_examples: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    rows_changed: dict[str, dict[str, int]] = field(default_factory=dict)

    def lacks(self, names: Sequence[Perturbation]) -> list[Perturbation]:
        """The perturbations that are not measured yet."""
        return [name for name in names if name not in self.scores]


def finished_runs(folders: Sequence[Path], log: Log = print) -> list[Path]:
    """The folders that are runs, and all finished runs below the others, in order.

    Raises:
        SbrrtError: there is none, one that is named is not finished, or two would have one file.
    """
    runs = []
    for folder in folders:
        if is_run(folder) and not is_finished(folder):
            raise SbrrtError(f"{folder}: this run is not finished; train it to its end first")
        below = sorted({path.parent for path in folder.rglob(RUN)} - {folder})
        for run in [folder] if is_run(folder) else filter(is_run, below):
            if is_finished(run):
                runs.append(run)
            else:
                log(f"{run}: is not finished, passed over")
    runs = list(dict.fromkeys(runs))
    _check(runs, folders)
    return runs


def record_path(output: Path, run: Path) -> Path:
    """Where a run's file is."""
    run = Path(run).resolve()
    return output / run.parent.name / f"{run.name}.json"


def measure_robustness(
    run: Path,
    path: Path,
    settings: RobustnessSettings,
    *,
    data_dir: Path | None = None,
    device: Device = "auto",
    log: Log = print,
) -> RobustnessRecord:
    """Sees to it that a file has the dev scores of a run's best model with every perturbation.

    What is there is kept; where the run was trained anew since, all is measured again.

    Args:
        data_dir: folder of the task files; the run's own if None.

    Raises:
        SbrrtError: the run, its model or data cannot be used; or the file has scores of other
            settings.
    """
    record = _record(run, path, settings, log)
    missing = record.lacks(settings.perturbing.names)
    if not missing and CLEAN in record.scores:
        log(f"{path}: is complete, kept")
        return record
    saved, scored = _scored(run, settings.dev_rows, data_dir, device, log)
    record.num_examples = {name: one.num_examples for name, one in scored.items()}
    record.scores[CLEAN] = _flat(scores_of(scored))
    _write(path, record)
    for name in missing:
        longest = min(saved.config.model.max_length, saved.model.config.max_position_embeddings)
        what = saved.model, saved.tokenizer, scored, name, settings.perturbing, longest
        result = score_perturbed(*what, progress=True, **_options(saved))
        record.scores[name] = _flat(result.scores)
        record.rows_changed[name] = result.rows_changed
        _write(path, record)
        log(f"{path}: {name} {_change(record, name)}")
    return record


def check_record(run: Path, path: Path, settings: RobustnessSettings) -> None:
    """Looks whether ``measure_robustness`` can take a file; changes nothing.

    Raises:
        SbrrtError: it has scores of other settings, or cannot be read.
    """
    _record(run, path, settings, lambda line: None)


def robustness_lines(records: Sequence[RobustnessRecord]) -> list[list[str]]:
    """A table of overall scores, means over the runs of a row: as it is, and what is lost.

    Returns:
        Cells, with a heading first; a dash where a score is undefined or not measured for all.
    """
    names = list(dict.fromkeys(name for r in records for name in r.scores if name != CLEAN))
    lines = [["row", "runs", CLEAN, *names]]
    for row in dict.fromkeys(record.row for record in records):
        runs = [record.scores for record in records if record.row == row]
        clean = _mean([scores[CLEAN]["overall"] for scores in runs])
        means = [_mean([scores.get(n, {}).get("overall") for scores in runs]) for n in names]
        changes = ["—" if None in (x, clean) else f"{x - clean:+.4f}" for x in means]
        lines.append([row, str(len(runs)), "—" if clean is None else f"{clean:.4f}", *changes])
    return lines


def _check(runs: Sequence[Path], folders: Sequence[Path]) -> None:
    if not runs:
        named = ", ".join(map(str, folders))
        raise ConfigError(f"{named}: there is no finished run; give the --output of its training")
    by_file: dict[Path, Path] = {}
    for run in runs:
        other = by_file.setdefault(record_path(Path(), run), run)
        if other.resolve() != run.resolve():
            raise ConfigError(
                f"{other} and {run} would both have the file {record_path(Path(), run)}; name "
                "one of their folders at a time, with an --output of its own"
            )


def _record(run: Path, path: Path, settings: RobustnessSettings, log: Log) -> RobustnessRecord:
    """What is measured of a run so far."""
    config, model = read_settings(run), read_json(run / BEST / CHECKSUMS).get("crc32", 0)
    row = Path(run).resolve().parent.name
    fresh = RobustnessRecord(row, config.recipe, config.seed, settings.to_dict(), model)
    if not path.is_file():
        return fresh
    try:
        record = TypeAdapter(RobustnessRecord).validate_json(path.read_bytes())
    except (OSError, ValueError):  # pydantic's errors are among them
        raise SbrrtError(f"{path}: is not what was written there; delete it") from None
    for key, value in fresh.settings.items():
        if (before := record.settings.get(key)) != value:
            raise SbrrtError(
                f"{path}: has scores with {key} {before}, now it is {value}; choose another "
                "--output, or delete the file"
            )
    if record.model == model:
        return record
    log(f"{path}: the run was trained anew since, all is measured again")
    return fresh


def _scored(
    run: Path, num_rows: int | None, data_dir: Path | None, device: Device, log: Log
) -> tuple[SavedModel, dict[str, ScoredTask]]:
    """A run's best model, and the dev rows as it scores them."""
    config = read_settings(run)
    config = replace(config, data_dir=data_dir or config.data_dir)
    saved = read_model(run / BEST, config, device)
    positions = saved.model.config.max_position_embeddings
    rounds = replace(saved.config.round, epoch_task=None)
    dev = load_splits(replace(saved.config, round=rounds), saved.tokenizer, "dev", positions, log)
    return saved, score_tasks(saved.model, dev, limit=num_rows, progress=True, **_options(saved))


def _options(saved: SavedModel) -> dict[str, Any]:
    return {"precision": saved.config.precision, "packed": saved.config.layout == "packed"}


def _write(path: Path, record: RobustnessRecord) -> None:
    make_folder(path.parent)
    write_json(path, asdict(record))


def _flat(scores: Mapping[str, Any]) -> dict[str, float | None]:
    flat = flatten_scores(dict(scores))
    return {name: None if math.isnan(score) else score for name, score in flat.items()}


def _change(record: RobustnessRecord, name: str) -> str:
    before, after = (record.scores[key]["overall"] for key in (CLEAN, name))
    return (
        "overall —" if None in (before, after) else f"overall {after:.4f} ({after - before:+.4f})"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
