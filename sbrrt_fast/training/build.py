"""The parts of a run, from its configuration: model, data, device and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from tokenizers import Tokenizer

from sbrrt_fast._extension import emulates_bf16
from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.load import load_task
from sbrrt_fast.data.reader import nothing
from sbrrt_fast.data.store import MAX_LENGTH, TokenizedTask
from sbrrt_fast.data.task import Split
from sbrrt_fast.data.token_cache.cache import TokenCache
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import BackendError, ConfigError
from sbrrt_fast.model.fit import check_fit
from sbrrt_fast.model.heads import LinearHead
from sbrrt_fast.model.load_encoder import load_encoder
from sbrrt_fast.model.lora import add_lora
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.plain import why_not_plain
from sbrrt_fast.smart.bregman import Teacher
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.step.autograd_pass import AutogradModel
from sbrrt_fast.training.step.captured_step import CapturedStep
from sbrrt_fast.training.step.op_choice import (
    check_calls,
    choice_lines,
    log_evaluation_choice,
    longest_sequence,
    step_calls,
    written_out_why_not,
)
from sbrrt_fast.training.step.resting import Unfreezing
from sbrrt_fast.training.step.step import Step
from sbrrt_fast.training.step.written_out_pass import WrittenOut, layout_why_not

Log = Callable[[str], object]


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``; BackendError if a GPU is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "device 'cuda' is not available: torch sees no NVIDIA GPU; use --device cpu or auto"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def complete_config(
    config: RunConfig, log: Log = print, tick: Callable[[], object] = nothing
) -> RunConfig:
    """The configuration with the classes and class weights that its records leave to the training
    rows, which a model needs before it is built; see ``data.labels.complete_tasks``."""
    cache = TokenCache.of(config.token_cache)
    tasks = complete_tasks(config.tasks, config.data_dir, log, cache, tick)
    return replace(config, tasks=tasks)


def build_model(config: RunConfig, log: Log = print) -> tuple[MultiTaskModel, Tokenizer]:
    """The pretrained encoder with fresh heads and adapters, on the CPU, and its tokenizer.

    ``log`` takes a line on what is used of the checkpoint and what is left out.

    Raises:
        WeightsError: the backbone cannot be used, or a weight of it is not finite.
        ConfigError: there is nothing to train, or no library for adapters.
    """
    name, chosen = config.model.backbone, config.model
    dropout = {
        "hidden_dropout": chosen.hidden_dropout,
        "attention_dropout": chosen.attention_dropout,
    }
    encoder = load_encoder(name, chosen.pooling, **dropout)
    advice = "the checkpoint is damaged: download or convert it again, or use another backbone"
    check_loaded(encoder.state_dict(), encoder.source, advice)
    tokenizer = load_tokenizer(encoder.source)
    check_fit(tokenizer, encoder.config, config.tasks, encoder.source)
    log(f"backbone {name}: {encoder.origin.summary}")
    model = MultiTaskModel(encoder, config.tasks, config.model.pair_features, config.seed)
    if config.lora.rank:
        add_lora(encoder, config.lora, config.seed)
    model.freeze_heads(config.tasks.keys() - config.trained_tasks.keys())
    if config.mode == "pretrain":
        model.freeze_encoder()
    elif config.optimizer.frozen_layers:
        model.freeze_layers(config.optimizer.frozen_layers)
    _check_all_train(model, config)
    if config.round.task_weights == "uncertainty":
        model.learn_weights()
    if line := _dropout_line(model):
        log(line)
    return model, tokenizer


def _dropout_line(model: MultiTaskModel) -> str | None:
    """Which tasks' |u - v| dropout makes larger in training than on dev, and what to set."""
    rates = model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob
    dropped = (name for name, task in model.tasks.items() if task.train and task.dropout)
    heads = {name: model.heads[name] for name in dropped}
    names = [n for n, head in heads.items() if isinstance(head, LinearHead) and head.is_siamese]
    if not any(rates) or not names or model.pair_features != "concat_difference":
        return None
    flags = " ".join(f"--tasks.{name}.no-dropout" for name in names)
    return (
        f"{', '.join(names)}: dropout makes |u - v| larger in training than on dev; "
        f"{flags} may score better (docs/multitask.md)"
    )


