"""How far a run has come, and the state that it saves to go on from there."""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_leaves
from sbrrt_fast.config_io import CALL_FIELDS, portable
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.errors import SbrrtError, WeightsError
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.averaging import RunAverage
from sbrrt_fast.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from sbrrt_fast.training.early_stopping import Waiting
from sbrrt_fast.training.kept_models import Evaluation
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.round_robin import Cursor

# Settings that a resumed run may change: paths (their contents are compared), the device, and the
# logs.
MAY_DIFFER = {
    *CALL_FIELDS,
    *("data_dir", "model.backbone", "device", "graphs", "profile", "report_to"),
    "round.accumulate",
    *("log.every", "log.gain", "log.tensorboard", "log.state_every"),
    *("log.keep_state", "log.keep_best", "log.keep_last", "skip_final_evaluation", "extended"),
}
_IDS_PER_PIECE = 4096
_MODEL, _TEACHER, _AVERAGE, _INTERVAL = "model.", "teacher.", "average.", "interval."


@dataclass
class Progress:
    """The part of a run's state that changes every round, besides weights, optimiser and teacher.

    Attributes:
        cursor: rounds done and batches taken.
        best: the best evaluation's ``overall`` of the trained tasks, its ``round``, all its
            ``scores``, and ``average``, see ``RunAverage.facts``; None before the first.
        seconds: of training, without evaluations.
        evaluation_seconds: of evaluations.
        interval: loss terms since the last logged line.
        num_skipped: updates skipped since the last logged line, as far as they were counted.
        evaluation_is_due: the rounds done are to be evaluated before the next one.
        evaluations: every evaluation so far.
        waiting: what early stopping knows of them.
        is_unscored: the final evaluation, of the rounds done, was left out.
    """

    cursor: Cursor
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    interval: IntervalMeans = field(default_factory=IntervalMeans)
    num_skipped: int = 0
    evaluation_is_due: bool = False
    evaluations: list[Evaluation] = field(default_factory=list)
    waiting: Waiting = field(default_factory=Waiting)
    is_unscored: bool = False

    def evaluated(self, score: float | None) -> None:
        """Notes the dev score by which models are chosen, after the rounds done; None where there
        is none."""
        done = self.cursor.round
        self.evaluations = [e for e in self.evaluations if e[0] != done] + [(done, score)]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Adds the body's time to ``evaluation_seconds``."""
        begin = time.perf_counter()
        yield
        self.evaluation_seconds += time.perf_counter() - begin

    def to_meta(self) -> dict[str, Any]:
        """As JSON values; the interval's sums are tensors, see ``state_tensors``."""
        return {
            "cursor": self.cursor.to_dict(),
            "best": self.best,
            "seconds": self.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "interval": self.interval.to_meta(),
            "num_skipped": self.num_skipped,
            "evaluation_is_due": self.evaluation_is_due,
            "evaluations": self.evaluations,
            "waiting": self.waiting.to_meta(),
            "is_unscored": self.is_unscored,
        }


def state_tensors(
    model: MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    teacher: Teacher | None,
    average: RunAverage,
    progress: Progress,
) -> dict[str, Tensor]:
    """Everything of a run that is a tensor, by name."""
    tensors = trained_tensors(model, optimizer, teacher, average)
    return tensors | {f"{_INTERVAL}{n}": t for n, t in progress.interval.tensors().items()}


def trained_tensors(
    model: MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    teacher: Teacher | None,
    average: RunAverage | None = None,
) -> dict[str, Tensor]:
    """What rounds change, by name: weights, the optimiser's averages, the teacher, the average."""
    tensors = {f"{_MODEL}{name}": x for name, x in model.trained_tensors().items()}
    tensors |= optimizer_tensors(optimizer, model.named_parameters())
    if teacher is not None:
        tensors |= {f"{_TEACHER}{name}": t for name, t in teacher.state_dict().items()}
    averaged = {} if average is None else average.tensors()
    return tensors | {f"{_AVERAGE}{name}": t for name, t in averaged.items()}


def num_bytes_saved(
    model: MultiTaskModel, teacher: Teacher | None, average: RunAverage, num_kept: int = 0
) -> int:
    """The most that a run saves: both models, a state, and the one that is being replaced.

    Args:
        num_kept: further models, see ``kept_models.max_models``.
    """
    parameters = list(model.parameters())
    model_bytes = sum(p.nbytes for p in parameters)
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    state = trained * (3 + (teacher is not None) + average.is_mean)
    return (2 + num_kept) * model_bytes + state + max(model_bytes, state)


