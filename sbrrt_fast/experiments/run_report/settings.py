"""The recipe and the environment of runs, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_io import CALL_FIELDS
from sbrrt_fast.experiments.run_report.records import RunRecord
from sbrrt_fast.experiments.run_report.saved_metrics import SavedMetrics
from sbrrt_fast.messages import shown

_ABSENT = "—"


@dataclass(frozen=True)
class SettingRow:
    """A setting's text by run; ``differs`` where the runs do not agree."""

    name: str
    texts: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.texts)) > 1


@dataclass(frozen=True)
class SettingsSection:
    """Settings of runs.

    Attributes:
        main: those in which several runs differ, or in which one run differs from the defaults.
        all: every setting.
        environment: versions and machine.
    """

    main: list[SettingRow]
    all: list[SettingRow]
    environment: list[SettingRow]


def settings_section(runs: Sequence[RunRecord]) -> SettingsSection:
    """The recipe and environment of one or several runs."""
    leaves = [_leaves(run.config) for run in runs]
    rows = _rows(leaves)
    if len(runs) > 1:
        main = [row for row in rows if row.differs]
    else:
        defaults = {key: _text(value) for key, value in _leaves(RunConfig()).items()}
        main = [row for row in rows if row.texts[0] != defaults.get(row.name)]
    return SettingsSection(main, rows, _rows([_environment(run.metrics) for run in runs]))


def _leaves(config: RunConfig) -> dict[str, Any]:
    leaves = config_leaves(config)
    return {key: value for key, value in leaves.items() if key not in CALL_FIELDS}


def _environment(metrics: SavedMetrics | None) -> dict[str, Any]:
    """Flat: a version per package, then what the machine is."""
    if metrics is None or metrics.environment is None:
        return {}
    machine = asdict(metrics.environment)
    versions = machine.pop("versions")
    return versions | {name: value for name, value in machine.items() if value is not None}


def _rows(tables: Iterable[dict[str, Any]]) -> list[SettingRow]:
    tables = list(tables)
    names = dict.fromkeys(name for table in tables for name in table)
    return [
        SettingRow(name, [_text(table[name]) if name in table else _ABSENT for table in tables])
        for name in names
    ]


def _text(value: Any) -> str:
    """A value as YAML and JSON write it, texts bare."""
    return shown(value if isinstance(value, str) else json.dumps(value), 300)