def load_splits(
    config: RunConfig,
    tokenizer: Tokenizer,
    split: Split,
    max_positions: int,
    log: Log = print,
    *,
    tick: Callable[[], object] = nothing,
    progress: bool = True,
) -> dict[str, TokenizedTask]:
    """One split of every task, tokenised, or taken from ``config.token_cache``.

    Args:
        tick, progress: see ``data.load.load_task``.

    Raises:
        ConfigError: there is no folder for a relative file, or texts cannot be as short.
        DataError: a task names no file for the split, or its file cannot be read.
        OutputError: a folder that ``token_cache`` names cannot be written.
    """
    max_length, limit_name = config.model.max_length, MAX_LENGTH
    if max_positions < max_length:
        max_length, limit_name = max_positions, f"the backbone's {max_positions} positions"
    options = {"cache": TokenCache.of(config.token_cache), "tick": tick, "progress": progress}
    where = config.data_dir, tokenizer, max_length, log, limit_name
    return {
        name: load_task(name, task, split, *where, **options) for name, task in config.tasks.items()
    }


def fit_label_units(model: MultiTaskModel, train_tasks: Mapping[str, TokenizedTask]) -> None:
    """Sets the units of regression heads from the training labels (``model.label_units``)."""
    for name, task in train_tasks.items():
        if task.config.head == "regression":
            model.label_units(name).fit(task.labels)


def build_step(
    model: MultiTaskModel,
    teacher: Teacher | None,
    optimizer: torch.optim.AdamW,
    config: RunConfig,
    num_rounds: int,
    log: Log = print,
    max_length: int | None = None,
    ranks: Ranks = ONE_RANK,
) -> Step | CapturedStep:
    """The written-out step where it can run, captured on a GPU; else the one under autograd.

    Says why where it is the slower one, which op then takes what, and where bf16 saves no time.

    Args:
        max_length: tokens of the longest sequence it will meet; if None, as many as the model and
            the configuration allow.
        ranks: the processes that each compute a share of a round.

    Raises:
        BackendError: the named backend cannot run an op of this model, with each one's reason.
    """
    device = next(model.parameters()).device
    if max_length is None:
        max_length = min(config.model.max_length, model.config.max_position_embeddings)
    calls = step_calls(model, config, max_length)
    check_calls(calls, config.backend)
    reason = (
        layout_why_not(config, device)
        or why_not_plain(model)
        or written_out_why_not(calls, config.backend, device)
    )
    arguments = model, teacher, optimizer, config, num_rounds, ranks
    if line := Unfreezing(model, config.optimizer).late_line(num_rounds):
        log(line)
    if reason is None and device.type == "cuda" and config.graphs:
        return CapturedStep(Step(WrittenOut, *arguments), log)
    if config.precision == "bf16" and emulates_bf16(device):
        log("this CPU has no bf16 instructions: --precision fp32 is at least as fast here")
    if reason is not None and config.backend != "reference":
        log(f"the step runs under autograd, which is slower: {reason}")
        for line in choice_lines(calls, config.backend, device, known=reason):
            log(line)
    return Step(WrittenOut if reason is None else AutogradModel, *arguments)


def log_dev_choice(
    model: MultiTaskModel,
    train_tasks: Mapping[str, TokenizedTask],
    dev_tasks: Mapping[str, TokenizedTask],
    config: RunConfig,
    log: Log,
) -> None:
    """Says which op takes what in evaluations, where dev texts are longer than those to train on.

    Raises:
        BackendError: the named backend cannot run an op on them.
    """
    dev = dev_tasks.values()
    if longest_sequence(dev) > longest_sequence(train_tasks.values()):
        log_evaluation_choice(
            model,
            dev,
            lambda line: log(f"evaluation: {line}"),
            backend=config.backend,
            precision=config.precision,
            packed=config.layout == "packed",
        )


def _check_all_train(model: MultiTaskModel, config: RunConfig) -> None:
    """ConfigError for a task that is to be trained and of which nothing trains."""
    if any(p.requires_grad for p in model.encoder.parameters()):
        return
    what, mend = "mode 'pretrain'", "mode 'finetune'"
    if config.mode == "finetune":
        what = f"optimizer.frozen_layers {config.optimizer.frozen_layers}"
        mend = "fewer frozen layers"
    for name in config.trained_tasks:
        if not any(True for _ in model.heads[name].parameters()):
            raise ConfigError(
                f"tasks.{name}.head: '{model.tasks[name].head}' has no weights, so with {what} "
                f"there is nothing to train; use {mend} or another head"
            )
