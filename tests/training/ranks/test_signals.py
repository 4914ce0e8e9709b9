"""Signals of a process that is one of several ranks, and the ticks of its work."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from sbrrt_fast.training import stopping
from sbrrt_fast.training.cost.profile import NoClock, StageClock
from sbrrt_fast.training.stopping import Stopped, StopSignals


def test_an_evaluation_is_left_between_two_batches():
    with StopSignals(is_polled=True) as stop:
        with stop.stoppable():
            stop.poll()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            with pytest.raises(Stopped, match="SIGTERM") as stopped:
                stop.poll()
        stop.poll()  # outside of an evaluation a round is ended first
    assert stopped.value.status == 143


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    """torchrun passes on what a scheduler sends to all processes anyway."""
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopSignals(is_polled=True) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM and not heard
            monkeypatch.setattr(stopping, "_SAME_SIGNAL", -1.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize("make", [NoClock, lambda tick: StageClock(torch.device("cpu"), tick)])
def test_every_stage_of_a_round_is_a_tick(make):
    ticks = []
    clock = make(lambda: ticks.append(1))
    for stage in ("data", "clean"):
        with clock(stage):
            pass
    assert len(ticks) == 2
