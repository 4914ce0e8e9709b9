"""A training run from its configuration to ``metrics.json``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor
from tqdm import tqdm

from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.config_io import save_config
from sbrrt_fast.data.assemble import assemble, labels_of
from sbrrt_fast.errors import SbrrtError, WeightsError
from sbrrt_fast.model.io import load_model, save_model
from sbrrt_fast.ops.registry import require
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.build import build_model, build_step, load_splits, pick_device
from sbrrt_fast.training.checkpoint import (
    atomic_directory,
    load_optimizer_tensors,
    load_state,
    optimizer_tensors,
    save_state,
)
from sbrrt_fast.training.evaluate import evaluate
from sbrrt_fast.training.floor import best_ceilings, round_cost
from sbrrt_fast.training.group import TaskBatch
from sbrrt_fast.training.logging import FINAL, LINES, RunLogger, check_finite
from sbrrt_fast.training.means import IntervalMeans, run_means
from sbrrt_fast.training.metrics import is_better
from sbrrt_fast.training.optimizer import build_optimizer
from sbrrt_fast.training.profile import NoClock, StageClock, peak_bytes
from sbrrt_fast.training.profile import report as profile_report
from sbrrt_fast.training.round_robin import Batches, RoundRobin
from sbrrt_fast.training.scores import flatten_scores, format_scores

STATE, BEST, LAST = "state", "best", "last"


class Trainer:
    """Builds everything a run needs; ``run`` trains it.

    Args:
        config: the run.
        log: where lines for the user go.

    Raises:
        SbrrtError: anything in the configuration, data or weights that cannot be used.
    """

    def __init__(self, config: RunConfig, log: Callable[[str], object] = print):
        require(config.backend)
        self.config, self.log = config, log
        self.device = pick_device(config.device)
        model, self.tokenizer = build_model(config)
        max_positions = model.config.max_position_embeddings
        self.train_tasks = load_splits(config, self.tokenizer, "train", max_positions, log)
        self.dev_tasks = load_splits(config, self.tokenizer, "dev", max_positions, log)
        self.model = model.to(self.device)
        sizes = {name: task.num_examples for name, task in self.train_tasks.items()}
        order = RoundRobin(sizes, config.round, config.seed, config.rounds or 0)
        self.num_rounds = config.rounds or config.epochs * order.rounds_per_epoch
        self.rounds_per_epoch = order.rounds_per_epoch
        self.order = RoundRobin(sizes, config.round, config.seed, self.num_rounds)
        self.teacher = Teacher(self.model, config.bregman) if config.bregman.weight > 0 else None
        self.optimizer = build_optimizer(self.model.named_parameters(), config.optimizer)
        self.step = build_step(
            self.model, self.teacher, self.optimizer, config, self.num_rounds, log
        )
        self.clock: StageClock | NoClock = NoClock()
        if config.profile:
            self.step.clock = self.clock = StageClock(self.device)
        self.num_tokens = 0
        self.cursor = self.order.start()
        self.best: dict = {"overall": None, "round": 0}
        self.seconds = 0.0

    def run(self) -> dict:
        """Trains to the end and returns what ``metrics.json`` holds."""
        self._check_output()
        resumed = self._resume() if self.config.resume else None
        self.config.output.mkdir(parents=True, exist_ok=True)
        save_config(_portable(self.config), self.config.output / "config.yaml")
        with RunLogger(self.config.output, self.config.log, resumed) as logger:
            self._train(logger)
            for line in self.step.summary():
                self.log(line)
            if self.config.profile:
                self._tell_profile()
            metrics = self._final_metrics()
            logger.write_final(metrics)
        shutil.rmtree(self.config.output / STATE, ignore_errors=True)
        return metrics

    def _check_output(self) -> None:
        output, config = self.config.output, self.config
        if config.resume and (output / FINAL).exists():
            raise SbrrtError(f"{output}: this run is finished; there is nothing to resume")
        if not (config.resume or config.overwrite) and (output / "config.yaml").exists():
            raise SbrrtError(
                f"{output}: holds a run already; choose another --output, or pass --resume to "
                "continue it or --overwrite to replace it"
            )
        if config.overwrite and not config.resume:
            for name in (FINAL, STATE, BEST, LAST, "predictions"):
                path = output / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _train(self, logger: RunLogger) -> None:
        interval = IntervalMeans()
        bar = tqdm(total=self.num_rounds, initial=self.cursor.round, desc=self.config.recipe)
        with bar:
            while self.cursor.round < self.num_rounds:
                self._round(interval)
                bar.update()
                if self._is_logged(self.cursor.round):
                    self._log_interval(logger, interval, bar)
                    interval = IntervalMeans()
                self._keep(logger)

    def _keep(self, logger: RunLogger) -> None:
        """Scores and saves what is due after a round."""
        done = self.cursor.round
        if self._is_evaluated(done):
            self._evaluate(logger)
        if self._is_state(done):
            self._save_state()

    def _round(self, interval: IntervalMeans) -> None:
        interval.start()
        batches, after = self.order.next_round(self.cursor)
        report = self.config.log.gain and self._is_logged(after.round)
        with self.clock("data"):
            assembled = self.assemble(batches)
        interval.add(self.step.round(assembled, self.cursor.round, report))
        self.cursor = after
        if self.config.profile:
            self.clock.end_round()
            self.num_tokens += sum(batch.tokens.num_tokens for batch in assembled)

    def _tell_profile(self) -> None:
        """Where the rounds of this run went, against the floor."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        mean = self.num_tokens / max(len(self.clock.rounds), 1)
        cost = round_cost(self.model.config, self.config, mean, trained)
        memory = {"peak": peak_bytes(self.device)} | self.step.memory()
        ceilings = best_ceilings(self.device, self.config.precision)
        for line in profile_report(self.clock, cost, ceilings, memory):
            self.log(line)

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

    def _log_interval(self, logger: RunLogger, interval: IntervalMeans, bar: tqdm) -> None:
        values = interval.read()
        self.seconds += interval.seconds
        for group in self.optimizer.param_groups:
            values["learning_rate/" + group["name"].split(".")[0]] = group["lr"]
        values["epoch"] = self.cursor.round / self.rounds_per_epoch
        values["num_rounds"] = interval.num_rounds
        values["rounds_per_second"] = interval.num_rounds / interval.seconds
        logger.log(self.cursor.round, values)
        check_finite(values, self.cursor.round)
        totals = {k.split("/")[0]: v for k, v in values.items() if k.endswith("/total")}
        bar.set_postfix({name: f"{value:.3f}" for name, value in totals.items()})

    def _evaluate(self, logger: RunLogger) -> None:
        scores = self._scores(self.config.log.dev_rows)
        self.log(f"round {self.cursor.round}: dev {format_scores(scores)}")
        logger.log(self.cursor.round, {f"dev/{k}": v for k, v in flatten_scores(scores).items()})
        self._save(LAST)
        if is_better(scores["overall"], self.best["overall"]):
            self.best = {"overall": scores["overall"], "round": self.cursor.round}
            self.best["scores"] = scores
            self._save(BEST)

    def _scores(self, limit: int | None) -> dict:
        return evaluate(
            self.model,
            self.dev_tasks,
            precision=self.config.precision,
            packed=self.config.layout == "packed",
            limit=limit,
            progress=True,
        )

    def _final_metrics(self) -> dict:
        """Scores of the best model on all dev rows, and what the run was."""
        dev = self.best["scores"]
        if self.config.log.dev_rows is not None:
            best, _ = load_model(self.config.output / BEST)
            self.model.load_state_dict(best.state_dict())
            dev = self._scores(None)
        return {
            "dev": dev,
            "rounds": self.num_rounds,
            "rounds_per_second": self.num_rounds / max(self.seconds, 1e-9),
            "backend": self.config.backend,
            "precision": self.config.precision,
            "seed": self.config.seed,
            "recipe": self.config.recipe,
            "layout": self.config.layout,
            "best_round": self.best["round"],
            "train_seconds": self.seconds,
            "smart": _settings(self.step.smart),
            "means": run_means(self.config.output / LINES),
        }

    def _save(self, name: str) -> None:
        with atomic_directory(self.config.output / name) as folder:
            save_model(self.model, folder, self.tokenizer)

    def _save_state(self) -> None:
        named = list(self.model.named_parameters())
        tensors = {f"model.{name}": p for name, p in named if p.requires_grad}
        tensors |= optimizer_tensors(self.optimizer, named)
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": t for name, t in self.teacher.state_dict().items()}
        meta = {
            "cursor": self.cursor.to_dict(),
            "num_rounds": self.num_rounds,
            "best": None if "scores" not in self.best else self.best,
            "seconds": self.seconds,
        }
        save_state(self.config.output / STATE, tensors=tensors, meta=meta)

    def _resume(self) -> int:
        """Takes over the saved state; returns its number of rounds."""
        tensors, meta = load_state(self.config.output / STATE)
        if meta["num_rounds"] != self.num_rounds:
            raise SbrrtError(
                f"{self.config.output}: was started with {meta['num_rounds']} rounds, not "
                f"{self.num_rounds}; resume with the same --rounds or --epochs"
            )
        named = list(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in named:
                if parameter.requires_grad:
                    parameter.copy_(_state_tensor(tensors, f"model.{name}", parameter))
        load_optimizer_tensors(self.optimizer, named, tensors)
        if self.teacher is not None:
            prefix = "teacher."
            averages = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            self.teacher.load_state_dict(averages)
        self.cursor = self.order.cursor(meta["cursor"])
        self.best, self.seconds = meta["best"] or self.best, meta["seconds"]
        return self.cursor.round

    def _is_evaluated(self, done: int) -> bool:
        every = self.config.log.evaluate_every or self.rounds_per_epoch
        return done % every == 0 or done == self.num_rounds

    def _is_state(self, done: int) -> bool:
        every = self.config.log.state_every
        return every > 0 and done % every == 0 and done < self.num_rounds

    def _is_logged(self, done: int) -> bool:
        """Every so often, and wherever something is kept, so that no mean runs across it."""
        due = done % self.config.log.every == 0
        return due or self._is_evaluated(done) or self._is_state(done)


def _portable(config: RunConfig) -> RunConfig:
    """With an absolute data folder, so that the run can be scored from anywhere."""
    if config.data_dir is None:
        return config
    return replace(config, data_dir=config.data_dir.resolve())


def _settings(smart: SmartConfig) -> dict | None:
    """SMART's resolved settings; infinity as a word, since JSON has none."""
    if smart.weight == 0:
        return None
    return {k: "inf" if v == math.inf else v for k, v in asdict(smart).items()}


def _state_tensor(tensors: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    if name not in tensors or tensors[name].shape != parameter.shape:
        raise WeightsError(
            f"saved state: '{name}' is missing or has another shape; resume with the same model, "
            "tasks and mode as the run was started with"
        )
    return tensors[name]
