"""A task of every kind of head and encoding."""

from __future__ import annotations

from dataclasses import replace

from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig

_PAIR = TaskConfig(files={}, text_columns=("a", "b"), label_column="y", head="binary")
TASKS = {
    "sst": BUILTIN_TASKS["sst"],
    "yes-no": replace(BUILTIN_TASKS["sst"], head="binary", num_classes=0, labels=("no", "yes")),
    "length": replace(
        BUILTIN_TASKS["sst"], head="regression", num_classes=0, label_range=(2.0, 9.0)
    ),
    "para": BUILTIN_TASKS["para"],
    "sts": BUILTIN_TASKS["sts"],
    "kinds": replace(BUILTIN_TASKS["para"], head="classes", num_classes=3),
    "minutes": replace(BUILTIN_TASKS["para"], head="regression", label_range=(0.0, 240.0)),
    "nli": replace(_PAIR, encoding="cross", head="classes", num_classes=3),
    "20same": replace(_PAIR, encoding="cross"),
}
