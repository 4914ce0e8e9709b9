"""One tiny run that the tests of the Python API share."""

from __future__ import annotations

from pathlib import Path

import pytest

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from tests.helpers import train_tiny

# A head of every kind, and pairs both siamese and as one sequence.
TASKS = {
    "sst": BUILTIN_TASKS["sst"],
    "para": BUILTIN_TASKS["para"],
    "sts": BUILTIN_TASKS["sts"],
    "cross": TaskConfig(
        files={"train": "quora-train.csv", "dev": "quora-dev.csv"},
        text_columns=("sentence1", "sentence2"),
        label_column="is_duplicate",
        encoding="cross",
        head="classes",
        num_classes=2,
    ),
    "value": TaskConfig(
        files={"train": "sts-train.csv", "dev": "sts-dev.csv"},
        text_columns=("sentence1",),
        label_column="similarity",
        head="regression",
        label_range=(0.0, 5.0),
    ),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run on ``TASKS``, with its data and backbone beside it."""
    from sbrrt_fast.config_io import save_config

    folder = tmp_path_factory.mktemp("api")
    save_config(RunConfig(tasks=TASKS), folder / "tasks.yaml")
    return train_tiny(folder, "--config", str(folder / "tasks.yaml"))
