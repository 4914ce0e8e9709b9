"""What a host function writes, checked against what it reads meanwhile; see ``checks``.

The counterpart of csrc/common/write_set.h. The reference, which has no kernel, asks here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import NoReturn

import torch
from torch import Tensor

from .memory import extent_of, have_common_memory, is_same_memory

Arguments = Mapping[str, Tensor | Sequence[Tensor] | None]  # tensors and lists of them, by name


Span = tuple[int, int, bool, str | int]  # begin, end, whether it is written; its name or number


def check_write_set(
    op: str, written: Arguments, read: Arguments, in_place: Sequence[tuple[str, str]] = ()
) -> None:
    """Results share memory with nothing, and autograd can take the change.

    Args:
        in_place: (result, input) where the result may be exactly that input.

    Raises:
        ValueError: both arguments' names and what to do.
    """
    check_autograd(op, written, read)
    results = list(_tensors(written))
    tensors, num_results = [*results, *_tensors(read)], len(results)
    spans = [(*extent_of(x), i < num_results, i) for i, x in enumerate(tensors)]
    if not _meeting(spans):
        return  # as nearly always, and before names are made
    names = [name for name, _ in chain(_items(written), _items(read))]
    for (begin, end, is_written, i), (other_begin, other_end, is_other, j) in combinations(
        spans, 2
    ):
        if not is_written or begin >= other_end or other_begin >= end:
            continue
        may_be_same = (names[i], names[j]) in in_place
        if may_be_same and is_same_memory(tensors[i], tensors[j]):
            continue
        if have_common_memory(tensors[i], tensors[j]):
            _complain(op, names[i], names[j], is_other, may_be_same)


def count_change(written: Arguments) -> None:
    """Tells autograd that kernels wrote them, so that a graph that saved one of them raises."""
    torch.autograd.graph.increment_version(list(_tensors(written)))


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
    """No written span meets another one; arguments by name.

    Raises:
        ValueError: two do.
    """
    if pair := _meeting(spans):
        (_, _, is_written, name), (_, _, is_other, other) = sorted(pair, key=lambda s: not s[2])
        _complain(op, name, other, is_written and is_other)


def _meeting(spans: Iterable[Span]) -> tuple[Span, Span] | None:
    """Two spans that meet, of which one at least is written."""
    furthest = furthest_written = (0, 0)  # of those that begin before
    for span in sorted(spans):
        begin, end, is_written, _ = span
        if begin == end:
            continue
        other = furthest if is_written else furthest_written
        if begin < other[1]:
            return span, other
        if end > furthest[1]:
            furthest = span
        if is_written and end > furthest_written[1]:
            furthest_written = span
    return None


def _tensors(arguments: Arguments) -> Iterator[Tensor]:
    present = (x for x in arguments.values() if x is not None)
    return chain.from_iterable([x] if isinstance(x, Tensor) else x for x in present)


def _items(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif value is not None:
            yield from ((f"{name}[{i}]", x) for i, x in enumerate(value))


def _complain(
    op: str, result: str, other: str, is_written: bool, may_be_same: bool = False
) -> NoReturn:
    """is_written: the other one is a result, too. may_be_same: it may be exactly the result."""
    if is_written:
        one, other = sorted((result, other))
        raise ValueError(
            f"{op}: {one} and {other} share memory, and both are written; give each of them "
            "memory of its own"
        )
    if may_be_same:
        raise ValueError(
            f"{op}: {result} overlaps {other}, which is read meanwhile; give {result} memory of "
            f"its own, or exactly that of {other} with the same dtype and strides"
        )
    raise ValueError(
        f"{op}: {result} shares memory with {other}, which is read meanwhile; give {result} "
        "memory of its own"
    )
