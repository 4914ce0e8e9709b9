"""What one of several processes does in a test (``processes.run_ranks``); prints a JSON value."""

from __future__ import annotations

import json
import sys
import time

import torch

from sbrrt_fast.errors import DataError, RankError, SbrrtError
from sbrrt_fast.training.ranks.agreed_stop import AgreedStop
from sbrrt_fast.training.ranks.alike import check_same_inputs, check_same_tensors
from sbrrt_fast.training.ranks.process_group import connect
from sbrrt_fast.training.ranks.ranks import Ranks, first_alone
from sbrrt_fast.training.stopping import Stopped, StopSignals

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int32)


def sums(ranks: Ranks) -> dict:
    """Sums of several dtypes, two of them under way at a time; whether all ranks have the bits."""
    generator = torch.Generator().manual_seed(ranks.rank)
    result = {}
    for dtype in DTYPES:
        x = (100 * torch.randn(1003, generator=generator)).to(dtype)
        y = torch.full((7,), ranks.rank + 1, dtype=dtype)
        waits = [ranks.start_sum(x), ranks.start_sum(y)]
        for wait in waits:
            wait()
        everywhere = ranks.gather(x.double().tolist())
        is_same = all(values == everywhere[0] for values in everywhere)
        result[str(dtype)] = {"is_same": is_same, "y": y.tolist(), "x": x[:50].double().tolist()}
    return result


def gathers(ranks: Ranks) -> list:
    """Values of unequal sizes."""
    return [
        ranks.gather({"rank": ranks.rank, "text": "ü" * 100 * ranks.rank}),
        ranks.gather(None),
        ranks.gather([1.5, float("inf")] * ranks.rank),
    ]


def flags(ranks: Ranks) -> list[bool]:
    """Flags that are read after other talk."""
    reads = [ranks.start_flag(False), ranks.start_flag(ranks.rank == 1)]
    ranks.gather("between")
    reads.append(ranks.start_flag(True))
    return [read() for read in reads]


def stops(ranks: Ranks) -> list:
    """In which round each rank stops where one gets a signal, and by which one."""
    signals = StopSignals(is_polled=True)
    stop = AgreedStop(signals, ranks)
    for done in range(10):
        try:
            stop.check()
        except Stopped as stopped:
            return [done, stopped.number]
        if done == 3 and ranks.rank == ranks.size - 1:
            signals.number = 15
    return []


def errors(ranks: Ranks) -> dict:
    """What each rank raises where some raise."""
    last = ranks.size - 1

    def fails(on, make, during=lambda: None):
        def body():
            with ranks.together("reading the data"):
                if ranks.rank in on:
                    raise make()
                during()

        return _raised(body)

    result = {
        "first": fails([0], lambda: DataError("a.csv:3: bad")),
        "last": fails([last], lambda: DataError("b.csv:3: bad")),
        "all": fails(range(ranks.size), lambda: SbrrtError(f"from {ranks.rank}")),
        "other": fails([last], lambda: KeyError("x")),
        "signal": fails([last], lambda: Stopped(15)),
        "signal and error": fails([0], lambda: Stopped(15)) if last == 0 else _both(ranks),
        "in a gather": fails([last], lambda: DataError("c"), lambda: ranks.gather(1)),
        "nested": _raised(lambda: _nested(ranks)),
        "alone": _raised(lambda: _alone(ranks)),
        "none": fails([], lambda: DataError("no")),
    }
    return result | {"afterwards": ranks.gather(ranks.rank)}


def _both(ranks: Ranks) -> list:
    def body():
        with ranks.together("a"):
            raise Stopped(15) if ranks.rank == 0 else DataError("d")

    return _raised(body)


def _nested(ranks: Ranks) -> None:
    with ranks.together("outer"), ranks.together("inner"):
        if ranks.rank == ranks.size - 1:
            raise DataError("e")


def _alone(ranks: Ranks) -> None:
    with first_alone(ranks, "writing") as is_first:
        assert is_first == (ranks.rank == 0)
        if is_first:
            raise DataError("f")


def _raised(body) -> list:
    try:
        body()
    except BaseException as error:
        return [type(error).__name__, str(error), getattr(error, "is_told", None)]
    return []


def comparisons(ranks: Ranks) -> list:
    """Of inputs and tensors that are alike, and not."""
    last = ranks.rank == ranks.size - 1
    weights = {"a": torch.arange(5.0), "b": torch.tensor(2.0), "c": torch.ones(3).bfloat16()}
    other = weights | ({"b": torch.tensor(2.0).nextafter(torch.tensor(3.0))} if last else {})
    return [
        _raised(lambda: check_same_tensors(ranks, weights, 4)),
        _raised(lambda: check_same_tensors(ranks, other, 4)),
        _raised(lambda: check_same_inputs(ranks, {"x": 1, "y": 2})),
        _raised(lambda: check_same_inputs(ranks, {"x": 1, "y": 2 + last})),
    ]


def talk(ranks: Ranks) -> dict:
    tests = (sums, gathers, flags, stops, errors, comparisons)
    return {test.__name__: test(ranks) for test in tests}


def fail(ranks: Ranks) -> str:
    """The last rank fails by itself while the others wait for it."""
    try:
        with ranks.watched():
            if ranks.rank == ranks.size - 1:
                raise SbrrtError("no such thing")
            ranks.sum(torch.ones(3))
    except SbrrtError as error:
        return f"{error} {error.is_told}"
    return "nothing"


def hang(ranks: Ranks) -> None:
    """The last rank is alive and does nothing; the others wait for it."""
    with ranks.watched("go on with this"):
        ranks.tick(7)
        ranks.gather(0)
        if ranks.rank == ranks.size - 1:
            time.sleep(100)
        ranks.gather(1)


def apart(ranks: Ranks) -> None:
    """Ranks that are not at the same place."""
    if ranks.is_first:
        ranks.gather(1)
    else:
        with ranks.together("something else"):
            pass


def main(name: str, timeout: str = "45") -> None:
    ranks = connect("cpu", float(timeout))
    try:
        print(json.dumps(globals()[name](ranks)))
    except RankError as error:  # as the command does
        print(f"sbrrt-fast: {error}", file=sys.stderr)
        sys.exit(1)
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
