"""A training run from its configuration to ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property

from tqdm import tqdm

from sbrrt_fast.checksums import (
    check_directory,
    checksummed_directory,
    readable_directory,
    remove_directory,
)
from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.config_io import config_from_dict, config_to_dict, portable, save_recipe
from sbrrt_fast.config_rules import validate
from sbrrt_fast.data.assemble import assemble, labels_of
from sbrrt_fast.errors import Interrupted
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops.registry import require
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.build import (
    build_model,
    build_step,
    fit_label_units,
    load_splits,
    pick_device,
)
from sbrrt_fast.training.checkpoint import load_state, save_state
from sbrrt_fast.training.cost.profile import Profile, RunProfile
from sbrrt_fast.training.due import DueRounds
from sbrrt_fast.training.environment import run_environment
from sbrrt_fast.training.finite import check_interval, check_loaded, check_trained
from sbrrt_fast.training.log_summary import SkippedUpdates, run_means, skipped_updates
from sbrrt_fast.training.logging import LINES, SKIPPED, RunLogger
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.progress import (
    Progress,
    check_same_inputs,
    check_same_run,
    input_checksums,
    num_bytes_saved,
    restore_progress,
    restore_tensors,
    state_tensors,
)
from sbrrt_fast.training.round_robin import Batches, RoundRobin
from sbrrt_fast.training.run_folder import (
    BEST,
    CONFIG,
    LAST,
    STATE,
    check_space,
    open_output,
    start_run,
)
from sbrrt_fast.training.scores.evaluate import evaluate
from sbrrt_fast.training.scores.metrics import is_better
from sbrrt_fast.training.scores.table import flatten_scores, format_scores
from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.op_choice import log_evaluation_choice, longest_sequence
from sbrrt_fast.training.step.optimizer import build_optimizer
from sbrrt_fast.training.stopping import Stopped, StopSignals


class Trainer:
    """Builds everything a run needs; ``run`` trains it.

    Args:
        config: the run.
        log: where lines for the user go.

    Raises:
        SbrrtError: anything in the configuration, data or weights that cannot be used.
    """

    def __init__(self, config: RunConfig, log: Callable[[str], object] = print):
        validate(config)
        require(config.backend)
        self.config, self.log = config, log
        self.device = pick_device(config.device)
        model, self.tokenizer = build_model(config, log)
        max_positions = model.config.max_position_embeddings
        self.train_tasks = load_splits(config, self.tokenizer, "train", max_positions, log)
        self.dev_tasks = load_splits(config, self.tokenizer, "dev", max_positions, log)
        fit_label_units(model, self.train_tasks)
        self.model = model.to(self.device)
        sizes = {name: task.num_examples for name, task in self.train_tasks.items()}
        order = RoundRobin(sizes, config.round, config.seed, config.rounds or 0)
        self.num_rounds = config.rounds or config.epochs * order.rounds_per_epoch
        self.rounds_per_epoch = order.rounds_per_epoch
        self.due = DueRounds(config.log, self.rounds_per_epoch, self.num_rounds)
        self.order = RoundRobin(sizes, config.round, config.seed, self.num_rounds)
        self.teacher = Teacher(self.model, config.bregman) if config.bregman.weight > 0 else None
        self.optimizer = build_optimizer(self.model.named_parameters(), config.optimizer)
        self.step = build_step(
            self.model,
            self.teacher,
            self.optimizer,
            config,
            self.num_rounds,
            log,
            longest_sequence(self.train_tasks.values()),
        )
        self._check_evaluation()
        self.profile = RunProfile(self.device) if config.profile else None
        if self.profile:
            self.step.clock = self.profile.clock
        self.progress = Progress(self.order.start())
        self.stop = StopSignals()

    def run(self) -> dict:
        """Trains to the end and returns the contents of ``metrics.json``.

        Raises:
            SbrrtError: the output folder cannot be used, the saved state is not of this run, or
                training cannot go on.
            Interrupted: SIGTERM or Ctrl-C came; the state was saved.
        """
        output, resume = self.config.output, self.config.resume
        with open_output(output, resume=resume, overwrite=self.config.overwrite):
            started = self._resume() if resume else self.config
            check_space(output, num_bytes_saved(self.model, self.teacher))
            start_run(output, resume=resume)
            save_recipe(started, output / CONFIG)
            resume_round = self.progress.cursor.round if resume else None
            with RunLogger(output, self.config.log, resume_round) as logger:
                metrics = self._train_or_stop(logger)
            remove_directory(output / STATE)
        return metrics

    def _train_or_stop(self, logger: RunLogger) -> dict:
        with self.stop:
            try:
                self._train(logger)
                for line in self._summary():
                    self.log(line)
                metrics = self._final_metrics()
            except Stopped as stopped:
                self._save_state(logger)
                raise Interrupted(self._resume_message(stopped), stopped.status) from None
            logger.write_final(metrics)
        return metrics

    def _summary(self) -> list[str]:
        """Lines for the end of the run: on its step, skipped updates and the profile."""
        lines = [*self.step.summary(), *self._skipped().lines(self.num_rounds)]
        return lines + (self._profile.lines() if self._profile else [])

    @cached_property
    def _profile(self) -> Profile | None:
        """Where the rounds went, once they are done; None without ``--profile``."""
        profile = self.profile
        return profile and profile.measure(self.model, self.config, self.step.memory())

    def _resume_message(self, stopped: Stopped) -> str:
        return (
            f"{stopped.reason}: the state after round {self.progress.cursor.round} of "
            f"{self.num_rounds} is saved; go on with "
            f"`sbrrt-fast train --output {self.config.output} --resume`"
        )

    def _check_evaluation(self) -> None:
        """Dev texts may be longer than those that the step was built for."""
        config, dev = self.config, self.dev_tasks.values()
        if longest_sequence(dev) > longest_sequence(self.train_tasks.values()):
            log_evaluation_choice(
                self.model,
                dev,
                lambda line: self.log(f"evaluation: {line}"),
                backend=config.backend,
                precision=config.precision,
                packed=config.layout == "packed",
            )

    def _train(self, logger: RunLogger) -> None:
        done = self.progress.cursor.round
        bar = tqdm(total=self.num_rounds, initial=done, desc=self.config.recipe)
        with bar:
            self._evaluate_if_due(logger)
            while self.progress.cursor.round < self.num_rounds:
                self.stop.check()
                self._round()
                bar.update()
                if self.due.is_logged(self.progress.cursor.round):
                    self._log_interval(logger, bar)
                self._evaluate_and_save(logger)

    def _evaluate_and_save(self, logger: RunLogger) -> None:
        """Evaluates and saves the state where a round is due for it."""
        done = self.progress.cursor.round
        self.progress.evaluation_is_due = self.due.is_evaluated(done)
        self._evaluate_if_due(logger)
        if self.due.is_saved(done):
            self._save_state(logger)

    def _round(self) -> None:
        progress = self.progress
        progress.interval.start()
        batches, after = self.order.next_round(progress.cursor)
        report = self.config.log.gain and self.due.is_logged(after.round)
        with self.step.clock("data"):
            assembled = self.assemble(batches)
        progress.interval.add(self.step.round(assembled, progress.cursor.round, report))
        progress.cursor = after
        if self.profile:
            self.profile.end_round(sum(batch.tokens.num_tokens for batch in assembled))

    def assemble(self, batches: Batches) -> list[TaskBatch]:
        """The round's batches, in the host's memory, with rows numbered through the round."""
        row, assembled = 0, []
        for name, examples in batches:
            task = self.train_tasks[name]
            tokens = assemble(task, examples, row)
            row += tokens.num_sequences
            if self.config.layout == "padded":
                tokens = tokens.padded()
            assembled.append(TaskBatch(name, tokens, labels_of(task, examples)))
        return assembled

    def _log_interval(self, logger: RunLogger, bar: tqdm) -> None:
        progress, interval = self.progress, self.progress.interval
        values = interval.read()
        progress.interval = IntervalMeans()
        progress.seconds += interval.seconds
        for group in self.optimizer.param_groups:
            values["learning_rate/" + group["name"].split(".")[0]] = group["lr"]
        values["epoch"] = progress.cursor.round / self.rounds_per_epoch
        values["num_rounds"] = interval.num_rounds
        values["rounds_per_second"] = interval.num_rounds / interval.seconds
        values[SKIPPED] = num_skipped = self._take_skipped()
        logger.log(progress.cursor.round, values)
        if self.config.on_nonfinite == "stop":
            check_interval(interval, num_skipped, progress.cursor.round, self.model.state_dict())
        totals = {k.split("/")[0]: v for k, v in values.items() if k.endswith("/total")}
        bar.set_postfix({name: f"{value:.3f}" for name, value in totals.items()})

    def _take_skipped(self) -> int:
        """How many updates were skipped since the last line."""
        count = self.progress.num_skipped + self.step.update.take_num_skipped()
        self.progress.num_skipped = 0
        return count

    def _skipped(self) -> SkippedUpdates:
        per_round = self.step.num_steps // self.num_rounds
        return skipped_updates(self.config.output / LINES, per_round)

    def _evaluate_if_due(self, logger: RunLogger) -> None:
        if not self.progress.evaluation_is_due:
            return
        done = self.progress.cursor.round
        check_trained(self.model.state_dict(), done)
        scores = self._scores(self.model, self.config.log.dev_rows)
        self.log(f"round {done}: dev {format_scores(scores)}")
        logger.log(done, {f"dev/{k}": v for k, v in flatten_scores(scores).items()})
        self._save(LAST)
        best = self.progress.best
        if is_better(scores["overall"], best and best["overall"]):
            self._save(BEST)
            self.progress.best = {"overall": scores["overall"], "round": done, "scores": scores}
        self.progress.evaluation_is_due = False

    def _scores(self, model: MultiTaskModel, limit: int | None) -> dict:
        with self.stop.stoppable(), self.progress.evaluating():
            return evaluate(
                model,
                self.dev_tasks,
                precision=self.config.precision,
                packed=self.config.layout == "packed",
                limit=limit,
                progress=True,
            )

    def _final_metrics(self) -> dict:
        """Scores of the best model on all dev rows, and the run's settings."""
        best, config = self.progress.best, self.config
        return {
            "dev": best["scores"] if config.log.dev_rows is None else self._best_scores(),
            "rounds": self.num_rounds,
            "rounds_per_second": self.num_rounds / max(self.progress.seconds, 1e-9),
            "backend": config.backend,
            "precision": config.precision,
            "seed": config.seed,
            "recipe": config.recipe,
            "layout": config.layout,
            "best_round": best["round"],
            "train_seconds": self.progress.seconds,
            "evaluation_seconds": self.progress.evaluation_seconds,
            "smart": _settings(self.step.smart),
            "means": run_means(config.output / LINES),
            SKIPPED: self._skipped().num_skipped,
            "environment": run_environment(self.device),
            "profile": self._profile and self._profile.to_dict(),
        }

    def _best_scores(self) -> dict:
        """The best model's on all dev rows."""
        model, _ = load_model(self.config.output / BEST)
        model.encoder.set_backend(self.config.backend)
        return self._scores(model.to(self.device), None)

    def _save(self, name: str) -> None:
        with checksummed_directory(self.config.output / name) as folder:
            save_model(self.model, folder, self.tokenizer)

    def _save_state(self, logger: RunLogger) -> None:
        logger.sync()  # a state never knows of more rounds than the log
        self.step.update.settle()
        self.progress.num_skipped = self._take_skipped()
        tensors = state_tensors(self.model, self.optimizer, self.teacher, self.progress)
        check_trained(tensors, self.progress.cursor.round)
        meta = self.progress.to_meta()
        meta |= {"config": config_to_dict(portable(self.config)), "inputs": self._inputs}
        save_state(self.config.output / STATE, tensors=tensors, meta=meta)

    @cached_property
    def _inputs(self) -> dict[str, int]:
        """Checksums of what no round changes."""
        splits = {"train": self.train_tasks, "dev": self.dev_tasks}
        return input_checksums(self.model, splits)

    def _resume(self) -> RunConfig:
        """Takes over the saved state, changing nothing on disk; returns the run's settings."""
        output = self.config.output
        tensors, meta = load_state(output / STATE)
        check_loaded(tensors, output / STATE, "it cannot be resumed: train anew")
        started = config_from_dict(meta["config"], str(output / STATE))
        check_same_run(started, self.config, str(output))
        check_same_inputs(meta["inputs"], self._inputs, str(output))
        if meta["best"] is not None:
            for name in (BEST, LAST):
                check_directory(readable_directory(output / name))
        restore_tensors(tensors, self.model, self.optimizer, self.teacher)
        cursor = self.order.cursor(meta["cursor"])
        self.progress = restore_progress(tensors, meta, cursor, self.device)
        return started


def _settings(smart: SmartConfig) -> dict | None:
    """SMART's resolved settings; infinity as a word, since JSON has none."""
    if smart.weight == 0:
        return None
    return {k: "inf" if v == math.inf else v for k, v in asdict(smart).items()}
