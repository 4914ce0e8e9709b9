"""What a host function writes in place, checked against what it reads meanwhile; see ``checks``.

The counterpart of csrc/common/write_set.h. The reference, which has no kernel, asks here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

Arguments = Mapping[str, Tensor | Sequence[Tensor]]  # tensors and lists of them, by name


class Span(NamedTuple):
    """Addresses from an argument's first element to behind its last, gaps included."""

    begin: int
    end: int
    name: str
    is_written: bool


def check_write_set(op: str, written: Arguments, read: Arguments) -> None:
    """Results share memory with nothing, and autograd can take the change.

    Raises:
        ValueError: both arguments' names and what to do.
    """
    check_autograd(op, written, read)
    check_apart(op, [*_spans(written, True), *_spans(read, False)])


def check_autograd(op: str, written: Arguments, read: Arguments) -> None:
    """Nothing written is a tensor of inference mode outside it; no graph would have to follow.

    Raises:
        ValueError: otherwise.
    """
    inference, records = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    if not records and (inference or not any(map(Tensor.is_inference, _tensors(written)))):
        return  # before hundreds of names are made
    for name, x in _items(written):
        if x.is_inference() and not inference:
            raise ValueError(
                f"{op}: {name} was made under torch.inference_mode() and can be written there "
                "alone; pass a clone of it"
            )
        if records and x.requires_grad:
            raise ValueError(
                f"{op}: {name} is written but requires grad, which autograd cannot follow; call "
                "this under torch.no_grad() or detach it"
            )
    for name, x in _items(read) if records else ():
        if x.requires_grad:
            raise ValueError(
                f"{op}: {name} requires grad, but what is written in place has no gradient; call "
                "this under torch.no_grad() or detach it"
            )


def check_apart(op: str, spans: Iterable[Span]) -> None:
    """No written span meets another one.

    Raises:
        ValueError: two do.
    """
    furthest = furthest_written = None  # of those that begin before
    for span in sorted(span for span in spans if span.begin < span.end):
        other = furthest if span.is_written else furthest_written
        if other is not None and span.begin < other.end:
            _complain(op, span, other)
        if furthest is None or span.end > furthest.end:
            furthest = span
        if span.is_written and (furthest_written is None or span.end > furthest_written.end):
            furthest_written = span


def span_of(name: str, x: Tensor, is_written: bool) -> Span:
    """Empty for a tensor without elements, or without memory (``meta``)."""
    begin = x.data_ptr() if x.numel() else 0
    if not begin:
        return Span(0, 0, name, is_written)
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return Span(begin, begin + (last + 1) * x.itemsize, name, is_written)


def _tensors(arguments: Arguments) -> Iterator[Tensor]:
    return chain.from_iterable([x] if isinstance(x, Tensor) else x for x in arguments.values())


def _items(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        else:
            yield from ((f"{name}[{i}]", x) for i, x in enumerate(value))


def _spans(arguments: Arguments, is_written: bool) -> Iterator[Span]:
    return (span_of(name, x, is_written) for name, x in _items(arguments))


def _complain(op: str, a: Span, b: Span) -> NoReturn:
    if a.is_written and b.is_written:
        one, other = sorted((a.name, b.name))
        raise ValueError(
            f"{op}: {one} and {other} share memory, and both are written; give each of them "
            "memory of its own"
        )
    result, other = (a, b) if a.is_written else (b, a)
    raise ValueError(
        f"{op}: {result.name} shares memory with {other.name}, which is read meanwhile; give "
        f"{result.name} memory of its own"
    )
