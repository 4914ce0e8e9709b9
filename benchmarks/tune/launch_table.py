"""Times launch choices of the Triton kernels and rewrites ``kernels/launch_table.py``.

    python -m benchmarks.tune.launch_table                      # every class, on a GPU
    python -m benchmarks.tune.launch_table --only "attention forward" --dry-run

A candidate that does not compile, spills registers or needs more shared memory than sm_80 and sm_90
have is left out. The others are timed as CUDA graphs, in turns, on the trainer's shapes, whose
inputs stay in L2 as a step's own do; their results are compared with the present choice's. Without
a GPU, and with --dry-run, nothing is timed nor written: it lists what each candidate needs.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
import triton.testing

from benchmarks.tune.shape_classes import Call, ShapeClass, shape_classes
from sbrrt_fast.files import write_text
from sbrrt_fast.kernels import launch_table
from sbrrt_fast.kernels.aot import Row, row_of
from sbrrt_fast.kernels.launch import recording
from sbrrt_fast.kernels.launch_table import TABLE, Choice

ARCHS = (80, 90)
TURNS = 5
FASTER = 0.98  # of the present choice's time; less is noise
Constants = dict[str, int]


@contextmanager
def chosen(name: str, constants: Constants) -> Iterator[None]:
    """The kernels take these constants for a class."""
    before = TABLE[name]
    TABLE[name] = Choice(constants, before.why)
    try:
        yield
    finally:
        TABLE[name] = before


def needs(name: str, constants: Constants) -> list[Row]:
    """What the class's launches become on each chip."""
    with chosen(name, constants), recording() as launches:
        for call in shape_classes()[name].calls(torch.device("meta")):
            call()
    return [row_of(name, str(constants), launch, arch) for launch in launches for arch in ARCHS]


def compile_candidates(name: str, shape_class: ShapeClass, jobs: int) -> dict[int, list[Row]]:
    """Rows of each candidate, by its number."""
    candidates = list(shape_class.candidates())
    with ProcessPoolExecutor(jobs) as pool:
        rows = pool.map(needs, [name] * len(candidates), candidates)
        return dict(enumerate(rows))


def candidate_line(constants: Constants, rows: Sequence[Row], is_present: bool) -> str:
    """A candidate's line: the most that any of its launches needs, and its faults."""
    most = {
        key: max(getattr(row, key) for row in rows) for key in ("registers", "shared", "spills")
    }
    faults = sorted({fault for row in rows for fault in row.faults()})
    numbers = ", ".join(f"{value} {key}" for key, value in most.items())
    return f"{'*' if is_present else ' '} {constants}: {'; '.join(faults) or numbers}"


def time_candidates(
    name: str, shape_class: ShapeClass, candidates: Sequence[Constants]
) -> list[float]:
    """Microseconds of the class's calls with each of the candidates, timed in turns."""
    calls = shape_class.calls(torch.device("cuda"))
    with chosen(name, TABLE[name].constants):
        expected = _results_of(calls)
    times: list[list[float]] = [[] for _ in candidates]
    for turn in range(TURNS):
        for constants, found in zip(candidates, times, strict=True):
            with chosen(name, constants):
                if turn == 0:
                    _check(_results_of(calls), expected)
                found.append(sum(map(_microseconds, calls)))
    return [statistics.median(found) for found in times]


def _microseconds(call: Callable[[], object]) -> float:
    return 1e3 * triton.testing.do_bench_cudagraph(call, rep=20, return_mode="median")


def _results_of(calls: Sequence[Call]) -> list[list[torch.Tensor]]:
    """What each call writes into memory that is NaN before; none of ops that work in place."""
    written = []
    for call in calls:
        results = [x for x in call.results if x is not None]
        for x in results:
            x.fill_(float("nan"))
        call()
        written.append([x.clone() for x in results])
    return written


def _check(results: list, expected: list) -> None:
    """Other blocks round differently."""
    torch.testing.assert_close(results, expected, rtol=2e-2, atol=2e-2)


def best(name: str, candidates: Sequence[Constants], times: Sequence[float], device: str) -> Choice:
    """The fastest, or the present choice where nothing is clearly faster, with its measurement.

    The present choice must be among the candidates.
    """
    present = candidates.index(TABLE[name].constants)
    fastest = min(range(len(times)), key=times.__getitem__)
    pick = fastest if times[fastest] < FASTER * times[present] else present
    others = [time for i, time in enumerate(times) if i != pick]
    beside = f"; {len(others)} others {min(others):.1f} to {max(others):.1f}" if others else ""
    return Choice(candidates[pick], f"{times[pick]:.1f} us on {device}{beside}")


def render(table: dict[str, Choice]) -> str:
    """The text of ``kernels/launch_table.py`` with this table."""
    text = Path(launch_table.__file__).read_text(encoding="utf-8")
    head = text[: text.index("TABLE: ")]
    rows = []
    for name, choice in table.items():
        constants = ", ".join(f'"{key}": {value}' for key, value in choice.constants.items())
        rows.append(
            f'    "{name}": Choice(\n        {{{constants}}},\n        "{choice.why}",\n    ),\n'
        )
    return f"{head}TABLE: dict[str, Choice] = {{\n{''.join(rows)}}}\n"


def write(text: str) -> None:
    write_text(Path(launch_table.__file__), text)


def tune(name: str, shape_class: ShapeClass, jobs: int, device: str | None) -> Choice:
    """Prints the candidates of a class; with a device's name, times them and returns the best."""
    candidates, present = list(shape_class.candidates()), TABLE[name].constants
    rows = compile_candidates(name, shape_class, jobs)
    print(name)
    for i, constants in enumerate(candidates):
        print(candidate_line(constants, rows[i], constants == present))
    good = [c for i, c in enumerate(candidates) if not any(row.faults() for row in rows[i])]
    if device is None:
        return TABLE[name]
    choice = best(name, good, time_candidates(name, shape_class, good), device)
    print(f"-> {choice.constants}: {choice.why}")
    return choice


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune.launch_table")
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", help="regular expression on the classes' names")
    parser.add_argument("--dry-run", action="store_true", help="neither time nor write")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("kernels are compiled here; unset TRITON_INTERPRET")
    has_gpu = torch.cuda.is_available() and not arguments.dry_run
    device = f"{torch.cuda.get_device_name()}, Triton {triton.__version__}" if has_gpu else None
    selected = {n: c for n, c in shape_classes().items() if re.search(arguments.only, n)}
    for name, shape_class in selected.items():
        TABLE[name] = tune(name, shape_class, arguments.jobs, device)
        if device:
            write(render(TABLE))
    print(f"{len(selected)} classes {'timed and written' if device else 'compiled, none timed'}")
    return 0 if selected else 1


if __name__ == "__main__":
    sys.exit(main())
