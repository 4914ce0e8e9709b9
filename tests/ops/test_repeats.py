"""The same bits again: repeated, for any number of threads, in any order of a GPU's threads."""

from __future__ import annotations


from tests.cuda_on_cpu.counts import NUM_SEEDS
from tests.cuda_on_cpu.kernels import KERNELS
from tests.ops.backends import (
    REPEATS,
    case_of,
    computed,
    has_tangent,
    params,
    repeated,
)
from tests.ops.on_device import equal
from tests.ops.op_checks import num_threads


def everything(op, backend, sample):
    """Value, gradients and tangent, computed anew."""
    found = computed.__wrapped__(op, backend, sample)
    return all_of(op, backend, found)


def all_of(op, backend, found):
    results = [*found.value, *(found.gradients if op.is_differentiated else [])]
    return [*results, *found.tangent] if has_tangent(op, backend) else results


@params(("triton", "cuda"), names=repeated)
def test_every_time(op, backend, sample):
    first = everything(op, backend, sample)
    for _ in range(REPEATS[backend]):
        assert equal(first, everything(op, backend, sample))


@params(("cpu",), names=repeated)
def test_any_number_of_threads(op, backend, sample):
    results = []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            results.append(everything(op, backend, sample))
    assert all(equal(results[0], other) for other in results[1:])


@params(("cuda_on_cpu",), names=lambda op, backend: op.orders)
def test_any_order_of_threads(op, backend, sample):
    """Natural, then drawn; between them the samples run every kernel."""
    case, expected = case_of(op, sample), None
    for seed in range(NUM_SEEDS + 1):
        found = all_of(op, backend, KERNELS[op.name](case, seed=seed))
        assert expected is None or equal(found, expected), seed
        expected = found
