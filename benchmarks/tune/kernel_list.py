"""The kernels of replayed rounds as torch's profiler sees them: name, count, time, and the gaps.

    python -m benchmarks.tune.kernel_list [--rounds 20] [--model minilm] [--updates per_task joint]

On a GPU the rounds are replays of captured steps, and what is listed is what the device ran. On a
CPU, where nothing is captured, the ops take the kernels' place.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness.results import write_json
from benchmarks.harness.rounds import SBRRT, Rounds, build_ours
from benchmarks.harness.runner import use_own_stream
from benchmarks.harness.settings import NUM_ROUNDS, Settings, settings
from benchmarks.harness.shapes import MODELS, Case
from sbrrt_fast.training.step.graph_step import SIGHTS, GraphStep
from sbrrt_fast.training.step.sbrrt_step import SbrrtStep

MOST, NAME = 60, 160  # kernels and gaps that are listed, and characters of a kernel's name


@dataclass(frozen=True)
class Interval:
    """Work of the device; times in microseconds."""

    name: str
    start: float
    end: float


def summary(intervals: Sequence[Interval], num_rounds: int) -> dict:
    """Times are microseconds a round, counts a round's; a gap is between a kernel and the next.

    Returns:
        ``span``, ``busy``, ``idle`` and ``count`` in all; ``kernels`` with ``count`` and ``time``,
        the longest first; ``gaps`` with ``after``, ``before``, ``count`` and ``time``, likewise.
    """
    ordered = sorted(intervals, key=lambda x: x.start)
    kernels, gaps = defaultdict(list), defaultdict(list)
    busy, last = 0.0, None
    for found in ordered:
        kernels[found.name].append(found.end - found.start)
        if last is not None and found.start > last.end:
            gaps[last.name, found.name].append(found.start - last.end)
        begin = found.start if last is None else max(found.start, last.end)
        busy += max(found.end - begin, 0.0)
        last = found if last is None or found.end > last.end else last
    span = last.end - ordered[0].start if ordered else 0.0
    figures = {"span": span, "busy": busy, "idle": span - busy, "count": len(ordered)}
    return {
        **{name: value / num_rounds for name, value in figures.items()},
        "kernels": [
            {"name": name, **_figures(times, num_rounds)} for name, times in _longest(kernels)
        ],
        "gaps": [
            {"after": pair[0], "before": pair[1], **_figures(times, num_rounds)}
            for pair, times in _longest(gaps)
        ],
    }


def _figures(times: list[float], num_rounds: int) -> dict:
    return {"count": len(times) / num_rounds, "time": sum(times) / num_rounds}


def _longest(times: dict) -> list[tuple]:
    return sorted(times.items(), key=lambda item: -sum(item[1]))[:MOST]


def profiled(
    step: SbrrtStep, rounds: Rounds, first: int, num_rounds: int, device: torch.device
) -> list[Interval]:
    """What ran on the device in some rounds, kernels and copies; on a CPU the innermost ops.

    Raises:
        RuntimeError: torch's profiler saw nothing.
    """
    is_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as seen:
        run(step, rounds, first, num_rounds)
        if is_gpu:
            torch.cuda.synchronize(device)
    kind = DeviceType.CUDA if is_gpu else DeviceType.CPU
    events = [e for e in seen.events() if e.device_type == kind and not e.cpu_children]
    if not events:
        raise RuntimeError("torch's profiler saw nothing on the device")
    return [Interval(e.name[:NAME], e.time_range.start, e.time_range.end) for e in events]


def kernel_list(chosen: Settings, model: str, update: str, num_rounds: int, warm_up: int) -> dict:
    """``summary`` of so many rounds, after so many; ``launched`` says why, on a GPU, they were no
    replays, and is "" where they were.

    Raises:
        RuntimeError: nothing was seen.
    """
    config = replace(SBRRT, round=replace(SBRRT.round, update=update))
    rounds, lines = Rounds(chosen, Case(model, "round", "")), []
    step = build_ours(rounds.encoder(), config, chosen.device, log=lines.append)
    index = run(step, rounds, 0, warm_up)
    before = num_replays(step)
    found = profiled(step, rounds, index, num_rounds, chosen.device)
    launched = told_launched(step, num_replays(step) - before, num_rounds, lines)
    told = {"rounds": num_rounds, "launched": launched if chosen.is_gpu else ""}
    return told | summary(found, num_rounds)


def run(step: SbrrtStep, rounds: Rounds, first: int, count: int) -> int:
    """Trains so many rounds; returns the number of the next."""
    for index in range(first, first + count):
        step.round(rounds[index], index)
    return first + count


def num_replays(step: SbrrtStep) -> int:
    return step.num_replays if isinstance(step, GraphStep) else 0


def told_launched(step: SbrrtStep, found: int, num_rounds: int, lines: list[str]) -> str:
    """Empty if all steps of so many rounds were replays, else how many were, and the reasons."""
    expected = num_rounds * (1 if step.is_joint else len(step.config.tasks))
    told = "; ".join([f"{found} of {expected} steps were replays", *lines])
    return told if found != expected else ""


def lines_of(name: str, found: dict) -> Iterator[str]:
    """The list as text."""
    times = ", ".join(f"{what} {found[what] / 1e3:.3f} ms" for what in ("span", "busy", "idle"))
    yield f"{name}: a round has {found['count']:.0f} kernels and copies; {times}"
    for entry in found["kernels"]:
        yield f"  {entry['time']:>9.1f} us {entry['count']:>7.1f}x  {entry['name']}"
    yield "  gaps after -> before:"
    for entry in found["gaps"][:20]:
        yield (
            f"  {entry['time']:>9.1f} us {entry['count']:>7.1f}x  {entry['after'][:60]} -> "
            f"{entry['before'][:60]}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    warm_up = (SIGHTS + 1) * NUM_ROUNDS  # every size is captured then
    parser.add_argument("--warm-up", type=int, default=warm_up, help="rounds before")
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--updates", nargs="+", default=["per_task", "joint"])
    args = parser.parse_args()
    chosen, record = settings(), {}
    use_own_stream(chosen.device)
    for update in args.updates:
        name = f"{args.model} round {update}"
        record[name] = kernel_list(chosen, args.model, update, args.rounds, args.warm_up)
        print(*lines_of(name, record[name]), sep="\n", flush=True)
        if folder := os.environ.get("STAGE"):
            write_json(Path(folder) / "result.json", record)
    launched = {name: found["launched"] for name, found in record.items() if found["launched"]}
    print(*(f"{name}: LAUNCHED, not replayed: {why}" for name, why in launched.items()), sep="\n")
    return 1 if launched else 0


if __name__ == "__main__":
    sys.exit(main())
