"""The writing ops of the extension on a GPU: CUDA graphs, and results in memory of the caller's.

The same tests run on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.ops.cases import OPS
from tests.ops.on_device import devices, equal, moved, replayed
from tests.ops.test_opcheck import native_calls

CALLS = {
    overload._opname: (overload, arguments)
    for op in OPS.values()
    for overload, arguments in reversed(native_calls(op, "cpu", op.samples[op.small]))
}
each_call = pytest.mark.parametrize("name", CALLS)


def call(name: str, arguments) -> list[Tensor]:
    """Everything that an op writes."""
    overload = CALLS[name][0]
    overload(*arguments)
    written = [
        arguments[i]
        for i, argument in enumerate(overload._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return [x for x in tree_leaves(written) if isinstance(x, Tensor)]


def changed(name: str, arguments):
    """Other seeds, steps and values, in the same places."""
    names = [argument.name for argument in CALLS[name][0]._schema.arguments]
    results = moved(arguments, "cpu")
    for key, value in zip(names, results, strict=True):
        for x in tree_leaves(value):
            if isinstance(x, Tensor) and x.is_floating_point():
                x.mul_(0.75).add_(0.05)
            elif isinstance(x, Tensor) and key in ("rng", "step"):
                x.add_(1 if key == "step" else -1)  # a step counts from 1; rng has the largest
    return results


@devices
@each_call
def test_a_graph_reads_what_has_changed(name, device):
    """Captured once; then another seed, step and other values lie in the same memory."""
    given = CALLS[name][1]
    arguments, others = moved(given, device), moved(changed(name, given), device)
    expected = [x.clone() for x in call(name, moved(others, device))]

    def change():
        for x, y in zip(tree_leaves(arguments), tree_leaves(others), strict=True):
            if isinstance(x, Tensor):
                x.copy_(y)

    results = replayed(lambda: call(name, arguments), change, device)
    assert equal(results, expected)
    assert not equal(call(name, moved(given, device)), expected)


PARTLY_WRITTEN = ("heads_weight_gradients_into",)  # elements of no head stay
INTO = [name for name in CALLS if name.endswith("_into") and name not in PARTLY_WRITTEN]


@devices
@pytest.mark.parametrize("name", PARTLY_WRITTEN)
def test_elements_that_are_no_result_s_stay_as_they_are(name, device):
    given, found = CALLS[name][1], []
    (expected,) = call(name, moved(given, device))
    for value in (2.0**60, -(2.0**50)):
        *arguments, result = moved(given, device)
        found.append((value, *call(name, (*arguments, result.fill_(value)))))
    (_, one), (_, other) = found
    is_result = one == other
    assert 0 < is_result.sum() < is_result.numel()
    assert torch.equal(one[is_result], expected[is_result])
    assert all((x[~is_result] == value).all() for value, x in found)


@devices
@pytest.mark.parametrize("name", INTO)
def test_results_land_in_memory_of_the_caller_s(name, device):
    """What was there does not count, and rows may have gaps, which stay as they are."""
    overload, given = CALLS[name]
    arguments, wide = list(moved(given, device)), []
    expected = call(name, moved(given, device))
    for i, argument in enumerate(overload._schema.arguments):
        x = arguments[i]
        if x is None or not (argument.alias_info and argument.alias_info.is_write):
            continue
        is_rows = name.startswith(OF_ROWS) and x.dim() == 2 and argument.name not in WHOLE
        gap = 8 if is_rows else 0
        whole = x.new_full((*x.shape[:-1], x.shape[-1] + gap) if x.dim() else (), NOWHERE[x.dtype])
        arguments[i] = whole[..., : x.shape[-1]] if x.dim() else whole
        wide += [whole[..., x.shape[-1] :]] if gap else []
    assert equal(call(name, arguments), expected)
    assert all((rest == NOWHERE[rest.dtype]).all() for rest in wide)


OF_ROWS = ("attention", "bias_gelu", "dropout_add_layernorm", "embed")  # others are contiguous
WHOLE = ("logsumexp", "dword", "dposition", "dtype")
NOWHERE = dict.fromkeys((torch.float32, torch.bfloat16), 2.0**60) | {torch.int32: 12345678}
