"""Makes pytest-benchmark entries of interleaved comparisons.

pytest-benchmark times one test after the other. Here the first test of a case times all variants
of the case in turn (``runner.run_case``); each test then plays its own samples back to
pytest-benchmark, through a clock that shows them.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
from pytest_benchmark.utils import load_timer

from benchmarks.harness.benchmark import FLOOR
from benchmarks.harness.measure import Samples
from benchmarks.harness.results import Stage
from benchmarks.harness.runner import Outcome, record_case, use_own_stream
from benchmarks.harness.settings import settings
from benchmarks.harness.shapes import Case


class Playback:
    """A clock that advances by recorded samples."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark, samples: Samples) -> None:
        """Hands the samples to pytest-benchmark's fixture."""
        recorded = iter(samples.seconds)

        def advance() -> None:
            self.now += next(recorded)

        benchmark.pedantic(advance, rounds=len(samples.seconds), iterations=1)


PLAYBACK = Playback()


class Comparisons:
    """The cases of a session: the one at hand, and the stage that all of them make."""

    def __init__(self, clock):
        self.stage, self.clock = Stage(), clock
        self._key: tuple | None = None
        self._outcome: Outcome | Exception | None = None

    def outcome(self, kind: type, case: Case) -> Outcome:
        """Of all variants of a case, measured once; fails each of them where one is wrong."""
        if self._key != (kind, case):
            self._key, self._outcome = (kind, case), None
            self._outcome = self._measure(kind, case)
        if isinstance(self._outcome, Exception):
            told = f"{type(self._outcome).__name__}: {self._outcome}"
            pytest.fail(f"stopped: {told}", pytrace=False)
        return self._outcome

    def _measure(self, kind: type, case: Case) -> Outcome | Exception:
        try:
            return record_case(self.stage, kind(settings()), case, self.clock)
        except Exception as error:  # every test of the case fails with it
            return error


SESSION = pytest.StashKey[Comparisons]()


def pytest_configure(config: pytest.Config) -> None:
    use_own_stream(settings().device)
    timer = config.getoption("benchmark_timer")
    if isinstance(timer, str):  # pytest does not convert the default
        timer = load_timer(timer)
    config.stash[SESSION] = Comparisons(timer.target)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if marker := metafunc.definition.get_closest_marker("compares"):
        benchmark = marker.kwargs["kind"](settings())
        metafunc.parametrize("case", list(benchmark.cases()), ids=str)
        metafunc.parametrize("variant", [*benchmark.variants, FLOOR])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("compares"):
            item.add_marker(pytest.mark.benchmark(timer=PLAYBACK))


@pytest.fixture
def measured(benchmark, request: pytest.FixtureRequest):
    """(case, variant) -> None: takes part in the case's comparison."""

    def take_part(case: Case, variant: str) -> None:
        kind = request.node.get_closest_marker("compares").kwargs["kind"]
        outcome = request.config.stash[SESSION].outcome(kind, case)
        if variant in outcome.failures:
            pytest.fail(f"stopped: {outcome.failures[variant]}", pytrace=False)
        if variant not in outcome.samples:
            pytest.skip(outcome.absent.get(variant, "nothing to copy"))
        row = outcome.rows[variant]
        benchmark.group = f"{row.benchmark} {case}"
        benchmark.extra_info.update(asdict(row))
        PLAYBACK.play(benchmark, outcome.samples[variant])

    return take_part
