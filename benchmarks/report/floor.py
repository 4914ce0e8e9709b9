"""The floor of a round on this machine, from ceilings measured now, and the distance to it.

    python -m benchmarks.report.floor [--model minilm] [--batch round] [--update joint]
    python -m benchmarks.report.floor --by-op       # and which ops a round's time goes to, on a CPU
    python -m benchmarks.report.floor --flops 790e12 --bandwidth 4.3e12 --launch 2e-6

On a GPU the stages are launched one by one, so that each can be timed; what a run does is replay
them, which is timed too, and the kernels of a replay are counted.
With ``--flops`` and its companions it is the floor of a machine that has such ceilings, and nothing
is timed; one round still runs here, to count its ops.
The arithmetic is ``training.cost.floor``'s, the one behind ``sbrrt-fast train --profile``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases.stages import stage_times
from benchmarks.harness.machine import PRECISIONS, Machine, measure
from benchmarks.harness.round_cost import typical_cost
from benchmarks.harness.rounds import sbrrt, step_and_rounds
from benchmarks.harness.settings import NUM_ROUNDS, Settings, settings
from benchmarks.harness.shapes import MODELS, Case
from benchmarks.harness.text import markdown_table
from benchmarks.tune.kernel_list import launched_reason, num_replays, profiled, run
from sbrrt_fast.training.cost.floor import RoundCost
from sbrrt_fast.training.step.captured_step import SIGHTS

PASSES = 5  # over all rounds
MOST_OPS = 16


def cost_of(figures: dict) -> RoundCost:
    return RoundCost(figures["num_tokens"], figures["flops"], figures["bytes"])


def floor_table(figures: dict, machine: Machine) -> list[str]:
    """Markdown: every stage with its floor; ``figures`` are ``stage_times``'s."""
    floors = cost_of(figures).seconds(machine.ceilings(figures["precision"]))
    seconds = figures["seconds"]
    total, least = sum(seconds.values()), sum(floors.values())
    head, rows = ["stage", "ms", "share", "floor, ms", "over the floor"], []
    for stage, measured in {**seconds, "all": total}.items():
        floor = floors.get(stage, 0.0) if stage != "all" else least
        of_floor = [f"{1e3 * floor:.2f}", f"{measured / floor:.1f}x"] if floor else ["-", "-"]
        rows.append([stage, f"{1e3 * measured:.2f}", f"{measured / total:.0%}", *of_floor])
    return [*markdown_table(head, rows), ""]


class Launches(TorchDispatchMode):
    """Counts the ops of a round that are no views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        self.count += not is_view
        return function(*args, **(kwargs or {}))


def count_launches(settings: Settings, case: Case, update: str) -> int:
    """Ops that one round sends to the device."""
    step, rounds = step_and_rounds(settings, case, sbrrt(update))
    step.round(rounds[0], 0)
    with Launches() as launches:
        step.round(rounds[1], 1)
    return launches.count


def op_lines(settings: Settings, case: Case, update: str, precision: str) -> Iterator[str]:
    """The ops that take the most of a round's time, as torch's profiler sees the calling thread.

    An op's own time is without the ops that it calls. Of ``mm_into`` it is the wait for the slower
    thread, and where bf16 is emulated ``copy_`` is the way there and back.
    """
    step, rounds = step_and_rounds(settings, case, sbrrt(update, precision))
    index = run(step, rounds, 0, NUM_ROUNDS)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(step, rounds, index, NUM_ROUNDS)
    ops = sorted(profiler.key_averages(), key=lambda op: -op.self_cpu_time_total)
    yield f"  {'op':<48}{'ms a round':>12}{'calls':>8}"
    for op in ops[:MOST_OPS]:
        own, count = op.self_cpu_time_total / 1e3 / NUM_ROUNDS, op.count / NUM_ROUNDS
        yield f"  {op.key:<48}{own:>12.2f}{count:>8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--batch", default="round", help="round, or round-N for N examples a task")
    parser.add_argument("--update", choices=("per_task", "joint"), default="per_task")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--flops", type=float, help="of a machine that is not this one, per second")
    parser.add_argument("--bandwidth", type=float, help="its bytes per second")
    parser.add_argument("--launch", type=float, help="its seconds per kernel in a graph")
    parser.add_argument("--by-op", action="store_true", help="of this machine's CPU")
    args = parser.parse_args()
    given = (args.flops, args.bandwidth, args.launch)
    if any(given) and not all(given):
        parser.error("--flops, --bandwidth and --launch go together")
    for line in lines_of(args, Case(args.model, args.batch, "")):
        print(line)


def lines_of(args: argparse.Namespace, case: Case) -> Iterator[str]:
    """The report of the command."""
    here = settings()
    if args.flops:
        machine = Machine({args.precision: args.flops}, args.bandwidth, args.launch)
        yield f"{args.model} {args.batch} {args.update} at the given ceilings, nothing timed:"
        cost = typical_cost(case, args.update, args.precision)
        floors = cost.seconds(machine.ceilings(args.precision))
        yield from (f"  {stage:<12}{1e3 * floor:>9.3f} ms" for stage, floor in floors.items())
        yield f"  {'all':<12}{1e3 * sum(floors.values()):>9.3f} ms"
    else:
        machine = measure(here.device)
        figures = stage_times(here, case, args.update, args.precision)
        yield from floor_table(figures, machine)
        floors = cost_of(figures).seconds(machine.ceilings(figures["precision"]))
        if args.by_op:
            yield from op_lines(here, case, args.update, args.precision)
    if here.is_gpu and not args.flops:
        figures = replayed_round(here, case, args.update, args.precision)
        one, least = figures["seconds"], sum(floors.values())
        yield f"replayed, as in a run: {1e3 * one:.2f} ms a round, {one / least:.1f}x the floor"
        yield _launches(figures["kernels"], "kernels and copies of a replayed round", machine)
    else:
        count = count_launches(here, case, args.update)
        yield _launches(count, "ops that are no views", machine)


def _launches(count: float, what: str, machine: Machine) -> str:
    each = machine.launch
    took = f"{1e3 * count * each:.2f} ms at {1e6 * each:.2f} us each"
    return f"launches: {count:.0f} {what}, {took}"


def replayed_round(settings: Settings, case: Case, update: str, precision: str) -> dict[str, float]:
    """``seconds`` of a round whose steps are replays, the median, and its ``kernels``.

    Raises:
        RuntimeError: a step was no replay.
    """
    lines: list[str] = []
    step, rounds = step_and_rounds(settings, case, sbrrt(update, precision), lines.append)
    index = run(step, rounds, 0, (SIGHTS + 1) * NUM_ROUNDS)
    before, seconds = num_replays(step), []
    for _ in range(PASSES):
        start = time.perf_counter()
        index = run(step, rounds, index, NUM_ROUNDS)
        torch.cuda.synchronize(settings.device)
        seconds.append((time.perf_counter() - start) / NUM_ROUNDS)
    count = num_replays(step) - before
    if reason := launched_reason(step, count, PASSES * NUM_ROUNDS, lines):
        raise RuntimeError(reason)
    kernels = profiled(step, rounds, index, NUM_ROUNDS, settings.device)
    return {"seconds": statistics.median(seconds), "kernels": len(kernels) / NUM_ROUNDS}


if __name__ == "__main__":
    main()
