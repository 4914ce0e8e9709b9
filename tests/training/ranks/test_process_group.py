"""Sums, gathers, flags, errors and comparisons between 2 and 3 processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sbrrt_fast.errors import RankError
from sbrrt_fast.training.ranks.beats import Pulse
from sbrrt_fast.training.ranks.process_group import TorchRanks
from tests.training.ranks.processes import Ended, run_ranks
from tests.training.ranks.workers import DTYPES


@pytest.fixture(scope="module", params=[2, 3])
def talk(request) -> list[dict]:
    """What each rank of 2 or 3 says of everything that is asked below."""
    return [ended.value for ended in run_ranks(request.param, "talk")]


@pytest.mark.parametrize("dtype", [str(dtype) for dtype in DTYPES])
def test_a_sum_is_the_same_on_all_ranks(talk, dtype):
    size = len(talk)
    for answer in talk:
        assert answer["sums"][dtype]["is_same"]
        assert answer["sums"][dtype]["y"] == [size * (size + 1) / 2] * 7


def test_bfloat16_is_summed_in_float32(talk):
    parts = []
    for rank in range(len(talk)):
        generator = torch.Generator().manual_seed(rank)
        drawn = {dtype: 100 * torch.randn(1003, generator=generator) for dtype in DTYPES}
        parts.append(drawn[torch.bfloat16].bfloat16().float())
    total = torch.stack(parts).sum(dim=0).bfloat16()
    assert talk[0]["sums"]["torch.bfloat16"]["x"] == total[:50].double().tolist()


def test_every_rank_gathers_every_value(talk):
    size = len(talk)
    for answer in talk:
        records, nothing, lists = answer["gathers"]
        assert records == [{"rank": r, "text": "ü" * 100 * r} for r in range(size)]
        assert nothing == [None] * size
        assert lists == [[1.5, float("inf")] * r for r in range(size)]


def test_a_flag_of_one_rank_is_read_by_all(talk):
    assert [answer["flags"] for answer in talk] == [[False, True, True]] * len(talk)


def test_all_ranks_stop_after_the_same_round(talk):
    assert [answer["stops"] for answer in talk] == [[5, 15]] * len(talk)


def test_an_error_of_one_rank_is_raised_on_all_and_printed_by_one(talk):
    last = len(talk) - 1
    for rank, answer in enumerate(talk):
        errors, is_told = answer["errors"], rank > 0
        assert errors["first"] == ["DataError", "a.csv:3: bad", is_told]
        assert errors["last"] == ["DataError", f"rank {last}: b.csv:3: bad", is_told]
        assert errors["all"] == ["SbrrtError", "from 0", is_told]
        assert errors["in a gather"] == ["DataError", f"rank {last}: c", is_told]
        assert errors["nested"] == ["DataError", f"rank {last}: e", is_told]
        assert errors["alone"] == ["DataError", "f", is_told]
        assert errors["none"] == []
        assert errors["afterwards"] == list(range(last + 1))


def test_another_exception_of_one_rank_does_not_leave_the_others_waiting(talk):
    *others, own = [answer["errors"]["other"] for answer in talk]
    assert own == ["KeyError", "'x'", False]
    message = f"rank {len(others)}: reading the data failed (KeyError: 'x')"
    assert others == [["SbrrtError", message, True]] * len(others)


def test_a_signal_of_one_rank_stops_all_and_an_error_comes_first(talk):
    for rank, answer in enumerate(talk):
        assert answer["errors"]["signal"][:2] == ["Stopped", "SIGTERM"]
        assert answer["errors"]["signal and error"] == ["DataError", "rank 1: d", rank > 0]


def test_a_rank_with_other_weights_or_inputs_is_named(talk):
    name = f"rank {len(talk) - 1}" if len(talk) > 2 else "rank 1"
    for answer in talk:
        same, weights, also_same, inputs = answer["comparisons"]
        assert same == also_same == []
        assert weights[1].startswith(f"{name}: after round 4 its 'b' has not the bits")
        assert inputs[1].startswith(f"{name}: y is not that of the other ranks")


def test_a_rank_that_fails_by_itself_ends_the_others_with_its_message():
    *others, own = [ended.value for ended in run_ranks(3, "fail")]
    assert own == "no such thing False"
    assert others == ["rank 2: no such thing True"] * 2


def test_a_rank_that_hangs_is_named_by_the_others():
    *others, own = run_ranks(3, "hang", "5")
    assert [ended.status for ended in (*others, own)] == [1, 1, 1]
    assert own.err == ""
    for ended in others:
        (line,) = ended.err.splitlines()
        assert line.startswith("sbrrt-fast: rank 2 (process ")
        assert "is alive but hangs since" in line
        assert line.endswith("after round 7; go on with this")


def test_ranks_at_different_places_are_told():
    def says(ended: Ended) -> bool:
        places = "rank 0 at gather, rank 1 at the end of something else"
        return f"the ranks are not at the same place: {places}" in ended.err

    assert all(map(says, run_ranks(2, "apart")))


def test_a_leave_that_fails_ends_the_thread_and_the_groups(monkeypatch):
    """The others may be gone; a thread that listens while the interpreter ends would abort it."""
    ended: list[str] = []
    monitor = SimpleNamespace(stop=lambda: ended.append("thread"))
    launch = SimpleNamespace(rank=1, size=2)
    ranks = TorchRanks(launch, "sums", "control", monitor, Pulse(state="idle"))

    def fail(record):
        raise RankError("rank 0 is gone")

    monkeypatch.setattr(ranks, "_exchange", fail)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", ended.append)
    with pytest.raises(RankError, match="rank 0 is gone"):
        ranks.close()
    assert ended == ["thread", "control", "sums"]
    ranks.close()
    assert len(ended) == 3  # once is enough
