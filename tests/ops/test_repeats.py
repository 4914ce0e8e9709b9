"""The same bits again: repeated, for any number of threads, in any order of a GPU's threads."""

from __future__ import annotations

from tests.cuda_on_cpu.counts import NUM_SEEDS
from tests.cuda_on_cpu.kernels import KERNELS
from tests.ops.backends import (
    REPEATS,
    case_of,
    params,
    parts_of,
    repeated,
    run,
)
from tests.ops.on_device import equal
from tests.ops.op_checks import num_threads


def everything(op, backend, found):
    """Value, gradients and tangent."""
    return [x for part in parts_of(op, backend) for x in getattr(found, part)]


def computed(op, backend, sample):
    return everything(op, backend, run(op, backend, case_of(op, sample)))


@params(("triton", "cuda"), names=repeated)
def test_every_time(op, backend, sample):
    first = computed(op, backend, sample)
    for _ in range(REPEATS[backend]):
        assert equal(first, computed(op, backend, sample))


@params(("cpu",), names=repeated)
def test_any_number_of_threads(op, backend, sample):
    results = []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            results.append(computed(op, backend, sample))
    assert all(equal(results[0], other) for other in results[1:])


@params(("cuda_on_cpu",), names=lambda op, backend: op.orders)
def test_any_order_of_threads(op, backend, sample):
    """Natural, then drawn; between them the samples run every kernel."""
    case, expected = case_of(op, sample), None
    for seed in range(NUM_SEEDS + 1):
        found = everything(op, backend, KERNELS[op.name](case, seed=seed))
        assert expected is None or equal(found, expected), seed
        expected = found
