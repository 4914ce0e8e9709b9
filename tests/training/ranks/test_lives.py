"""Who is taken to be dead, to hang, or to go on; by beats and times that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sbrrt_fast.training.ranks.beats import ARRIVAL, DEAD_AFTER, PATIENCE, Beat, Lives, Pulse

BEAT = Beat(number=1, ticks=1, state="works", patience=1.0, rounds=4, pid=11, host="node-a")
TIMEOUT = 45


class Run:
    """Three ranks, a second at a time; ``change`` says what a rank does instead of going on."""

    def __init__(self):
        self.lives = Lives(3, TIMEOUT, 0.0)
        self.now, self.beats = 0.0, [replace(BEAT, pid=rank) for rank in range(3)]

    def go_on(self, seconds: int, **states: str):
        """``r1="silent"``: no beats. ``hangs``: beats alone. ``waits``: in a collective."""
        for _ in range(seconds):
            self.now += 1
            for rank in range(3):
                beat, does = self.beats[rank], states.get(f"r{rank}", "works")
                if does == "silent":
                    continue
                state = "works" if does == "hangs" else does
                step = int(does == "works")
                ticks, number = beat.ticks + step, beat.number + 1
                self.beats[rank] = replace(beat, number=number, ticks=ticks, state=state)
            self.lives.hear(dict(enumerate(self.beats)), self.now)
        return self.lives.verdict()


@pytest.fixture
def run() -> Run:
    run = Run()
    assert run.go_on(5) is None
    return run


def test_ranks_that_go_on_are_left_alone(run):
    assert run.go_on(500) is None


def test_a_rank_without_beats_is_dead(run):
    assert run.go_on(int(DEAD_AFTER), r1="silent") is None
    verdict = run.go_on(1, r1="silent")
    assert verdict.rank == 1
    assert verdict.message.startswith(
        "rank 1 (process 1 on node-a) has given no sign of life since"
    )
    assert verdict.message.endswith(", after round 4")


def test_after_a_broken_connection_less_silence_is_enough(run):
    run.go_on(6, r2="silent")
    assert run.lives.verdict() is None
    assert run.lives.verdict(dead_after=5).rank == 2


def test_the_one_that_was_silent_first_is_named(run):
    run.go_on(3, r2="silent")
    assert run.go_on(15, r1="silent", r2="silent").rank == 2


def test_a_rank_that_beats_and_does_not_move_hangs(run):
    assert run.go_on(TIMEOUT, r0="waits", r1="hangs", r2="waits") is None
    verdict = run.go_on(1, r0="waits", r1="hangs", r2="waits")
    assert verdict.rank == 1 and "is alive but hangs since" in verdict.message


def test_ranks_that_wait_for_a_gpu_are_not_taken_for_the_one_that_hangs(run):
    """They do not say that they wait; the one that hangs is behind them."""
    run.go_on(3, r2="hangs")
    assert run.go_on(TIMEOUT + 1, r0="hangs", r1="hangs", r2="hangs").rank == 2


def test_a_rank_may_be_busy_for_long_where_it_says_so(run):
    run.beats[1] = replace(run.beats[1], patience=PATIENCE)
    assert run.go_on(int(PATIENCE) * TIMEOUT, r1="hangs") is None
    assert run.go_on(1, r1="hangs").rank == 1


def test_a_rank_outside_the_run_may_do_anything(run):
    assert run.go_on(1000, r1="idle") is None


def test_all_that_wait_wait_for_nothing(run):
    waits = {"r0": "waits", "r1": "waits", "r2": "waits"}
    assert run.go_on(2 * TIMEOUT, **waits) is None
    verdict = run.go_on(2, **waits)
    assert verdict.rank is None and verdict.message.startswith("all ranks wait for one another")


def test_a_process_that_was_stopped_itself_accuses_nobody(run):
    run.now += 1000
    run.lives.hear(dict(enumerate(run.beats)), run.now)
    assert run.lives.verdict() is None
    assert run.go_on(5) is None
    assert run.go_on(int(DEAD_AFTER) + 1, r1="silent").rank == 1


def test_a_rank_that_never_comes_is_named():
    lives = Lives(2, TIMEOUT, 0.0)
    for now in range(int(ARRIVAL) + 1):
        lives.hear({0: replace(BEAT, number=now, state="waits")}, float(now))
    assert lives.verdict() is None
    lives.hear({0: replace(BEAT, number=-1)}, ARRIVAL + 1)
    assert lives.verdict().message == f"rank 1 has not started within {ARRIVAL:.0f} s"


def test_a_pulse_tells_what_the_main_thread_does():
    pulse = Pulse(rounds=3)
    with pulse.being("works"):
        with pulse.being("waits"), pulse.patient():
            inside = pulse.beat()
        after = pulse.beat()
    assert (inside.state, inside.patience, after.state, after.patience) == (
        "waits",
        PATIENCE,
        "works",
        1,
    )
    assert (after.number, pulse.beat().state) == (2, "idle")
    assert inside.ticks < after.ticks
    assert Beat.read(after.to_bytes()) == after
