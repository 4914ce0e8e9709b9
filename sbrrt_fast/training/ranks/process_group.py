"""The ranks of a run over torch.distributed, and how a process joins them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sbrrt_fast.errors import RankError, SbrrtError
from sbrrt_fast.training.ranks.beats import Pulse
from sbrrt_fast.training.ranks.launch import Launch, share_cores, take_gpu
from sbrrt_fast.training.ranks.monitor import Monitor
from sbrrt_fast.training.ranks.ranks import OneRank, Ranks, Wait
from sbrrt_fast.training.ranks.shared_errors import (
    as_record,
    failure_message,
    first_raised,
    from_record,
    is_shared,
    mark_shared,
    numbered,
)
from sbrrt_fast.training.ranks.stores import open_store, with_prefix

_FOREVER = timedelta(days=7)  # the monitor ends what takes too long, not the collective
_NARROW = (torch.bfloat16, torch.float16)  # are summed in float32
_FAILED = 2  # exit status


class TorchRanks:
    """The processes that torchrun started, as one of them.

    Tensors are summed in one group and everything else goes through another, so that what one rank
    says of an error is never taken for a sum.

    Args:
        launch: who this process is.
        sums: the group of tensors. control: a gloo group.
        monitor: running. pulse: which it reads.
    """

    def __init__(
        self,
        launch: Launch,
        sums: dist.ProcessGroup,
        control: dist.ProcessGroup,
        monitor: Monitor,
        pulse: Pulse,
    ):
        self.rank, self.size, self.is_first = launch.rank, launch.size, launch.rank == 0
        self.monitor = monitor
        self.on_tick: Callable[[], object] | None = None
        self._sums, self._control, self._pulse = sums, control, pulse
        self._lost: SbrrtError | None = None
        self._is_closed = False

    def start_sum(self, x: Tensor) -> Wait:
        if x.dtype in _NARROW:
            return self._start_wide_sum(x)
        with self._connected():
            work = dist.all_reduce(x, group=self._sums, async_op=True)
        return lambda: self._wait(work)

    def _start_wide_sum(self, x: Tensor) -> Wait:
        wide = x.float()
        wait = self.start_sum(wide)

        def finish() -> None:
            wait()
            x.copy_(wide)

        return finish

    def sum(self, x: Tensor) -> Tensor:
        self.start_sum(x)()
        return x

    def start_flag(self, value: bool) -> Callable[[], bool]:
        flag = torch.tensor([int(value)], dtype=torch.int32)
        with self._connected():
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, self._control, async_op=True)

        def read() -> bool:
            self._wait(work)
            return bool(flag.item())

        return read

    def gather(self, value: Any) -> list[Any]:
        return self._exchange({"at": "gather", "value": value})

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not is_shared(error):
                self._share(error, what)
            raise
        self._exchange({"at": f"the end of {what}", "value": None})

    @contextmanager
    def watched(self, advice: str = "start it again") -> Iterator[None]:
        self.monitor.advice = advice
        with self._pulse.being("works"):
            try:
                yield
            except BaseException as error:
                if not is_shared(error):
                    self.fail(error)
                raise

    def patient(self) -> AbstractContextManager[None]:
        return self._pulse.patient()

    def tick(self, done: int | None = None) -> None:
        self._pulse.ticks += 1
        if done is not None:
            self._pulse.rounds = done
        if self.on_tick is not None:
            self.on_tick()

    def fail(self, error: BaseException) -> None:
        """Ends the other ranks for an exception of this one; the first to fail tells of it."""
        is_known = isinstance(error, SbrrtError)
        message = str(error) if is_known else failure_message(error, "a rank")
        is_mine = self.monitor.post_failure(numbered(message, self.rank), _FAILED)
        mark_shared(error, is_told=not is_mine)
        self._lost = error if is_known else RankError(message)

    def close(self) -> None:
        """Leaves the others, once all of them have come here, or at once after an error."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._lost is None and not _is_dying():
                self._exchange({"at": "the end", "value": None})
                self.monitor.stop()
                with contextlib.suppress(RuntimeError):  # others may be gone already
                    dist.barrier(self._control)
        finally:  # a thread that outlives the interpreter would abort the process
            self.monitor.stop()
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group(self._control)
                dist.destroy_process_group(self._sums)

    def _share(self, error: BaseException, what: str) -> None:
        """Raises on all ranks what one of them raises; returns where that is ``error`` itself."""
        own = as_record(error, self.rank, what)
        records = self._records({"raised": own})
        rank = first_raised([record.get("raised") for record in records])
        if rank != self.rank:
            raise from_record(records[rank]["raised"], self.is_first) from error
        if isinstance(error, SbrrtError):  # told by the first rank, with this one's number
            raise from_record(own, self.is_first) from error.__cause__
        mark_shared(error, is_told=False)

    def _exchange(self, record: dict[str, Any]) -> list[Any]:
        """Every rank's ``value``; raises what a rank says that it raised instead."""
        records = self._records(record)
        rank = first_raised([r.get("raised") for r in records])
        if rank is not None:
            raise from_record(records[rank]["raised"], self.is_first)
        if len({r["at"] for r in records}) > 1:
            places = ", ".join(f"rank {i} at {r['at']}" for i, r in enumerate(records))
            raise RuntimeError(f"the ranks are not at the same place: {places}")
        return [r["value"] for r in records]

    def _records(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's record, by rank."""
        data = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
        size = torch.tensor([len(data)])
        sizes = [torch.empty_like(size) for _ in range(self.size)]
        with self._connected(), self._pulse.being("waits"):
            dist.all_gather(sizes, size, self._control)
            longest = max(int(n) for n in sizes)
            padded = torch.nn.functional.pad(data, (0, longest - len(data)))
            texts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(texts, padded, self._control)
        pairs = zip(texts, sizes, strict=True)
        return [json.loads(bytes(text[: int(n)].numpy())) for text, n in pairs]

    def _wait(self, work: dist.Work) -> None:
        with self._connected(), self._pulse.being("waits"):
            work.wait()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turns a broken connection into a line on who is gone."""
        if self._lost is not None:
            raise self._lost
        try:
            yield
        except RuntimeError as error:
            self._lost = _explained(error, self.monitor)
            raise self._lost from error


def _explained(error: RuntimeError, monitor: Monitor) -> SbrrtError:
    """What a broken connection means."""
    verdict, failure = monitor.explain(), monitor.failure
    if failure is not None:
        told = SbrrtError(failure["message"])
        mark_shared(told, is_told=True)
        return told
    text = str(error).partition("\n")[0]
    default = f"a connection to another rank broke ({text}); {monitor.advice}"
    return RankError(verdict.message if verdict else default)


_ranks: TorchRanks | None = None  # of this process, which joins the others once


def connect(device: str, timeout: float) -> Ranks:
    """The ranks of the run that torchrun started, or one rank without torchrun.

    The first call joins the others; later ones return the same object.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; a rank takes the GPU of its number on the machine.
        timeout: seconds after which a rank that does not go on is taken to hang.

    Raises:
        ConfigError: torchrun's environment is set in part.
        BackendError: there are fewer GPUs than ranks on this machine.
    """
    global _ranks
    launch = Launch.read()
    if launch is None or launch.size == 1:
        return OneRank()
    if _ranks is None:
        _ranks = _join(launch, device, timeout)
        atexit.register(disconnect)
    _ranks.monitor.timeout = timeout
    return _ranks


def disconnect() -> None:
    """Leaves the other ranks, if this process has joined any; see ``TorchRanks.close``."""
    global _ranks
    if _ranks is not None:
        ranks, _ranks = _ranks, None
        ranks.close()


def tell(error: SbrrtError) -> bool:
    """Whether this process is the one to print an error that ends it; tells the others."""
    launch = Launch.read()
    if launch is None or launch.size == 1 or is_shared(error):
        return not error.is_told
    if _ranks is not None:
        _ranks.fail(error)
        return not error.is_told
    if not launch.agent_has_store:
        return True
    store = with_prefix(open_store(launch), launch)
    held = store.compare_set("first error", "", str(launch.rank))
    return held == str(launch.rank).encode()


def _join(launch: Launch, device: str, timeout: float) -> TorchRanks:
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        take_gpu(launch)
    else:
        share_cores(launch)
    store = open_store(launch)
    pulse = Pulse(state="works")
    client = with_prefix(open_store(launch, is_client=True), launch)
    monitor = Monitor(client, launch.rank, launch.size, timeout, pulse)
    monitor.start()
    try:
        with pulse.patient(), pulse.being("waits"):
            groups = _groups(launch, store, "cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except RuntimeError as error:
        raise _explained(error, monitor) from error
    pulse.state = "idle"
    _listen_for_the_end(monitor)
    return TorchRanks(launch, *groups, monitor, pulse)


def _groups(
    launch: Launch, store: dist.Store, backend: str
) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The groups of sums and of everything else."""
    if dist.is_initialized():  # by the program that calls this one
        sums = dist.new_group(backend=backend, timeout=_FOREVER)
    else:
        dist.init_process_group(
            backend,
            store=with_prefix(store, launch),
            rank=launch.rank,
            world_size=launch.size,
            timeout=_FOREVER,
        )
        sums = dist.group.WORLD
    return sums, dist.new_group(backend="gloo", timeout=_FOREVER)


def _listen_for_the_end(monitor: Monitor) -> None:
    """torchrun ends the other ranks by SIGTERM where one dies; they say first which one it was."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        verdict = monitor.explain(seconds=7)
        if verdict is None:
            os.kill(os.getpid(), number)
            return
        print(f"sbrrt-fast: {verdict.message}", file=sys.stderr, flush=True)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)


def _is_dying() -> bool:
    """Whether the interpreter ends for an exception that nobody caught."""
    return hasattr(sys, "last_value")
