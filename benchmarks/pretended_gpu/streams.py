"""The streams of ``torch.cuda`` without a GPU: who waits for whom is told to what records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from unittest.mock import patch

import torch


class Waits(Protocol):
    """What hears of the waiting in a capture."""

    def wait(self, stream: Stream, other: Stream) -> None:
        """``stream`` goes on when ``other`` has done all that it was given so far."""


class Stream:
    """Stands for torch.cuda.Stream.

    Args:
        device: is not looked at.
    """

    def __init__(self, device: torch.device | None = None):
        pass

    def wait_stream(self, other: Stream) -> None:
        if STREAMS.recorder:
            STREAMS.recorder.wait(self, other)


class Streams:
    """Stands for ``torch.cuda``, as far as ``sbrrt_fast.training.step.streams`` uses it.

    Attributes:
        current: the stream that work goes to. recorder: of the capture that is under way, or None.
    """

    Stream = Stream

    def __init__(self):
        self.current, self.recorder = Stream(), None

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        with patch.object(self, "current", stream):
            yield

    def is_current_stream_capturing(self) -> bool:
        return self.recorder is not None

    @contextmanager
    def capturing(self, recorder: Waits) -> Iterator[None]:
        """Within it work is captured."""
        with patch.object(self, "recorder", recorder):
            yield


STREAMS = Streams()
NAMES = ("Stream", "current_stream", "stream", "is_current_stream_capturing")
