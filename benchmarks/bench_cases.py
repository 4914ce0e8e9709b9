"""Every case of the benchmarks under pytest-benchmark: an entry is one variant in one case.

    python -m pytest benchmarks --benchmark-only -k 'gelu and forward'

A variant is checked and warmed up first; pytest-benchmark then calibrates and times it with its own
clock. A case is a group, so that a table compares its variants. A call on a GPU is timed with its
launch and the wait for its end.
"""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.cases.registry import BENCHMARKS
from benchmarks.harness.benchmark import Benchmark, absence
from benchmarks.harness.measure import Stopwatch
from benchmarks.harness.runner import use_own_stream
from benchmarks.harness.settings import settings
from benchmarks.harness.shapes import Case


@cache
def comparisons() -> list[Benchmark]:
    """One of each, which keeps what its variants share."""
    return [kind(settings()) for kinds in BENCHMARKS.values() for kind in kinds]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        entries = [
            pytest.param(comparison, case, variant, id=f"{comparison.name} {case} {variant}")
            for comparison in comparisons()
            for case in comparison.cases()
            for variant in comparison.all_variants(case)
        ]
        metafunc.parametrize(("comparison", "case", "variant"), entries)


@pytest.fixture(scope="session", autouse=True)
def own_stream():
    use_own_stream(settings().device)


def watch_or_skip(comparison: Benchmark, case: Case, variant: str) -> Stopwatch:
    """Checked and warmed up; skips what cannot be compared here, with the reason."""
    try:
        return comparison.watch(case, variant)
    except Exception as error:
        if (reason := absence(variant, error)) is None:
            raise
    pytest.skip(reason)


def test_variant(benchmark, comparison, case, variant):
    watch = watch_or_skip(comparison, case, variant)
    benchmark.group = f"{comparison.name} {case}"
    benchmark.extra_info.update(variant=variant, **comparison.counts(case))
    benchmark(watch.call)
    if reason := comparison.refusal(variant):
        pytest.fail(f"its times do not count: {reason}")
