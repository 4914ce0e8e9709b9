"""Side streams: work of a captured step that may run beside the rest of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Streams:
    """Side streams by name, to which captured work is forked and from which it is joined.

        with streams.fork("teacher"):
            targets = teach()  # after all that the current stream was given before
        ...                    # may run at the same time: must not touch what ``teach`` writes
        streams.join("teacher")
        use(targets)

    A stream may be forked to several times before it is joined; its work stays in order. On a CPU,
    and where no graph is captured, work runs in line and ``join`` does nothing: a step that is
    launched op by op waits for the host, not for the device.

    In a capture, fork and join are events between the capturing stream and the side stream, which
    become edges of the graph. The side stream joins the capture with the first one; every fork must
    be joined before the capture ends.

    Memory: a block of the allocator's (the capture's private pool as any other) goes back to the
    stream that it was allocated on, whose later work takes it without waiting for another stream.

    - What was made outside a fork and is used within it is therefore kept until the join, even
      where its last reference goes before.
    - What was made within a fork may be used outside from the join on and may go at any time: only
      a later fork to the same stream can take its memory, and that waits for the current stream,
      which has used it. This is why forks are not nested and joins are outside of them.

    Args:
        device: where the work runs.
        cuda: has ``Stream``, ``stream``, ``current_stream`` and ``is_current_stream_capturing``;
            None for ``torch.cuda`` on a CUDA device, and for no streams on others.
    """

    def __init__(self, device: torch.device, cuda=None):
        self.device = device
        self._cuda = torch.cuda if cuda is None and device.type == "cuda" else cuda
        self._sides: dict[str, torch.cuda.Stream] = {}
        self._kept: dict[str, list[Tensor]] = {}  # by stream that was forked to and not joined
        self._is_within = False

    @contextmanager
    def fork(self, name: str) -> Iterator[None]:
        """Within it work goes to the side stream of this name.

        Results may be used after ``join`` alone, and what it reads must not be overwritten before.
        """
        assert not self._is_within, "a fork within a fork"
        if not self._is_capturing():
            yield
            return
        if name not in self._sides:
            self._sides[name] = self._cuda.Stream(self.device)
        side, kept = self._sides[name], self._kept.setdefault(name, [])
        side.wait_stream(self._cuda.current_stream(self.device))
        self._is_within = True
        try:
            with self._cuda.stream(side), _Keep(kept):
                yield
        finally:
            self._is_within = False

    def join(self, name: str) -> None:
        """What the current stream is given from now on comes after the side stream's work.

        Nothing happens where that was not forked to since it was last joined.
        """
        assert not self._is_within, "a join within a fork"
        was_forked = self._kept.pop(name, None) is not None
        if was_forked and self._is_capturing():  # else a capture was broken off in between
            self._cuda.current_stream(self.device).wait_stream(self._sides[name])

    def _is_capturing(self) -> bool:
        return self._cuda is not None and self._cuda.is_current_stream_capturing()


class _Keep(TorchDispatchMode):
    """Holds the arguments of every op within it.

    Args:
        kept: a list to which they are added.
    """

    def __init__(self, kept: list[Tensor]):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.kept += [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        return func(*args, **kwargs)
