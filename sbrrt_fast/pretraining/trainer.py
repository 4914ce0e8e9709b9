"""A pre-training run from its configuration to ``metrics.json`` and a checkpoint."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from sbrrt_fast.checksums import checksummed_directory, remove_directory
from sbrrt_fast.errors import Interrupted, SbrrtError
from sbrrt_fast.files import write_json
from sbrrt_fast.ops.registry import require
from sbrrt_fast.pretraining.checkpoints import load_checkpoint, write_checkpoint
from sbrrt_fast.pretraining.config import PretrainConfig, as_training, save_pretrain_config
from sbrrt_fast.pretraining.evaluation import evaluate
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.pretraining.random_words import RandomRows
from sbrrt_fast.pretraining.state import PretrainProgress, PretrainState
from sbrrt_fast.pretraining.step import build_step
from sbrrt_fast.pretraining.text import TextReader
from sbrrt_fast.training.build import pick_device
from sbrrt_fast.training.due import DueRounds
from sbrrt_fast.training.environment import run_environment
from sbrrt_fast.training.finite import check_trained, is_stopping
from sbrrt_fast.training.logging import FINAL, RunLogger, json_values
from sbrrt_fast.training.means import IntervalMeans
from sbrrt_fast.training.round_robin import RoundRobin
from sbrrt_fast.training.run_folder import (
    LAST,
    PRETRAIN_CONFIG,
    STATE,
    check_output,
    check_space,
    is_finished,
    open_output,
    start_run,
)
from sbrrt_fast.training.stopping import Stopped, StopSignals

_TEXT = "text"  # what is trained on, as the order of batches calls it


class PretrainTrainer:
    """Builds everything a run needs; ``run`` trains it.

    Args:
        config: the run. log: where lines for the user go.

    Raises:
        SbrrtError: anything in the configuration, text or weights that cannot be used.
    """

    def __init__(self, config: PretrainConfig, log: Callable[[str], object] = print):
        self.config, self.log = config, log
        check_output(config.output, resume=config.resume, overwrite=config.overwrite)
        if config.resume and is_finished(config.output):
            raise SbrrtError(f"{config.output}: the run is finished; pre-train its 'last' further")
        require(config.backend)
        self.device = pick_device(config.device)
        model, self.tokenizer = load_checkpoint(config, log)
        shape, folder = model.config, model.encoder.source
        tables = shape.max_position_embeddings, shape.type_vocab_size
        self.text = TextReader(config, self.tokenizer, folder, *tables, log).read()
        self.model, run = model.to(self.device), as_training(config)
        order = RoundRobin({_TEXT: self.text.train.num_rows}, run.round, config.seed)
        self.order, self.rounds_per_epoch = order, order.rounds_per_epoch
        self.num_rounds = config.rounds or config.epochs * self.rounds_per_epoch
        self.due = DueRounds(run.log, self.rounds_per_epoch, self.num_rounds)
        self.step = build_step(self.model, config, self.num_rounds, log)
        if heads := self.step.head_rounds:
            log(f"the first {heads:,} of {self.num_rounds:,} rounds train the heads alone")
        inputs = _backbone_inputs(model) | self.text.checksums
        self.state = PretrainState(config.output, self.model, self.step.optimizer, inputs)
        self.progress = PretrainProgress(order.start())
        self.stop = StopSignals()

    def run(self) -> dict[str, Any]:
        """Trains to the end and returns the contents of ``metrics.json``.

        Raises:
            SbrrtError: the output folder cannot be used, the saved state is not of this run, or
                training cannot go on.
            Interrupted: SIGTERM or Ctrl-C came; the state was saved.
        """
        config = self.config
        options = {"resume": config.resume, "overwrite": config.overwrite}
        with open_output(config.output, **options):
            if config.resume:
                self._resume()
            check_space(config.output, self._num_bytes())
            start_run(config.output, resume=config.resume)
            save_pretrain_config(config, config.output / PRETRAIN_CONFIG)
            done = self.progress.cursor.round if config.resume else None
            with RunLogger(config.output, as_training(config).log, done) as logger:
                self._train_or_stop(logger)
            metrics = self._metrics()
            write_json(config.output / FINAL, json_values(metrics))
            remove_directory(config.output / STATE)
        return metrics

    def _train_or_stop(self, logger: RunLogger) -> None:
        with self.stop:
            try:
                self._train(logger)
            except Stopped as stopped:
                self._save_state(logger)
                done = self.progress.cursor.round
                raise Interrupted(
                    f"{stopped.reason}: the state after round {done} of {self.num_rounds} is "
                    f"saved; go on with `sbrrt-fast pretrain --output {self.config.output} "
                    "--resume`",
                    stopped.status,
                ) from None

    def _train(self, logger: RunLogger) -> None:
        done = self.progress.cursor.round
        with tqdm(total=self.num_rounds, initial=done, desc="pretrain") as bar:
            self._evaluate_if_due(logger)
            while self.progress.cursor.round < self.num_rounds:
                self.stop.check()
                self._round()
                bar.update()
                done = self.progress.cursor.round
                if self.due.is_logged(done):
                    self._log_interval(logger, bar)
                self.progress.evaluation_is_due = self.due.is_evaluated(done)
                self._evaluate_if_due(logger)
                if self.due.is_saved(done):
                    self._save_state(logger)

    def _round(self) -> None:
        progress, index = self.progress, self.progress.cursor.round
        progress.interval.start()
        ((_, rows),), after = self.order.next_round(progress.cursor)
        batch = self.text.train.batch(rows, RandomRows(self.config.seed, index))
        progress.interval.add(self.step.round(batch, index))
        progress.cursor = after

    def _log_interval(self, logger: RunLogger, bar: tqdm) -> None:
        progress, interval = self.progress, self.progress.interval
        values, done = interval.read(), progress.cursor.round
        progress.interval = IntervalMeans()
        progress.seconds += interval.seconds
        num_tokens = values.pop("tokens") * interval.num_rounds
        progress.num_tokens += num_tokens
        for group in self.step.optimizer.param_groups:
            values["learning_rate/" + group["name"].split(".")[0]] = group["lr"]
        values["epoch"] = done / self.rounds_per_epoch
        values["num_rounds"] = interval.num_rounds
        values["rounds_per_second"] = interval.num_rounds / interval.seconds
        values["tokens_per_second"] = num_tokens / interval.seconds
        num_skipped = progress.num_skipped + self.step.update.take_num_skipped()
        progress.num_skipped = 0
        logger.log(done, values)
        _check_finite(interval, num_skipped, done)
        bar.set_postfix(loss=f"{values['pretraining/total']:.3f}")

    def _evaluate_if_due(self, logger: RunLogger) -> None:
        """Scores the model on held-out text and saves it, where that is due."""
        progress, done = self.progress, self.progress.cursor.round
        if not progress.evaluation_is_due:
            return
        check_trained(self.model.state_dict(), done)
        if self.text.held_out is not None:
            with self.stop.stoppable():
                seed, size = self.config.seed, self.config.batch_size
                held_out = self.text.held_out, seed, size, self.config.precision
                progress.last = evaluate(self.model, *held_out)
            progress.first = progress.first or progress.last
            logger.log(done, {f"held_out/{k}": v for k, v in progress.last.items()})
            self.log(f"round {done}: {scores_line(progress.last)}")
        if done:
            with checksummed_directory(self.config.output / LAST) as folder:
                write_checkpoint(self.model, folder, self.tokenizer)
        progress.evaluation_is_due = False

    def _save_state(self, logger: RunLogger) -> None:
        check_trained(self.model.state_dict(), self.progress.cursor.round)
        logger.sync()  # a state never knows of more rounds than the log
        self.progress.num_skipped += self.step.update.take_num_skipped()
        self.state.save(self.config, self.progress)

    def _resume(self) -> None:
        """Takes over the saved state, changing nothing on disk."""
        tensors, meta = self.state.restore(self.config)
        cursor = self.order.cursor(meta["cursor"])
        self.progress = PretrainProgress.restored(tensors, meta, cursor, self.device)

    def _num_bytes(self) -> int:
        """The most that a run saves: a model, a state, and what is being replaced."""
        return 7 * sum(p.nbytes for p in self.model.parameters())  # a state is three

    def _metrics(self) -> dict[str, Any]:
        progress, seconds = self.progress, max(self.progress.seconds, 1e-9)
        return {
            "held_out": progress.last,
            "held_out_before": progress.first,
            "rounds": progress.cursor.round,
            "epochs": progress.cursor.round / self.rounds_per_epoch,
            "rounds_per_second": progress.cursor.round / seconds,
            "tokens_per_second": progress.num_tokens / seconds,
            "train_seconds": progress.seconds,
            "backend": self.config.backend,
            "precision": self.config.precision,
            "seed": self.config.seed,
            "environment": run_environment(self.device),
        }


def scores_line(scores: dict[str, float]) -> str:
    """Scores on held-out text for the user."""
    words = "masked_words"
    line = (
        f"held-out masked words: accuracy {scores[f'{words}/accuracy']:.3f}, perplexity "
        f"{scores[f'{words}/perplexity']:,.1f}"
    )
    if "next_sentence/accuracy" in scores:
        line += f"; next sentence: accuracy {scores['next_sentence/accuracy']:.3f}"
    return line


def _check_finite(interval: IntervalMeans, num_skipped: int, round: int) -> None:
    """Stops a run where a loss or an update was not finite since the last line."""
    terms = [name for name, n in interval.num_nonfinite.items() if n and is_stopping(name)]
    if terms or num_skipped:
        what = terms[0] if terms else f"the gradients' norm of {num_skipped} updates"
        raise SbrrtError(
            f"round {round}: {what} is not finite, so training cannot go on; lower "
            "optimizer.learning_rate, or keep optimizer.clip_norm above 0"
        )


def _backbone_inputs(model: PretrainingModel) -> dict[str, int]:
    """What a run takes of its backbone besides weights, by a name for messages."""
    shape = json.dumps([asdict(model.config), model.encoder.pooling], sort_keys=True)
    return {
        "the backbone's config.json": zlib.crc32(shape.encode()),
        "the backbone's masked-word head": int(not model.is_fresh),
    }
