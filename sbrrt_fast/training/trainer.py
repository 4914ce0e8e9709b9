"""A training run from its configuration to ``metrics.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from tqdm import tqdm

from sbrrt_fast.checksums import remove_directory
from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops.registry import require
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.averaging import RunAverage, note_of
from sbrrt_fast.training.build import (
    build_model,
    build_step,
    complete_config,
    fit_label_units,
    load_splits,
    log_dev_choice,
    pick_device,
)
from sbrrt_fast.training.callbacks import Callback, CallbackList, RunInfo
from sbrrt_fast.training.cards.model_card import DevScores
from sbrrt_fast.training.cost.profile import NoClock, RunProfile
from sbrrt_fast.training.dev_evaluator import DevEvaluator
from sbrrt_fast.training.due import DueRounds
from sbrrt_fast.training.environment import OtherWork
from sbrrt_fast.training.evaluated import save_evaluated
from sbrrt_fast.training.extension import check_fresh, check_has_more, extension_line
from sbrrt_fast.training.finite import check_interval, check_trained
from sbrrt_fast.training.kept_models import max_models
from sbrrt_fast.training.logging import SKIPPED, RunLogger, json_values
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.model_saver import ModelSaver
from sbrrt_fast.training.progress import Progress, restore_progress
from sbrrt_fast.training.ranks.agreed_stop import AgreedStop
from sbrrt_fast.training.ranks.process_group import connect
from sbrrt_fast.training.ranks.ranks import first_alone
from sbrrt_fast.training.report_to import reporters
from sbrrt_fast.training.resuming import SavedState
from sbrrt_fast.training.round_robin import RoundRobin
from sbrrt_fast.training.run_end import RunEnd
from sbrrt_fast.training.run_folder import BEST, STATE
from sbrrt_fast.training.run_output import RunOutput
from sbrrt_fast.training.run_state import RunState
from sbrrt_fast.training.scores.metrics import check_libraries, chosen_by
from sbrrt_fast.training.scores.table import flatten_scores, format_scores
from sbrrt_fast.training.shares import RoundShares
from sbrrt_fast.training.step.group import tokens_by_task
from sbrrt_fast.training.step.op_choice import longest_sequence
from sbrrt_fast.training.step.optimizer import build_optimizer, learning_rates
from sbrrt_fast.training.stopping import Stopped, StopSignals


class Trainer:
    """Builds everything a run needs; ``run`` trains it.

    Args:
        config: the run.
        log: where lines for the user go.
        callbacks: follow the run. title: of the progress bar; the recipe if None.

    Raises:
        SbrrtError: anything in the configuration, data or weights that cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        log: Callable[[str], object] = print,
        callbacks: Sequence[Callback] = (),
        title: str | None = None,
    ):
        self.title = title or config.recipe
        self.ranks = connect(config.device, config.rank_timeout)
        self.callbacks = CallbackList((), {})
        self.log = log if self.ranks.is_first else _silent
        with self.ranks.watched(), self.ranks.together("building the run"), self.ranks.patient():
            self._build(config, self.log, callbacks)

    def _build(
        self, config: RunConfig, log: Callable[[str], object], callbacks: Sequence[Callback]
    ) -> None:
        self.other_work = OtherWork()
        check_fresh(config)
        check_libraries(config.tasks)
        require(config.backend)
        is_first = self.ranks.is_first
        if is_first:  # the others have none
            self.callbacks = CallbackList(callbacks, reporters(config.report_to))
        self.config = config = complete_config(config, log, self.ranks.tick)
        self.device = pick_device(config.device)
        model, self.tokenizer = build_model(config, log)
        max_positions = model.config.max_position_embeddings
        watched = {"tick": self.ranks.tick, "progress": is_first}
        trained = replace(config, tasks=config.trained_tasks)
        train = load_splits(trained, self.tokenizer, "train", max_positions, log, **watched)
        self.train_tasks = {name: replace(task, texts=None) for name, task in train.items()}
        self.dev_tasks = load_splits(config, self.tokenizer, "dev", max_positions, log, **watched)
        fit_label_units(model, self.train_tasks)
        self.model = model.to(self.device)
        self.splits = {"train": self.train_tasks, "dev": self.dev_tasks}
        sizes = {name: task.num_examples for name, task in self.train_tasks.items()}
        order = RoundRobin(sizes, config.round, config.seed, config.rounds or 0)
        self.num_rounds = config.rounds or config.epochs * order.rounds_per_epoch
        self.rounds_per_epoch = order.rounds_per_epoch
        self.due = DueRounds(
            config.log, self.rounds_per_epoch, self.num_rounds, config.skip_final_evaluation
        )
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
            self.ranks,
        )
        self.average = RunAverage(self.model, self.teacher, config.average, self.num_rounds)
        self.shares = RoundShares(self.train_tasks, config, self.ranks)
        log_dev_choice(self.model, self.train_tasks, self.dev_tasks, config, log)
        self.profile = RunProfile(self.device, self.ranks.tick) if config.profile else None
        self.step.clock = self.profile.clock if self.profile else NoClock(self.ranks.tick)
        trained = self.model, self.teacher, self.optimizer, self.average
        self.state = RunState(self.ranks, *trained, self.splits)
        self.progress = Progress(self.order.start())
        self.is_extension = False
        self.stop = StopSignals(is_polled=self.ranks.size > 1)
        self.ranks.on_tick = self.stop.poll
        self.evaluator = DevEvaluator(config, self.dev_tasks, self.stop, self.ranks)

    def run(self) -> dict:
        """Trains to the end and returns the contents of ``metrics.json``.

        Raises:
            SbrrtError: the output folder cannot be used, the saved state is not of this run, or
                training cannot go on.
            Interrupted: SIGTERM or Ctrl-C came; the state was saved.
        """
        output = RunOutput(self.config, self.ranks)
        with self.ranks.watched(output.go_on), output.held():
            with self.ranks.together("reading the saved state"):
                started = self._resume() if self.config.resume else self.config
            done, num_kept = self.progress.cursor.round, max_models(self.config.log)
            self.state.check_same_start(started, done)
            folder = output.start(started, self.state.num_bytes(num_kept))
            info = RunInfo(folder, self.config, self.num_rounds, done)
            with self.callbacks.following(info, self.ranks):
                with output.logger(done) as logger:
                    if self.is_extension:
                        self._save_state(logger)  # from here on the run is the longer one
                    metrics = self._train_or_stop(logger, output)
                with first_alone(self.ranks, "ending the run") as is_first, self.ranks.patient():
                    if is_first and not self.due.keeps_state:
                        remove_directory(self.config.output / STATE)
                    self.callbacks.on_end(metrics)
        return metrics

    def _train_or_stop(self, logger: RunLogger, output: RunOutput) -> dict:
        with self.stop:
            try:
                self._train(logger)
                metrics = self._end()
            except Stopped as stopped:
                self._save_state(logger)
                done = self.progress.cursor.round
                raise output.interrupted(stopped, done, self.num_rounds) from None
            if self.due.keeps_state:
                self._save_state(logger, is_finished=True)
            with self.ranks.together("writing the result"):
                logger.write_final(metrics)
        return metrics

    def _train(self, logger: RunLogger) -> None:
        first = self.progress.cursor.round
        bar = tqdm(
            total=self.num_rounds,
            initial=first,
            desc=self.title,
            disable=not self.ranks.is_first,
        )
        stop, ranks = AgreedStop(self.stop, self.ranks), self.ranks
        ranks.tick(first)
        with bar:
            self._evaluate_if_due(logger)
            while not self._is_over():
                stop.check()
                is_new = self.progress.cursor.round == first  # may compile kernels
                with ranks.patient() if is_new else nullcontext():
                    self._round()
                ranks.tick(self.progress.cursor.round)
                bar.update()
                if self.due.is_logged(self.progress.cursor.round):
                    with ranks.together("logging"):
                        self._log_interval(logger, bar)
                self._evaluate_and_save(logger)
        stop.end()
        if (done := self.progress.cursor.round) < self.num_rounds:
            self.log(self.progress.waiting.line(self.config.early_stopping, done))

    def _is_over(self) -> bool:
        is_stopped = self.progress.waiting.is_over(self.config.early_stopping)
        return is_stopped or self.progress.cursor.round >= self.num_rounds

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
            works = self.shares.works(batches)
        progress.interval.add(self.step.round_of(works, progress.cursor.round, report))
        progress.cursor = after
        self.average.after_round(after.round)
        if self.profile:
            self.profile.end_round(tokens_by_task(b for work in works for b in work.batches))

    def _log_interval(self, logger: RunLogger, bar: tqdm) -> None:
        progress, interval = self.progress, self.progress.interval
        values = interval.read()
        progress.interval = IntervalMeans()
        progress.seconds += interval.seconds
        values |= learning_rates(self.optimizer)
        values["epoch"] = progress.cursor.round / self.rounds_per_epoch
        values["num_rounds"] = interval.num_rounds
        values["rounds_per_second"] = interval.num_rounds / interval.seconds
        values[SKIPPED] = num_skipped = self._take_skipped()
        self.callbacks.on_log(progress.cursor.round, logger.log(progress.cursor.round, values))
        if self.config.on_nonfinite == "stop":
            check_interval(interval, num_skipped, progress.cursor.round, self.model.state_dict())
        totals = {k.split("/")[0]: v for k, v in values.items() if k.endswith("/total")}
        bar.set_postfix({name: f"{value:.3f}" for name, value in totals.items()})

    def _take_skipped(self) -> int:
        """How many updates were skipped since the last line."""
        count = self.progress.num_skipped + self.step.update.take_num_skipped()
        self.progress.num_skipped = 0
        return count

    def _evaluate_if_due(self, logger: RunLogger) -> None:
        if not self.progress.evaluation_is_due:
            return
        done = self.progress.cursor.round
        check_trained(self._evaluated.state_dict(), done)
        self.progress.is_unscored = self.due.is_unscored(done)
        scores = {"overall": None} if self.progress.is_unscored else self._dev_scores(done, logger)
        facts = self.average.facts(done)
        dev = DevScores(scores, done, self.config.log.dev_rows, note=note_of(facts))
        save = partial(self._saver.save, dev=dev)
        with first_alone(self.ranks, "saving the model") as is_first, self.ranks.patient():
            output, log = self.config.output, self.config.log
            by = chosen_by(scores, self.config.tasks)
            save_evaluated(save, output, self.progress, scores, by, log, is_first)
        self.progress.evaluation_is_due = False
        if self.progress.best["round"] == done:
            self.progress.best["average"] = facts
            self.evaluator.best = {} if self.progress.is_unscored else self.evaluator.scored
        if not self.progress.is_unscored:
            with self.ranks.together("telling the callbacks"), self.ranks.patient():
                self.callbacks.on_evaluate(done, scores)

    def _dev_scores(self, done: int, logger: RunLogger) -> dict:
        """The model's after ``done`` rounds, told and logged."""
        scores = self._scores(self._evaluated, self.config.log.dev_rows)
        self.log(f"round {done}: dev {format_scores(scores)}{note_of(self.average.facts(done))}")
        with self.ranks.together("logging"):
            logger.log(done, {f"dev/{k}": v for k, v in flatten_scores(scores).items()})
        min_delta = self.config.early_stopping.min_delta
        by = chosen_by(scores, self.config.tasks)
        self.progress.waiting = self.progress.waiting.after(by, done, min_delta)
        return scores

    def _scores(self, model: MultiTaskModel, limit: int | None) -> dict:
        with self.ranks.together("evaluating"):
            return self.evaluator.scores(model, self.progress, limit)

    def _end(self) -> dict:
        """Scores the best model on all dev rows, which are written; returns the run's metrics."""
        self.state.check_same(self.progress.cursor.round)
        end = RunEnd(
            *(self.config, self.model, self.step, self.profile, self.progress, self.num_rounds),
            num_ranks=self.ranks.size,
            train_tasks=self.train_tasks,
            other_cores=None if self.config.resume else self.other_work.cores(),
        )
        with first_alone(self.ranks, "measuring the profile") as is_first, self.ranks.patient():
            for line in end.lines() if is_first else ():
                self.log(line)
        evaluator, before = self.evaluator, self.evaluator.scored
        dev = evaluator.final_scores(self.progress, self.device, self._scores)
        metrics: dict = {}
        with first_alone(self.ranks, "writing the scores") as is_first, self.ranks.patient():
            if is_first:
                if evaluator.scored is not before:
                    best = self.progress.best
                    note = note_of(best.get("average"))
                    self._saver.update_card(BEST, DevScores(dev, best["round"], note=note))
                metrics = end.metrics(dev, evaluator.best, self.device)
        return metrics if self.ranks.size == 1 else self.ranks.gather(json_values(metrics))[0]

    @property
    def _evaluated(self) -> MultiTaskModel:
        """The model whose scores count now, and which is saved."""
        return self.average.model(self.progress.cursor.round)

    @property
    def _saver(self) -> ModelSaver:
        return ModelSaver(self.config, self._evaluated, self.tokenizer, self.splits)

    def _save_state(self, logger: RunLogger, is_finished: bool = False) -> None:
        self.state.check_same(self.progress.cursor.round)
        with self.ranks.together("saving the state"), self.ranks.patient():
            logger.sync()  # a state never knows of more rounds than the log
            self.progress.num_skipped = self._take_skipped()
            self.state.save(self.config, self.progress, is_finished)

    def _resume(self) -> RunConfig:
        """Takes over the saved state, changing nothing on disk; returns the run's settings."""
        check_has_more(self.config.output, self.config)
        saved = SavedState.read(self.config.output)
        self.config = replace(self.config, extended=saved.config.extended)
        self.state.restore(self.config, saved)
        cursor = self.order.cursor(saved.meta["cursor"])
        self.progress = restore_progress(saved.tensors, saved.meta, cursor, self.device)
        if not saved.is_extended_by(self.config):
            return saved.config
        self.is_extension = True
        self.average.extended(cursor.round)
        self.config = saved.extended(self.config, self.rounds_per_epoch, self.progress.waiting)
        self.log(extension_line(self.config, cursor.round, self.num_rounds))
        is_due = self.due.is_evaluated(cursor.round)
        self.progress.evaluation_is_due = self.progress.is_unscored and is_due
        return saved.recorded(self.config)


def _silent(_: str) -> None:
    """The log of ranks that say nothing."""
