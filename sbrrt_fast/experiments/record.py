"""What is kept of a finished run for tables: a small JSON file, whatever becomes of its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_io import CALL_FIELDS, MINILM, portable
from sbrrt_fast.data.sources import uses_sample
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.experiments.tables import Run
from sbrrt_fast.files import make_folder, write_json
from sbrrt_fast.model.backbone import HUB_ID
from sbrrt_fast.training.run_folder import BEST, LAST
from sbrrt_fast.training.scores.metrics import main_metric
from sbrrt_fast.training.scores.table import exposure_note, undefined_notes

ALONE = 0.05  # of a machine's cores: a run that others take less from had it for itself
_NOT_SETTINGS = (  # keys that start so: of one machine, call or log
    *("seed", "recipe", "data_dir", "device", "model.backbone", *CALL_FIELDS),
    *("log.every", "log.gain", "log.tensorboard", "log.state_every", "log.keep"),
)
_FILE = re.compile(r"seed(\d+)\.json")


@dataclass(frozen=True)
class RunRecord:
    """A finished run of a row.

    Attributes:
        row, seed: which. recipe: its file's name. backbone: name, of a folder the last part.
        settings: by dotted key, those that are not the defaults.
        scores: main dev metric of the best model by task, and ``overall``; None if undefined.
        metrics: all dev metrics of the best model, ``{"sst": {"accuracy": 0.5}, ...}``.
        notes: lines that belong to the scores.
        is_sample: whether its data are the built-in sample, which is made up.
        means: of the terms that tables show, over the run: ``sst/smart``, ``sst/gain``.
        precision, backend, rounds, best_round: as in ``metrics.json``.
        rounds_per_second, train_seconds, evaluation_seconds: likewise.
        machine: processor, GPU, threads, cores, and other_cores: see ``run_environment``.
        version, commit: of the package; the commit is None where it is not known.
        command: that trains such a run.
    """

    row: str
    seed: int
    recipe: str
    backbone: str
    settings: dict[str, Any]
    scores: dict[str, float | None]
    metrics: dict[str, dict[str, float | str | None]]
    means: dict[str, float]
    precision: str
    backend: str
    rounds: int
    best_round: int
    rounds_per_second: float
    train_seconds: float
    evaluation_seconds: float
    machine: dict[str, str | int | float | None]
    version: str
    command: str
    notes: list[str] = field(default_factory=list)
    commit: str | None = None
    is_sample: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What runs of a row have in common: encoder, data, and settings that are not defaults."""
        return self.settings | {"backbone": self.backbone, "is_sample": self.is_sample}

    @property
    def is_alone(self) -> bool:
        """Whether the run had the machine for itself, so that its speed says something."""
        cores, others = self.machine.get("cores"), self.machine.get("other_cores")
        return bool(cores) and others is not None and float(others) <= ALONE * float(cores or 0)


def record_of(run: Run, recipe: str, command: str = "", commit: str | None = None) -> RunRecord:
    """What is kept of a run.

    Args:
        recipe: the name of its row's recipe. command: that trains such a run.
        commit: of the source tree that trained it.
    """
    config, metrics = run.config, run.metrics
    dev, environment = metrics["dev"], metrics.get("environment") or {}
    shown = {name: environment.get(name) for name in ("processor", "gpu", "threads", "cores")}
    return RunRecord(
        row=config.recipe,
        seed=metrics["seed"],
        recipe=recipe,
        backbone=backbone_name(config),
        settings=settings_of(config),
        scores={name: main_metric(score) for name, score in dev.items()},
        metrics={name: dict(score) for name, score in dev.items() if isinstance(score, Mapping)},
        means={k: v for k, v in metrics["means"].items() if k.endswith(("/smart", "/gain"))},
        **{name: metrics[name] for name in _AS_IN_METRICS},
        machine={**shown, "other_cores": environment.get("other_cores")},
        version=environment.get("versions", {}).get("sbrrt_fast", ""),
        commit=commit,
        command=command,
        notes=[note for note in (exposure_note(config), *undefined_notes(dev)) if note],
        is_sample=uses_sample(config.tasks, config.data_dir),
    )


_AS_IN_METRICS = (
    *("precision", "backend", "rounds", "best_round", "rounds_per_second"),
    *("train_seconds", "evaluation_seconds"),
)


def backbone_name(config: RunConfig) -> str:
    """As a reader elsewhere knows it: a hub's name, or the end of a folder's, there or not."""
    name = config.model.backbone
    is_folder = HUB_ID.fullmatch(name) is None or Path(name).expanduser().is_dir()
    if name == MINILM or not is_folder:
        return name
    path = Path(name)
    return f"{path.parent.name}/{path.name}" if path.name in (BEST, LAST) else path.name


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Settings that are not the defaults, by dotted key, but for those of one machine or call."""
    defaults = config_leaves(RunConfig(tasks=BUILTIN_TASKS))
    differing = {
        key: value
        for key, value in config_leaves(portable(config)).items()
        if not key.startswith(_NOT_SETTINGS) and (key, value) not in defaults.items()
    }
    return {"tasks": list(config.tasks), **differing}


def identity_of(config: RunConfig) -> dict[str, Any]:
    """``RunRecord.identity`` of the records of such runs."""
    identity = settings_of(config) | {
        "backbone": backbone_name(config),
        "is_sample": uses_sample(config.tasks, config.data_dir),
    }
    return json.loads(json.dumps(identity, default=str))  # as a file has it


def check_same_run(record: RunRecord, identity: Mapping[str, Any], path: Path) -> None:
    """Looks whether a record, of the file ``path``, is of a run with this identity.

    Raises:
        SbrrtError: with the first key that differs.
    """
    own = record.identity
    for key in sorted(own.keys() | identity.keys()):
        if own.get(key) != identity.get(key):
            raise SbrrtError(
                f"{path}: is of a run with {key} {own.get(key)!r}, not {identity.get(key)!r}; "
                "their numbers do not belong in one row: remove the record to train the run anew"
            )


def record_path(folder: Path, row: str, seed: int) -> Path:
    """Where a run's record is below a folder of records."""
    return folder / row / f"seed{seed}.json"


def save_record(record: RunRecord, folder: Path) -> Path:
    """Writes a record below ``folder``; OutputError if it cannot be written."""
    path = record_path(folder, record.row, record.seed)
    make_folder(path.parent)
    write_json(path, asdict(record))
    return path


def read_record(path: Path) -> RunRecord:
    """A record. SbrrtError where the file is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(RunRecord).validate_python(values)
    except (OSError, ValueError, ValidationError) as error:
        raise SbrrtError(f"{path}: is no record of a run ({error}); remove it") from None


def read_records(folder: Path, row: str) -> list[RunRecord]:
    """The records of a row, by seed."""
    paths = [p for p in (folder / row).glob("seed*.json") if _FILE.fullmatch(p.name)]
    return sorted(map(read_record, paths), key=lambda record: record.seed)
