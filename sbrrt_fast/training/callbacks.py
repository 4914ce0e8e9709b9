"""Hooks into a run, for programs and services that follow it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.errors import ConfigError, SbrrtError
from sbrrt_fast.messages import shown
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks


@dataclass(frozen=True)
class RunInfo:
    """A run as it starts.

    Attributes:
        id: 16 hexadecimal digits, the same where the run is resumed.
        config: its settings.
        num_rounds: rounds of the whole run.
        first_round: rounds that are done already, above 0 where the run is resumed.
    """

    id: str
    config: RunConfig
    num_rounds: int
    first_round: int


class Callback:
    """Follows a run; a subclass overrides the hooks it needs.

    Hooks are called between two rounds, in the process and thread that train, with objects that are
    theirs to keep. An exception in a hook ends the run; it can be resumed from its last state.
    """

    def on_start(self, run: RunInfo) -> None:
        """Training starts, or goes on."""

    def on_log(self, round: int, values: Mapping[str, float]) -> None:
        """A line of ``metrics.jsonl`` was written, every ``log.every`` rounds.

        Args:
            round: rounds done. values: means since the last line, such as ``sst/loss``; NaN or
                infinite where they are not finite.
        """

    def on_evaluate(self, round: int, scores: Mapping[str, Any]) -> None:
        """The dev splits were scored.

        Args:
            round: rounds done. scores: ``{"sst": {"accuracy": 0.5}, ..., "overall": 0.5}``, with
                None for a score that is undefined.
        """

    def on_end(self, metrics: Mapping[str, Any]) -> None:
        """The run is finished.

        Args:
            metrics: the contents of ``metrics.json``.
        """

    def on_stop(self, error: BaseException) -> None:
        """The run ended before its end, or could not start; exceptions in here are passed over.

        Args:
            error: ``Interrupted`` after Ctrl-C or SIGTERM, else what went wrong.
        """


class CallbackList(Callback):
    """Calls several callbacks in their order.

    Args:
        callbacks: the user's own, whose exceptions are raised as they are.
        reporters: those of ``report_to`` by their name there; their exceptions become one line.

    Raises:
        ConfigError: one of them is no ``Callback``.
    """

    def __init__(self, callbacks: Sequence[Callback], reporters: Mapping[str, Callback]):
        self._named = [*(("", c) for c in callbacks), *reporters.items()]
        for _, callback in self._named:
            if not isinstance(callback, Callback):
                raise ConfigError(
                    f"callbacks: {shown(repr(callback))} is no callback; give an instance of a "
                    "subclass of sbrrt_fast.Callback"
                )

    @contextlib.contextmanager
    def following(self, run: RunInfo, ranks: Ranks = ONE_RANK) -> Iterator[None]:
        """Inside the block the run trains: ``on_start`` before it, ``on_stop`` where it raises.

        Args:
            ranks: that train the run; an error of ``on_start`` is raised on all.
        """
        try:
            with ranks.together("starting the callbacks"), ranks.patient():
                self.on_start(run)
            yield
        except BaseException as error:
            self.on_stop(error)
            raise

    def on_start(self, run: RunInfo) -> None:
        self._call("on_start", run)

    def on_log(self, round: int, values: Mapping[str, float]) -> None:
        self._call("on_log", round, values)

    def on_evaluate(self, round: int, scores: Mapping[str, Any]) -> None:
        self._call("on_evaluate", round, scores)

    def on_end(self, metrics: Mapping[str, Any]) -> None:
        self._call("on_end", metrics)

    def on_stop(self, error: BaseException) -> None:
        for _, callback in self._named:
            with contextlib.suppress(Exception):  # the error before it is the one that is told
                callback.on_stop(error)

    def _call(self, hook: str, *arguments: Any) -> None:
        for name, callback in self._named:
            try:
                getattr(callback, hook)(*map(_copy, arguments))
            except Exception as error:
                if not name or isinstance(error, SbrrtError):
                    raise
                raise SbrrtError(
                    f"report_to {name}: {hook} failed ({type(error).__name__}: "
                    f"{shown(error, 300)}); mend it and go on with --resume, or leave it out"
                ) from error


def _copy(value: Any) -> Any:
    """Nested dicts and lists anew, so that no callback changes what the run keeps."""
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return list(map(_copy, value)) if isinstance(value, list) else value
