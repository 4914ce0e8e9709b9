"""A finished (or interrupted) run's folder as ``evaluate`` and ``predict`` use it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tokenizers import Tokenizer
from tyro.conf import Positional, arg

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.sources import describe_data, expanded
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Split
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.build import load_splits
from sbrrt_fast.training.kept_models import model_folder
from sbrrt_fast.training.ranks.alike import bit_sums, check_same_inputs
from sbrrt_fast.training.ranks.process_group import connect
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.saved_run import SavedModel, read_model, read_settings
from sbrrt_fast.training.step.op_choice import log_evaluation_choice

_OWN = "(default: as the run was trained)"


@dataclass(frozen=True)
class RunArguments:
    """A trained run and how to compute with it.

    Attributes:
        run: folder of the run, the --output of its training.
        data_dir: folder of the task files.
        model: which of the run's models: best on dev, last, or one kept beside them, such as
            round-40.
        precision: bf16 has bf16 matrix products with fp32 weights.
        device: auto takes a GPU if there is one.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_OWN)] = None
    model: Annotated[str, arg(metavar="{best,last,round-N}")] = "best"
    precision: Annotated[
        Literal["fp32", "bf16"] | None, arg(metavar="{fp32,bf16}", help_behavior_hint=_OWN)
    ] = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class TrainedRun:
    """A model with its tokenizer and the run's configuration.

    Attributes:
        config: as trained, with the tasks of the model and the arguments' data and precision.
        model: on its device.
        tokenizer: the model's.
        ranks: the processes that share the work out; the first alone writes and prints.
        printed: the lines on the choice of ops that were printed.
    """

    config: RunConfig
    model: MultiTaskModel
    tokenizer: Tokenizer
    ranks: Ranks = ONE_RANK
    printed: set[str] = field(default_factory=set)

    @property
    def data(self) -> str:
        """Where the rows come from, for headings."""
        data = describe_data(self.config.tasks, self.config.data_dir)
        return data or "the built-in sample (made up; no results)"

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence; longer ones are cut."""
        return min(self.config.model.max_length, self.model.config.max_position_embeddings)

    @property
    def options(self) -> dict:
        """Keyword arguments of ``evaluate.predict``, as in training."""
        packed = self.config.layout == "packed"
        how = {"precision": self.config.precision, "packed": packed}
        return {**how, "progress": self.ranks.is_first, "ranks": self.ranks}

    def say(self, line: str) -> None:
        """Prints a line, on the first rank alone."""
        if self.ranks.is_first:
            print(line)

    def load(self, split: Split, names: list[str] | None = None) -> dict[str, TokenizedTask]:
        """A split of the named tasks, tokenised as in training, on every rank.

        Without names it is of all tasks, but ``train`` of those that were trained.
        """
        known = self.config.trained_tasks if split == "train" else self.config.tasks
        chosen = {name: replace(self.config.tasks[name], train=True) for name in names or known}
        max_positions = self.model.config.max_position_embeddings
        rounds = replace(self.config.round, epoch_task=None)  # it may be one of the others
        config = replace(self.config, tasks=chosen, round=rounds)
        how = {name: self.options[name] for name in ("precision", "packed")}
        with self.ranks.together("reading the task files"), self.ranks.patient():
            tasks = load_splits(config, self.tokenizer, split, max_positions, self.say)
            log_evaluation_choice(self.model, tasks.values(), self._say_once, **how)
        return tasks

    def _say_once(self, line: str) -> None:
        """Says what has not been said yet."""
        if line not in self.printed:
            self.printed.add(line)
            self.say(line)


def join_ranks(arguments: RunArguments) -> Ranks:
    """The processes that share a command's work out: those that torchrun started, or this one."""
    return connect(arguments.device, RunConfig.rank_timeout)


def open_run(arguments: RunArguments, ranks: Ranks = ONE_RANK) -> TrainedRun:
    """The model that the arguments name, on every rank.

    Raises:
        WeightsError: the folder is not that of a run, or its model cannot be used.
        ConfigError: its configuration cannot be used, it has no model of that name, or there is
            no folder of task files.
        BackendError: there is no such device.
    """
    with ranks.together("reading the model"), ranks.patient():
        saved = _read(arguments)
    if ranks.size > 1:
        check_same_inputs(ranks, bit_sums(saved.model.state_dict()))
    return TrainedRun(saved.config, saved.model, saved.tokenizer, ranks)


def _read(arguments: RunArguments) -> SavedModel:
    config = read_settings(arguments.run)
    data_dir = arguments.data_dir or config.data_dir
    data_dir = data_dir and expanded(data_dir)
    if data_dir is not None and not os.path.isdir(data_dir):
        raise ConfigError(
            f"{data_dir}: there is no such folder; name that of the task files with --data-dir"
        )
    config = replace(config, data_dir=data_dir)
    folder = model_folder(arguments.run, arguments.model)
    return read_model(folder, config, arguments.device, arguments.precision)
