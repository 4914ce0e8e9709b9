"""A run's logs: ``metrics.jsonl``, TensorBoard scalars, and ``metrics.json``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.config import LogConfig
from sbrrt_fast.errors import OutputError, SbrrtError
from sbrrt_fast.files import make_folder, sync_tree, write_json, write_text, writing

LINES, FINAL, EVENTS = "metrics.jsonl", "metrics.json", "tensorboard"
SKIPPED = "skipped_updates"  # key of their number
EVENT_SUFFIX = ".sbrrt_fast"  # of the event files: who wrote them
_FINAL_KEYS = ("dev", "rounds", "rounds_per_second", "backend", "precision", "seed")


def read_values(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Numbers and 0-dim tensors as floats, with one transfer per device.

    This is where the host waits for the device; values stay there until they are logged.
    """
    read: dict[str, float] = {}
    tensors = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor)}
    for device in {tensor.device for tensor in tensors.values()}:
        here = {name: t for name, t in tensors.items() if t.device == device}
        read.update(
            zip(here, torch.stack([t.double() for t in here.values()]).tolist(), strict=True)
        )
    return {name: read[name] if name in read else float(v) for name, v in values.items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``. ValueError or OSError if it cannot be read."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class RunLogger(AbstractContextManager):
    """Writes a run's numbers into its folder.

    ``metrics.jsonl`` has one object per call of ``log``, ``{"round": r, name: value, ...}``,
    flushed at once. Numbers that JSON does not have (NaN, infinity) become null, and TensorBoard
    has no point for them.

    Args:
        output: folder of the run; made if it is not there.
        config: whether TensorBoard events are written as well.
        resume_round: number of rounds done in the state the run resumes from. What was logged
            after it is cut off, as if the run had never been interrupted. None starts a new
            ``metrics.jsonl``.

    Raises:
        SbrrtError: on resume, a line of ``metrics.jsonl`` other than an unfinished last one is
            not JSON.
        OutputError: the folder or a file in it cannot be written.
    """

    def __init__(self, output: Path, config: LogConfig, resume_round: int | None = None):
        self.output = Path(output)
        make_folder(self.output)
        self.path = self.output / LINES
        lines = [] if resume_round is None else _lines_until(self.path, resume_round)
        write_text(self.path, "".join(lines))
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        with writing(self.output / EVENTS):
            self._events = self._open_events(resume_round) if config.tensorboard else None

    def log(self, round: int, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Writes one line, and one TensorBoard scalar per value, at ``round`` rounds done.

        Returns:
            The values as floats.

        Raises:
            OutputError: the line cannot be written, or the file was deleted.
        """
        read = read_values(values)
        with writing(self.path):
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise OutputError(f"{self.path}: was deleted while the run was writing to it")
            self._file.write(
                json.dumps(json_values({"round": round, **read}), allow_nan=False) + "\n"
            )
            self._file.flush()
            if self._events is not None:
                for name, value in read.items():
                    if math.isfinite(value):
                        self._events.add_scalar(name, value, round)
        return read

    def sync(self) -> None:
        """Writes the log down to the disk. OutputError if it cannot be."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def write_final(self, metrics: Mapping[str, Any]) -> Path:
        """Writes ``metrics.json`` as a whole and returns its path.

        Args:
            metrics: ``dev`` (per task a mapping of its metrics, and ``overall``), ``rounds``,
                ``rounds_per_second``, ``backend``, ``precision``, ``seed``; more may follow.
        """
        missing = [key for key in _FINAL_KEYS if key not in metrics]
        assert not missing and "overall" in metrics["dev"], f"incomplete metrics: {missing}"
        path = self.output / FINAL
        write_json(path, json_values(metrics))
        return path

    def close(self) -> None:
        """Ends both logs, down to the disk. OutputError if they cannot be written."""
        with writing(self.path), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._events is not None:
            with writing(self.output / EVENTS):
                self._events.close()
                sync_tree(self.output / EVENTS)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        # The first error is the one that is reported.
        with contextlib.nullcontext() if error is None else contextlib.suppress(OutputError):
            self.close()

    def _open_events(self, resume_round: int | None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        purge_step = None if resume_round is None else resume_round + 1
        _wait_for_a_later_name(self.output / EVENTS)
        return SummaryWriter(
            str(self.output / EVENTS), purge_step=purge_step, filename_suffix=EVENT_SUFFIX
        )


class SilentLogger(AbstractContextManager):
    """Takes what ``RunLogger`` takes and writes nothing: of the ranks that do not log."""

    def log(self, round: int, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        return read_values(values)

    def sync(self) -> None:
        pass

    def write_final(self, metrics: Mapping[str, Any]) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _wait_for_a_later_name(folder: Path) -> None:
    """Until the second is over in which a file of events was begun.

    TensorBoard reads files in the order of their names: the second, the host, then numbers whose
    order as text is not that of time. A resumed run's file has to come last.
    """
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _lines_until(path: Path, last_round: int) -> list[str]:
    """The whole lines of ``path`` with ``round <= last_round``."""
    if not path.exists():
        return []
    earlier = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            logged_round = json.loads(line)["round"]
        except (ValueError, KeyError, TypeError):
            raise SbrrtError(
                f"{path}:{number}: is not a line this program wrote; mend or remove it to resume"
            ) from None
        if logged_round <= last_round:
            earlier.append(line)
    return earlier


def json_values(value: Any) -> Any:
    """``value`` with tensors as numbers and non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): json_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(inner) for inner in value]
    if hasattr(value, "item"):  # 0-dim tensors and numpy scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
