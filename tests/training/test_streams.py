"""Side streams of captured work: what they wait for, what is kept, and the checker of both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks.pretended_gpu import STREAMS
from sbrrt_fast.training.step.streams import Streams
from tests.training.ordered_graph import OrderedGraph, OrderMatters, orders
from tests.training.recorded_graph import Call, NotCapturable, RecordedGraph

CPU = torch.device("cpu")


def side_streams() -> Streams:
    return Streams(CPU, STREAMS)


def replayed(work: Callable[[Streams], Tensor], graph=None) -> Tensor:
    """The result of captured work after two replays, in every order."""
    graph, streams = graph or OrderedGraph(), side_streams()
    result = graph.capture(lambda: work(streams))
    for _ in range(2):
        graph.replay()
    return result


class Toy:
    """A teacher beside a student, on memory that stays."""

    def __init__(self):
        self.x, self.shared = torch.arange(1.0, 5.0), torch.zeros(4)

    def right(self, streams: Streams) -> Tensor:
        x = self.x + 1
        with streams.fork("teacher"):
            targets = x.exp().mul_(2)
        clean = x.square()
        streams.join("teacher")
        return clean + targets

    def used_before_join(self, streams: Streams) -> Tensor:
        with streams.fork("teacher"):
            targets = self.x.exp()
        result = self.x + targets
        streams.join("teacher")
        return result

    def never_joined(self, streams: Streams) -> Tensor:
        with streams.fork("teacher"):
            self.shared.copy_(self.x)
        return self.x + 1

    def read_too_early(self, streams: Streams) -> Tensor:
        """The side stream reads what the current one writes after the fork."""
        with streams.fork("teacher"):
            targets = self.shared * 2
        self.shared.copy_(self.x)
        streams.join("teacher")
        return self.shared + targets

    def written_by_both(self, streams: Streams) -> Tensor:
        with streams.fork("a"):
            self.shared.fill_(1.0)
        with streams.fork("b"):
            self.shared.fill_(2.0)
        streams.join("a")
        streams.join("b")
        return self.shared + 0


MISTAKES = (Toy.used_before_join, Toy.read_too_early, Toy.written_by_both)


def test_a_fork_that_is_joined_gives_the_same_in_every_order():
    toy = Toy()
    expected = toy.right(Streams(CPU))
    assert torch.equal(replayed(toy.right), expected)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_two_streams_do_without_waiting_is_found(mistake):
    with pytest.raises(OrderMatters):
        replayed(lambda streams: mistake(Toy(), streams))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_the_order_that_finds_it(mistake):
    """The order of the host alone does not show these mistakes."""
    toy = Toy()
    found = replayed(lambda streams: mistake(toy, streams), RecordedGraph())
    assert torch.equal(found, mistake(toy, Streams(CPU)))


def test_work_that_is_never_joined_is_refused():
    with pytest.raises(NotCapturable, match="not joined"):
        replayed(Toy().never_joined)


def test_a_stream_that_no_fork_made_wait_is_refused(monkeypatch):
    monkeypatch.setattr(STREAMS.Stream, "wait_stream", lambda *streams: None)
    with pytest.raises(NotCapturable, match="no captured work"):
        replayed(Toy().right)


def test_waiting_for_work_outside_the_capture_is_refused():
    def work(streams: Streams) -> Tensor:
        STREAMS.current.wait_stream(STREAMS.Stream())
        return torch.ones(2)

    with pytest.raises(NotCapturable, match="not captured"):
        replayed(work)


def test_a_later_fork_that_does_not_wait_is_found(monkeypatch):
    """The first fork has brought the side stream into the capture."""
    x, wait = torch.arange(4.0), STREAMS.Stream.wait_stream

    def work(streams: Streams) -> Tensor:
        with streams.fork("weights"):
            first = x.sum()
        y = x * 2
        with streams.fork("weights"):
            second = y.sum()
        streams.join("weights")
        return first + second

    assert replayed(work).item() == 18.0
    seen: list[object] = []

    def forgetful(stream, other):
        seen.append(stream)
        if len(seen) != 2:
            wait(stream, other)

    monkeypatch.setattr(STREAMS.Stream, "wait_stream", forgetful)
    with pytest.raises(OrderMatters):
        replayed(work)


@pytest.mark.parametrize("num_buffers", [1, 3])
def test_weights_products_need_a_cotangent_buffer_per_layer(num_buffers):
    """The backward of three layers x W_i; the products for the weights are on another stream."""
    torch.manual_seed(0)
    x, weights = torch.randn(4, 3), [torch.randn(3, 3) for _ in range(3)]
    buffers = [torch.zeros(4, 3) for _ in range(num_buffers)]

    def work(streams: Streams) -> Tensor:
        d, grads = x, []
        for i, w in enumerate(weights):
            with streams.fork("weights"):
                grads.append(d.t() @ x)
            d = torch.mm(d, w, out=buffers[i % num_buffers])
        streams.join("weights")
        return torch.stack(grads)

    if num_buffers == 3:
        assert torch.equal(replayed(work), work(Streams(CPU)))
    else:
        with pytest.raises(OrderMatters):
            replayed(work)


def test_orders_go_to_the_extremes():
    """Each of two ops that nothing orders comes first in one of them."""
    x, graph = torch.ones(2), OrderedGraph()

    def work(streams: Streams) -> Tensor:
        for name in ("a", "b"):
            with streams.fork(name):
                torch.mul(x, 2)
        torch.add(x, 1)
        for name in ("a", "b"):
            streams.join(name)
        return x + 0

    graph.capture(lambda: work(side_streams()))
    found = set()
    for order in orders(graph.recorder.work):
        assert len(order) == len(graph.recorder.work)
        calls = [item for item in order if isinstance(item, Call)]
        assert calls[-1].stream is graph.recorder.origin
        place = {id(item): i for i, item in enumerate(calls)}
        found |= {(a.stream, b.stream) for a in calls[:3] for b in calls[:3]
                  if place[id(a)] < place[id(b)]}  # fmt: skip
    assert len(found) == 3 * 2
    assert list(graph.num_calls.values()) == [2, 1, 1]


class Deaf:
    """Holds nothing that is captured, unlike a recording."""

    def wait(self, stream, other) -> None:
        pass


def test_memory_that_a_fork_reads_is_kept_until_the_join():
    """Else the current stream's next work could take it while the side stream still reads it."""
    streams, x = side_streams(), torch.ones(4)
    memory = StorageWeakRef(x.untyped_storage())
    with STREAMS.capturing(Deaf()):
        with streams.fork("side"):
            x.view(2, 2).sum()
        del x
        assert not memory.expired()
        streams.join("side")
        assert memory.expired()


def test_work_runs_in_line_where_nothing_is_captured():
    for streams in (side_streams(), Streams(CPU)):
        stream = STREAMS.current
        with streams.fork("side"):
            assert STREAMS.current is stream
        streams.join("side")
        streams.join("another")


def test_an_error_leaves_the_current_stream_and_a_later_capture_works():
    streams, stream = side_streams(), STREAMS.current

    def broken() -> Tensor:
        with streams.fork("teacher"):
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        OrderedGraph().capture(broken)
    assert STREAMS.current is stream
    streams.join("teacher")  # of a step that is launched
    graph, toy = OrderedGraph(), Toy()
    result = graph.capture(lambda: toy.right(streams))
    graph.replay()
    assert torch.equal(result, toy.right(Streams(CPU)))


def test_forks_are_not_nested():
    streams = side_streams()
    for wrong in (lambda: streams.join("a"), lambda: streams.fork("b").__enter__()):
        with STREAMS.capturing(Deaf()), streams.fork("a"), pytest.raises(AssertionError):
            wrong()
