"""The settings of a run, section by section. These dataclasses are the only source of defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
PairFeatures = Literal["concat_difference", "concat"]


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and heads.

    Attributes:
        backbone: ``minilm`` (all-MiniLM-L6-v2), a folder of a Hugging Face encoder, or a hub id.
        pooling: ``cls`` (tanh pooler), ``cls_token`` ([CLS] as it is), ``mean``, or what the
            ``checkpoint`` was trained with.
        hidden_dropout: dropout on hidden states; the checkpoint's value when None.
        attention_dropout: dropout on attention probabilities; the checkpoint's value when None.
        max_length: longest sequence in tokens; longer texts are truncated, and counted openly.
        pair_features: features of a siamese pair for ``classes``, ``binary`` and ``regression``
            heads: ``[u, v, |u - v|]`` or ``[u, v]``.
    """

    backbone: str = "minilm"
    pooling: Literal["checkpoint", "cls", "cls_token", "mean"] = "checkpoint"
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    max_length: int = 512
    pair_features: PairFeatures = "concat_difference"


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685), by the library peft: they and the heads train alone.

    Saved models have the adapters merged into their weights.

    Attributes:
        rank: r, of each adapter's product; 0 trains the whole encoder, without adapters.
        alpha: an adapter's result is multiplied by alpha / rank.
        dropout: on what goes into an adapter of BERT's layers.
        targets: the matrices that get one, in all layers: ``query``, ``key``, ``value``, ``dense``
            (all others, the pooler's too) and ``word_embeddings``.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")


@dataclass(frozen=True)
class SmartConfig:
    """SMART's smoothness regulariser (arXiv 1911.03437, Algorithm 1), one mechanism.

    ``preset`` fills every field left at None; see ``sbrrt_fast.smart.presets``.

    Attributes:
        weight: lambda_s, the factor on R_s; 0 turns the regulariser off.
        preset: ``paper``, ``mtdnn`` or ``adversarial``.
        sigma: standard deviation of the initial noise.
        step_size: eta, may be ``inf`` (the gradient direction alone).
        num_steps: T_x >= 1 ascent steps.
        normalize_gradient: divide the gradient by its norm before the step.
        projection: ``ball`` clips to the radius, ``normalize`` scales to it.
        radius: epsilon, the size of the perturbation.
        norm: ``inf`` or ``2``.
        level: norms per ``token`` or per ``sequence``.
        perturb_special: whether [CLS] and [SEP] are perturbed; padding never is.
        gradient: ``tangent`` (exact first-order limit) or ``finite`` (at x + noise).
        branch: how R_s is evaluated: ``forward`` at x + delta, ``linear`` from J delta, or
            ``auto``: ``linear`` where delta is below the compute dtype's resolution.
        shared_dropout: clean, adversarial and teacher passes share their dropout masks.
    """

    weight: float = 0.0
    preset: Literal["paper", "mtdnn", "adversarial"] = "adversarial"
    sigma: float | None = None
    step_size: float | None = None
    num_steps: int | None = None
    normalize_gradient: bool | None = None
    projection: Literal["ball", "normalize"] | None = None
    radius: float | None = None
    norm: Literal["inf", "2"] | None = None
    level: Literal["token", "sequence"] | None = None
    perturb_special: bool | None = None
    gradient: Literal["tangent", "finite"] = "tangent"
    branch: Literal["auto", "forward", "linear"] = "auto"
    shared_dropout: bool = True


@dataclass(frozen=True)
class BregmanConfig:
    """Bregman proximal point with a momentum teacher (arXiv 1911.03437, section 3.2).

    Attributes:
        weight: mu, the factor on D_Breg; 0 turns the teacher off.
        beta: momentum of the teacher, theta~ <- beta theta~ + (1 - beta) theta.
        schedule: ``constant``, or ``paper``: .99 for the first 10% of steps, then .999.
    """

    weight: float = 0.0
    beta: float = 0.95
    schedule: Literal["constant", "paper"] = "constant"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and decay.

    Attributes:
        learning_rate: peak learning rate of the encoder.
        head_learning_rate: peak learning rate of the heads; the encoder's when None.
        weight_decay: decoupled; never applied to biases and LayerNorm.
        betas, eps: AdamW's.
        warmup: fraction of all optimiser steps in which the rate rises linearly from 0.
        decay: ``linear`` to 0 at the last step, ``cosine`` likewise, or ``constant``.
        clip_norm: largest global gradient norm; 0 does not clip.
        layer_decay: factor on the encoder's rate per layer from the top: layer l of L (from 0) has
            layer_decay^(L - 1 - l), the embeddings layer_decay^L, pooler and heads 1.
        surgery: ``pcgrad`` projects the tasks' gradients of a joint update onto the normal plane of
            those that they conflict with (arXiv 2001.06782); it needs ``round.update: joint``.
        frozen_layers: the embeddings and so many of the lowest layers stay as they are loaded; 0
            trains all.
        unfreeze_every: rounds after which one more layer trains, from the top, the embeddings last;
            heads and pooler always train. 0 trains all from the first round on.
    """

    learning_rate: float = 1e-4
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    surgery: Literal["none", "pcgrad"] = "none"
    frozen_layers: int = 0
    unfreeze_every: int = 0


@dataclass(frozen=True)
class AverageConfig:
    """An average of the weights over the run, which is evaluated and saved in their place.

    Attributes:
        weights: ``none``; ``swa``, the mean of the weights after each round from ``start`` on
            (stochastic weight averaging); or ``teacher``, the momentum teacher's (``bregman``).
        start: fraction of all rounds after which the average is used; before, the weights are.
        every: rounds between two weights of the mean.
    """

    weights: Literal["none", "swa", "teacher"] = "none"
    start: float = 0.5
    every: int = 1


@dataclass(frozen=True)
class RoundConfig:
    """Which batches a round takes and when the optimiser steps.

    Attributes:
        batch_size: examples per task and round, on all ranks together.
        accumulate: parts in which a rank computes its share of a batch, one after the other, where
            it does not fit into memory at once. The result is the same up to the order of sums.
        update: ``per_task`` steps after every task's batch (the paper's loop); ``joint`` steps
            once on the round's summed loss.
        epoch_task: an epoch is ``len(this task) // batch_size`` rounds; the smallest task if None.
        schedule: ``round_robin`` (one batch of every task per round), ``proportional`` or
            ``annealed`` (as many batches per round as there are tasks, drawn by task size).
        task_weights: ``fixed`` weighs tasks by their ``weight`` alone; ``uncertainty`` also by a
            variance that each task learns (arXiv 1705.07115).
    """

    batch_size: int = 8
    accumulate: int = 1
    update: Literal["per_task", "joint"] = "per_task"
    epoch_task: str | None = None
    schedule: Literal["round_robin", "proportional", "annealed"] = "round_robin"
    task_weights: Literal["fixed", "uncertainty"] = "fixed"


@dataclass(frozen=True)
class LogConfig:
    """A run's logs, evaluations and saved states, and how often.

    Attributes:
        every: rounds between two lines of ``metrics.jsonl``.
        gain: also report the adversarial gain at these rounds (one more forward each).
        tensorboard: write event files.
        evaluate_every: rounds between two evaluations; once per epoch when None.
        dev_rows: evaluate during training on the first N rows of each dev split; all when None.
            The final evaluation always uses all rows.
        state_every: rounds between two saved states for ``--resume`` (weights, optimiser, teacher,
            cursor); never when 0.
        keep_state: keep the state of a run that has ended, from which it can be extended.
        keep_best: how many of the best evaluated models to keep, the best included.
        keep_last: how many of the latest evaluated models to keep, the last included.
    """

    every: int = 20
    gain: bool = True
    tensorboard: bool = True
    evaluate_every: int | None = None
    dev_rows: int | None = None
    state_every: int = 250
    keep_state: bool = True
    keep_best: int = 1
    keep_last: int = 1


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """When a run ends before its last round.

    Attributes:
        patience: end after this many evaluations in a row without a better overall dev score;
            never when None.
        min_delta: a score is better if it is higher than the best one by more than this.
    """

    patience: int | None = None
    min_delta: float = 0.0


@dataclass(frozen=True)
class RunSettings:
    """One training run; ``configs/*.yaml`` hold the recipes.

    A configuration checks itself, with the types and ranges of a YAML file's values. A text may
    stand for a path, and a list for a tuple.

    Attributes:
        recipe: name of the recipe, for tables and messages.
        data_dir: folder of relative task files; when None, built-in tasks read the built-in sample,
            and others need absolute paths.
        output: folder of the run.
        rounds: number of rounds; takes precedence over ``epochs``.
        epochs: number of epochs (see ``round.epoch_task``).
        seed: seeds head weights, data order, dropout and noise.
        mode: ``finetune`` trains everything, ``pretrain`` only the heads (frozen encoder).
        backend: implementation of the ops: ``auto``, ``reference``, ``cpu``, ``triton``, ``cuda``.
        layout: ``packed`` computes no padding, ``padded`` is the ordinary batch; same numbers.
        precision: ``fp32``, or ``bf16`` matrix products with fp32 weights.
        device: ``auto`` takes a GPU if there is one.
        resume: continue the run in ``output`` from its last state.
        rank_timeout: with several processes (torchrun), seconds after which one that neither goes
            on nor waits for the others hangs, and ends the run for all.
        overwrite: replace a run that ``output`` holds already.
        skip_final_evaluation: do not score all dev rows at the end. With ``log.dev_rows`` the last
            model is still scored on those; without, it is saved unscored.
        extend: how ``resume`` takes a finished run on to more rounds: ``exact`` refuses what would
            not be the longer run from its start; ``stretched`` goes on with the learning rates
            that the longer run has from there.
        extended: rounds after which the run was extended with stretched schedules; training
            writes it.
        profile: print at the end where a round's time and memory went, against the floor.
        on_nonfinite: ``stop`` ends the run at the next logging step after a loss or the gradients'
            norm was not finite; ``skip`` leaves out the updates whose gradients' norm was not, and
            counts them. Weights that are not finite are never saved.
        graphs: on a GPU, capture the step's work as CUDA graphs and replay them.
        token_cache: where tokens of task files are kept from run to run, in memory that all
            processes share: ``auto`` is a folder in the user's cache, for files of 1 MB and more;
            ``none``; or a folder, for files of any size.
        report_to: further places that a run is logged to: ``wandb``, or ``module:Class`` for a
            ``Callback`` of your own (``sbrrt_fast.training.callbacks``).
        tasks: the tasks, in round order.

    Raises:
        ConfigError: naming the dotted key of the first value that cannot be used.
    """

    recipe: str = "custom"
    data_dir: Path | None = None
    output: Path = Path("runs/latest")
    rounds: int | None = None
    epochs: int = 1
    seed: int = 0
    mode: Literal["finetune", "pretrain"] = "finetune"
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    layout: Literal["packed", "padded"] = "packed"
    precision: Precision = "fp32"
    device: Device = "auto"
    resume: bool = False
    rank_timeout: float = 45.0
    overwrite: bool = False
    skip_final_evaluation: bool = False
    extend: Literal["exact", "stretched"] = "exact"
    extended: tuple[int, ...] = ()
    profile: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    graphs: bool = True
    token_cache: str = "auto"
    report_to: tuple[str, ...] = ()
    tasks: dict[str, TaskConfig] = field(
        default_factory=lambda: {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    smart: SmartConfig = field(default_factory=SmartConfig)
    bregman: BregmanConfig = field(default_factory=BregmanConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    log: LogConfig = field(default_factory=LogConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    @property
    def trained_tasks(self) -> dict[str, TaskConfig]:
        """The tasks that are trained; the others are only evaluated."""
        return {name: task for name, task in self.tasks.items() if task.train}
