"""The folder of a run of one or several ranks: the first one writes, the others wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import save_recipe
from sbrrt_fast.errors import Interrupted
from sbrrt_fast.training.logging import RunLogger, SilentLogger
from sbrrt_fast.training.ranks.ranks import Ranks, first_alone
from sbrrt_fast.training.ranks.restart import this_launch
from sbrrt_fast.training.run_folder import CONFIG, check_space, open_output, start_run
from sbrrt_fast.training.stopping import Stopped


@dataclass(frozen=True)
class RunOutput:
    """The folder ``config.output`` of the run that ``ranks`` train; errors are raised on all."""

    config: RunConfig
    ranks: Ranks

    @property
    def go_on(self) -> str:
        """What to do where the run has ended early."""
        return f"go on with `sbrrt-fast train --output {self.config.output} --resume`"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block the first rank holds the folder; see ``run_folder.open_output``."""
        output, resume, overwrite = (
            getattr(self.config, name) for name in ("output", "resume", "overwrite")
        )
        with ExitStack() as stack:
            with first_alone(self.ranks, "opening the folder") as is_first:
                if is_first:
                    stack.enter_context(open_output(output, resume=resume, overwrite=overwrite))
            yield

    def start(self, started: RunConfig, num_bytes: int) -> str:
        """Makes the folder this run's.

        Args:
            started: the settings that it records. num_bytes: the most that it saves.

        Returns:
            the run's id, on the first rank.
        """
        output, run_id = self.config.output, ""
        with first_alone(self.ranks, "starting the run") as is_first:
            if is_first:
                check_space(output, num_bytes)
                run_id = start_run(output, resume=self.config.resume, launch=this_launch())
                save_recipe(started, output / CONFIG)
        return run_id

    def logger(self, done: int) -> RunLogger | SilentLogger:
        """Of a run that starts or goes on after ``done`` rounds."""
        logger: RunLogger | SilentLogger = SilentLogger()
        with first_alone(self.ranks, "opening the log") as is_first:
            if is_first:
                resumed = done if self.config.resume else None
                logger = RunLogger(self.config.output, self.config.log, resumed)
        return logger

    def interrupted(self, stopped: Stopped, done: int, num_rounds: int) -> Interrupted:
        """For the caller of a run that a signal ended; the first rank tells of it."""
        state = f"the state after round {done} of {num_rounds} is saved"
        error = Interrupted(f"{stopped.reason}: {state}; {self.go_on}", stopped.status)
        error.is_told = not self.ranks.is_first
        return error
