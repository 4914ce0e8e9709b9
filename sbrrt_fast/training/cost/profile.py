"""Where a round's time goes: a clock for its stages, and the table a user sees."""

from __future__ import annotations

import re
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.cost.floor import Ceilings, RoundCost, best_ceilings, round_cost

STAGES = ("data", "clean", "ascent", "adversarial", "teacher", "backward", "optimiser")


def _nothing() -> None:
    pass


class NoClock:
    """Measures nothing.

    Args:
        tick: called before every stage.
    """

    def __init__(self, tick: Callable[[], object] = _nothing):
        self._tick = tick

    def __call__(self, stage: str):
        self._tick()
        return nullcontext()


class StageClock:
    """Seconds by stage and round; on a GPU the host waits at both ends of every stage.

    Args:
        device: where the stages run.
        tick: called before every stage.
    """

    def __init__(self, device: torch.device, tick: Callable[[], object] = _nothing):
        self.device, self._tick = device, tick
        self.rounds: list[dict[str, float]] = []
        self._current: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._tick()
        start = self._now()
        try:
            yield
        finally:
            self._current[stage] += self._now() - start

    def end_round(self) -> None:
        self.rounds.append(dict(self._current))
        self._current.clear()

    def medians(self, warm_up: int = 3) -> dict[str, float]:
        """Median seconds by stage, without the first rounds where there are enough others."""
        rounds = self.rounds[warm_up:] or self.rounds
        stages = dict.fromkeys(name for seconds in rounds for name in seconds)
        return {
            name: torch.tensor([seconds.get(name, 0.0) for seconds in rounds]).median().item()
            for name in stages
        }

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class RunProfile:
    """Where the rounds of a run go, against the floor.

    Args:
        device: of the run.
        tick: see ``StageClock``.
    """

    def __init__(self, device: torch.device, tick: Callable[[], object] = _nothing):
        self.clock, self.num_tokens = StageClock(device, tick), Counter()

    def end_round(self, num_tokens: Mapping[str, int]) -> None:
        """``num_tokens`` by task."""
        self.clock.end_round()
        self.num_tokens.update(num_tokens)

    def measure(
        self, model: MultiTaskModel, config: RunConfig, step_bytes: dict[str, int]
    ) -> Profile | None:
        """The rounds so far against this machine's rates; None before the first round.

        Args:
            step_bytes: memory of the step by what holds it.
        """
        if not self.clock.rounds:
            return None
        device = self.clock.device
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        mean = {task: n / len(self.clock.rounds) for task, n in self.num_tokens.items()}
        cost = round_cost(model.config, config, mean, trained)
        memory = {"peak": peak_bytes(device)} | step_bytes
        return Profile(self.clock, cost, best_ceilings(device, config.precision), memory)


@dataclass(frozen=True)
class Profile:
    """Stages of a round, their floors, and the memory that is held.

    Attributes:
        cost: operations and bytes of a round by stage.
        ceilings: measured on this machine in this run.
        memory: bytes by what holds them.
    """

    clock: StageClock
    cost: RoundCost
    ceilings: Ceilings
    memory: dict[str, int]

    def lines(self) -> list[str]:
        """A table for the end of a run."""
        return report(self.clock, self.cost, self.ceilings, self.memory)

    def to_dict(self) -> dict[str, Any]:
        """For ``metrics.json``: median and least seconds of a round by stage, bytes of memory."""
        return {
            "rounds": len(self.clock.rounds),
            "tokens": self.cost.num_tokens,
            "seconds": self.clock.medians(),
            "floor_seconds": self.cost.seconds(self.ceilings),
            "memory_bytes": self.memory,
        }


def peak_bytes(device: torch.device) -> int:
    """The most memory the process (or the GPU's allocator) has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss begins with what the parent process held
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(
    clock: StageClock, cost: RoundCost, ceilings: Ceilings, memory: dict[str, int]
) -> list[str]:
    """Lines of the table: stages, their floors, and the memory that is held.

    Args:
        cost: operations and bytes of a round by stage.
        ceilings: measured on this machine in this run.
        memory: bytes by what holds them.
    """
    medians = clock.medians()
    total, floors = sum(medians.values()), cost.seconds(ceilings)
    lines = [
        f"one round, median of {len(clock.rounds)}: {1e3 * total:.1f} ms for {cost.num_tokens:.0f}"
        f" tokens; floor {1e3 * sum(floors.values()):.1f} ms at {ceilings.flops / 1e9:.0f} GFLOP/s"
        f" and {ceilings.bytes / 1e9:.1f} GB/s, both measured just now",
        f"  {'stage':<12}{'ms':>9}{'share':>8}{'floor ms':>10}{'of floor':>10}",
    ]
    for stage in [*(s for s in STAGES if s in medians), *(s for s in medians if s not in STAGES)]:
        floor, seconds = floors.get(stage, 0.0), medians[stage]
        share = f"{1e3 * floor:>10.1f}{seconds / floor:>9.1f}x" if floor else ""
        lines.append(f"  {stage:<12}{1e3 * seconds:>9.1f}{seconds / total:>8.0%}{share}")
    lines.append("  memory: " + ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in memory.items()))
    return lines
