"""Which examples each round takes: a function of (seed, cursor), with no other state.

Every task has its own endless stream of examples: pass 0 over a shuffled task, then pass 1 over
the task shuffled anew, and so on. A batch is the next ``batch_size`` examples of that stream, so a
long task continues where it stopped and a short one reshuffles. The permutation of a pass depends
on (seed, task name, pass) alone: adding a task does not change the order of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbrrt_fast.config import RoundConfig
from sbrrt_fast.errors import ConfigError

Batches = list[tuple[str, NDArray[np.int64]]]

_ORDER, _DRAW = 0, 1  # first word of the spawn key: keeps the two uses of the seed apart


@dataclass(frozen=True)
class Cursor:
    """Where training stands between two rounds; all a resumed run needs.

    Attributes:
        round: number of rounds done.
        taken: number of batches each task has given so far.
    """

    round: int = 0
    taken: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """This cursor as JSON-serialisable values; ``RoundRobin.cursor`` reads it back."""
        return {"round": self.round, "taken": dict(self.taken)}


class RoundRobin:
    """The order of a run's batches for all three schedules of ``RoundConfig``.

    ``round_robin`` takes one batch from every task per round. ``proportional`` and ``annealed``
    draw as many batches per round as there are tasks, with probability proportional to
    ``size ** alpha``: alpha is 1, or for ``annealed`` (PALs, arXiv 1902.02671)
    ``1 - 0.8 * epoch / (num_epochs - 1)``; with a single epoch alpha stays 1.

    Every example comes once per pass. A batch that spans two passes holds no example twice,
    provided the task fills two batches; below that a repeat within a batch is possible.

    Args:
        sizes: number of training examples per task, in round order.
        config: batch size, schedule and epoch task.
        seed: seed of the run, >= 0.
        num_rounds: number of rounds of the whole run; needed by ``annealed`` only.

    Raises:
        ConfigError: a task is smaller than one batch.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        config: RoundConfig,
        seed: int,
        num_rounds: int | None = None,
    ):
        _check_sizes(sizes, config)
        assert config.schedule != "annealed" or num_rounds is not None, "annealed needs num_rounds"
        self.sizes = dict(sizes)
        self.config = config
        self.seed = seed
        self.num_rounds = num_rounds
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}

    @property
    def rounds_per_epoch(self) -> int:
        """``len(epoch task) // batch_size``; the smallest task where none is named."""
        name = self.config.epoch_task
        size = min(self.sizes.values()) if name is None else self.sizes[name]
        return size // self.config.batch_size

    def start(self) -> Cursor:
        """The cursor of a new run."""
        return Cursor(round=0, taken=dict.fromkeys(self.sizes, 0))

    def cursor(self, saved: Mapping[str, Any]) -> Cursor:
        """A cursor from ``Cursor.to_dict``. ConfigError if it belongs to other tasks."""
        if set(saved["taken"]) != set(self.sizes):
            raise ConfigError(
                f"tasks: the saved state is of {sorted(saved['taken'])}, this run has "
                f"{sorted(self.sizes)}; resume with the tasks the run was started with"
            )
        return Cursor(
            round=saved["round"], taken={name: saved["taken"][name] for name in self.sizes}
        )

    def round(self, index: int) -> Batches:
        """Round ``index`` of the ``round_robin`` schedule, whatever came before.

        Returns:
            Per task, in order, its name and ``batch_size`` example indices (int64).
        """
        assert self.config.schedule == "round_robin", "drawn schedules need a cursor: next_round"
        return [(name, self._batch(name, index)) for name in self.sizes]

    def next_round(self, cursor: Cursor) -> tuple[Batches, Cursor]:
        """The round after ``cursor`` and the cursor after that round, for every schedule."""
        taken = dict(cursor.taken)
        batches: Batches = []
        for name in self._names(cursor.round):
            batches.append((name, self._batch(name, taken[name])))
            taken[name] += 1
        return batches, Cursor(round=cursor.round + 1, taken=taken)

    def probabilities(self, index: int) -> dict[str, float]:
        """Each task's chance to be drawn in round ``index`` of a drawn schedule."""
        weights = np.array(list(self.sizes.values()), dtype=np.float64) ** self._alpha(index)
        return dict(zip(self.sizes, (weights / weights.sum()).tolist(), strict=True))

    def _alpha(self, index: int) -> float:
        if self.config.schedule == "proportional":
            return 1.0
        assert self.num_rounds is not None
        num_epochs = -(-self.num_rounds // self.rounds_per_epoch)
        return 1.0 - 0.8 * (index // self.rounds_per_epoch) / max(num_epochs - 1, 1)

    def _names(self, index: int) -> list[str]:
        names = list(self.sizes)
        if self.config.schedule == "round_robin":
            return names
        words = _random_words(self.seed, (_DRAW, index), len(names))
        uniform = (words >> np.uint64(11)) * 2.0**-53
        bounds = np.cumsum(list(self.probabilities(index).values()))
        drawn = np.searchsorted(bounds[:-1], uniform, side="right")
        return [names[i] for i in drawn]

    def _batch(self, name: str, index: int) -> NDArray[np.int64]:
        size, batch = self.sizes[name], self.config.batch_size
        first, last = index * batch // size, ((index + 1) * batch - 1) // size
        positions = np.arange(index * batch, (index + 1) * batch) - first * size
        orders = [self._order(name, number) for number in range(first, last + 1)]
        return np.concatenate(orders)[positions]

    def _order(self, name: str, number: int) -> NDArray[np.int64]:
        """Pass ``number`` over the task: a permutation of its example indices."""
        cached = self._orders.get(name)
        if cached is None or cached[0] != number:
            cached = (number, self._fresh_order(name, number))
            self._orders[name] = cached
        return cached[1]

    def _fresh_order(self, name: str, number: int) -> NDArray[np.int64]:
        size, batch = self.sizes[name], self.config.batch_size
        order = self._shuffled(name, number)
        num_left = number * size % batch  # examples of the pass before in the batch they share
        if num_left and size >= 2 * batch:
            left = self._shuffled(name, number - 1)[-num_left:]
            repeated = np.isin(order[:batch], left)
            order[:batch] = order[:batch][np.argsort(repeated, kind="stable")]
        return order

    def _shuffled(self, name: str, number: int) -> NDArray[np.int64]:
        # Sorting raw words instead of Generator.permutation: numpy keeps the former's values.
        words = _random_words(self.seed, (_ORDER, number, *name.encode()), self.sizes[name])
        return np.argsort(words, kind="stable")


def _random_words(seed: int, key: tuple[int, ...], count: int) -> NDArray[np.uint64]:
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)


def _check_sizes(sizes: Mapping[str, int], config: RoundConfig) -> None:
    assert sizes, "there is no task to train on"
    assert config.epoch_task in (None, *sizes), f"'{config.epoch_task}' is no task of {list(sizes)}"
    smallest = min(sizes, key=lambda name: sizes[name])
    if sizes[smallest] < config.batch_size:
        raise ConfigError(
            f"round.batch_size: {config.batch_size} is more than the {sizes[smallest]} training "
            f"examples of task '{smallest}'; lower it"
        )
