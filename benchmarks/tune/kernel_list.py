"""The kernels of replayed rounds as torch's profiler sees them: name, count, time, and the gaps.

    python -m benchmarks.tune.kernel_list [--rounds 20] [--model minilm] [--updates per_task joint]

On a GPU the rounds are replays of captured steps, and what is listed is what the device ran. On a
CPU, where nothing is captured, the ops take the kernels' place.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness.results import leave_result
from benchmarks.harness.rounds import Rounds, sbrrt, step_and_rounds
from benchmarks.harness.runner import use_own_stream
from benchmarks.harness.settings import NUM_ROUNDS, Settings, settings
from benchmarks.harness.shapes import MODELS, Case
from sbrrt_fast.training.step.captured_step import SIGHTS, CapturedStep
from sbrrt_fast.training.step.step import Step

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
    for kernel in ordered:
        kernels[kernel.name].append(kernel.end - kernel.start)
        if last is not None and kernel.start > last.end:
            gaps[last.name, kernel.name].append(kernel.start - last.end)
        begin = kernel.start if last is None else max(kernel.start, last.end)
        busy += max(kernel.end - begin, 0.0)
        last = kernel if last is None or kernel.end > last.end else last
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
    step: Step | CapturedStep, rounds: Rounds, first: int, num_rounds: int, device: torch.device
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


def kernel_list(settings: Settings, model: str, update: str, num_rounds: int, warm_up: int) -> dict:
    """``summary`` of so many rounds, after so many; ``launched`` says why, on a GPU, they were no
    replays, and is "" where they were.

    Raises:
        RuntimeError: nothing was seen.
    """
    case, lines = Case(model, "round", ""), []
    step, rounds = step_and_rounds(settings, case, sbrrt(update), lines.append)
    index = run(step, rounds, 0, warm_up)
    before = num_replays(step)
    intervals = profiled(step, rounds, index, num_rounds, settings.device)
    launched = launched_reason(step, num_replays(step) - before, num_rounds, lines)
    record = {"rounds": num_rounds, "launched": launched if settings.is_gpu else ""}
    return record | summary(intervals, num_rounds)


def run(step: Step | CapturedStep, rounds: Rounds, first: int, count: int) -> int:
    """Trains so many rounds; returns the number of the next."""
    for index in range(first, first + count):
        step.round(rounds[index], index)
    return first + count


def num_replays(step: Step | CapturedStep) -> int:
    return step.num_replays if isinstance(step, CapturedStep) else 0


def launched_reason(
    step: Step | CapturedStep, count: int, num_rounds: int, lines: list[str]
) -> str:
    """Empty if all steps of so many rounds were replays, else how many were, and the reasons."""
    expected = num_rounds * (1 if step.is_joint else len(step.config.tasks))
    reason = "; ".join([f"{count} of {expected} steps were replays", *lines])
    return reason if count != expected else ""


def lines_of(name: str, figures: dict) -> Iterator[str]:
    """The list as text."""
    times = ", ".join(f"{what} {figures[what] / 1e3:.3f} ms" for what in ("span", "busy", "idle"))
    yield f"{name}: a round has {figures['count']:.0f} kernels and copies; {times}"
    for entry in figures["kernels"]:
        yield f"  {entry['time']:>9.1f} us {entry['count']:>7.1f}x  {entry['name']}"
    yield "  gaps after -> before:"
    for entry in figures["gaps"][:20]:
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
    here, record = settings(), {}
    use_own_stream(here.device)
    for update in args.updates:
        name = f"{args.model} round {update}"
        record[name] = kernel_list(here, args.model, update, args.rounds, args.warm_up)
        print(*lines_of(name, record[name]), sep="\n", flush=True)
        leave_result(record)
    launched = {name: x["launched"] for name, x in record.items() if x["launched"]}
    print(*(f"{name}: LAUNCHED, not replayed: {why}" for name, why in launched.items()), sep="\n")
    return 1 if launched else 0


if __name__ == "__main__":
    sys.exit(main())