@torch.no_grad()
def restore_tensors(
    tensors: Mapping[str, Tensor],
    model: MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    teacher: Teacher | None,
    average: RunAverage | None = None,
) -> None:
    """Puts back weights, optimiser, teacher and average.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    weights = _below(tensors, _MODEL)
    for name, tensor in model.trained_tensors().items():
        tensor.copy_(_state_tensor(weights, name, tensor))
    load_optimizer_tensors(optimizer, model.named_parameters(), tensors)
    if teacher is not None:
        teacher.load_state_dict(_below(tensors, _TEACHER))
    if average is not None:
        average.restore(_below(tensors, _AVERAGE))


def restore_progress(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], cursor: Cursor, device: torch.device
) -> Progress:
    """The progress that ``to_meta`` and ``state_tensors`` saved."""
    sums = {number: t.to(device) for number, t in _below(tensors, _INTERVAL).items()}
    return Progress(
        cursor=cursor,
        best=meta["best"],
        seconds=meta["seconds"],
        evaluation_seconds=meta.get("evaluation_seconds", 0.0),
        interval=IntervalMeans.restored(sums, meta["interval"]),
        num_skipped=meta["num_skipped"],
        evaluation_is_due=meta["evaluation_is_due"],
        evaluations=[(done, score) for done, score in meta["evaluations"]],
        waiting=Waiting.restored(meta["waiting"]),
        is_unscored=meta["is_unscored"],
    )


def check_same_run(
    started: RunConfig, now: RunConfig, where: str, may_grow: Iterable[str] = ()
) -> None:
    """SbrrtError naming every setting in which a resumed run differs from the one it continues.

    Args:
        may_grow: settings that may differ besides those that always may.
    """
    leaves = config_leaves(portable(started)), config_leaves(portable(now))
    check_resumed_settings(*leaves, where, MAY_DIFFER.union(may_grow))


def check_resumed_settings(
    first: Mapping[str, Any], other: Mapping[str, Any], where: str, may_differ: Container[str]
) -> None:
    """SbrrtError naming every setting in which a resumed run differs from the one it continues.

    Args:
        first, other: of the run that was started and of the one now, by dotted key.
        where: the run's folder. may_differ: keys that do not count.
    """
    differences = [
        f"{key} {first.get(key)!r}, not {other.get(key)!r}"
        for key in sorted(first.keys() | other.keys())
        if first.get(key) != other.get(key) and key not in may_differ
    ]
    if differences:
        raise SbrrtError(
            f"{where}: was started with {'; '.join(differences)}; resume with these settings "
            "(--output and --resume alone take them), or train anew with --overwrite"
        )


def check_same_inputs(started: Mapping[str, int], now: Mapping[str, int], where: str) -> None:
    """SbrrtError naming the data or the encoder that changed since a run was started."""
    for name in sorted(started.keys() | now.keys()):
        if started.get(name) != now.get(name):
            raise SbrrtError(
                f"{where}: {name} is not what the run was started with; resume with the same "
                "files, or train anew with --overwrite"
            )


def input_checksums(
    model: MultiTaskModel, splits: Mapping[str, Mapping[str, TokenizedTask]]
) -> dict[str, int]:
    """CRC-32 of a run's inputs besides its configuration, by a name for messages.

    Args:
        splits: by name of the split, its tokenised tasks.
    """
    sizes = {name: value for name, value in asdict(model.config).items() if name != "stored"}
    shape = json.dumps([sizes, model.encoder.pooling], sort_keys=True)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        "the backbone's config.json": zlib.crc32(shape.encode()),
        "the backbone's frozen weights": _crc32(p.detach().cpu().numpy().data for p in frozen),
        **{
            f"the {split} split of task '{name}', as tokenised,": task_checksum(task)
            for split, tasks in splits.items()
            for name, task in tasks.items()
        },
    }


def task_checksum(task: TokenizedTask) -> int:
    return _crc32([*_joined_lines(task.ids), *(a.data for a in task.arrays.values())])


def _joined_lines(texts: Sequence[str]) -> Iterator[bytes]:
    """``"\\n".join(texts)`` in pieces, since there may be millions of them."""
    for first in range(0, len(texts), _IDS_PER_PIECE):
        lines = "\n".join(texts[first : first + _IDS_PER_PIECE])
        yield (("\n" if first else "") + lines).encode()


def _crc32(parts: Iterable[Any]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _state_tensor(tensors: Mapping[str, Tensor], name: str, expected: Tensor) -> Tensor:
    if name not in tensors or tensors[name].shape != expected.shape:
        raise WeightsError(
            f"saved state: '{name}' is missing or has another shape; resume with the same model, "
            "tasks and mode as the run was started with"
        )
    return tensors[name]
