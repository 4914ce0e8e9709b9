"""The settings of ``sbrrt-fast pretrain``, section by section; the only source of its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sbrrt_fast.data.task import Split, TaskConfig
from sbrrt_fast.settings import Device, Precision


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are to be predicted, and what the encoder sees in their place.

    [CLS], [SEP] and other special tokens never are. The rest of the chosen tokens, 10% by default,
    stays as it is.

    Attributes:
        share: probability of each token, or word, to be chosen.
        mask: share of the chosen tokens that become the mask token.
        random: share of the chosen tokens that become a random token.
        whole_words: choose words instead of tokens, all pieces of a word together; the tokenizer
            has to be a WordPiece.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = False


@dataclass(frozen=True)
class PretrainOptimizerConfig:
    """AdamW with warm-up and decay.

    Attributes:
        learning_rate: peak learning rate of the encoder.
        head_learning_rate: peak learning rate of the heads; the encoder's when None.
        weight_decay: decoupled; never applied to biases and LayerNorm.
        betas, eps: AdamW's.
        warmup: fraction of all rounds in which the rate rises linearly from 0.
        decay: ``linear`` to 0 at the last round, ``cosine`` likewise, or ``constant``.
        clip_norm: largest global gradient norm; 0 does not clip.
    """

    learning_rate: float = 5e-5
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: float = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float = 1.0


@dataclass(frozen=True)
class HeldOutConfig:
    """Text that is not trained on, whose masked words measure the model.

    Attributes:
        source: ``dev`` (the tasks' dev splits), ``share`` (of the text at hand), ``none``, or
            ``auto``: ``dev`` with tasks whose dev split is not trained on, else ``share``.
        share: of the sequences, where they are a share.
        most: sequences at most, chosen by the seed.
    """

    source: Literal["auto", "dev", "share", "none"] = "auto"
    share: float = 0.05
    most: int = 2000


@dataclass(frozen=True)
class PretrainLogConfig:
    """A run's logs, evaluations and saved states, and how often.

    Attributes:
        every: rounds between two lines of ``metrics.jsonl``.
        tensorboard: write event files.
        evaluate_every: rounds between two evaluations on held-out text, each of which saves the
            model; once per epoch when None.
        state_every: rounds between two saved states for ``--resume``; never when 0.
    """

    every: int = 20
    tensorboard: bool = True
    evaluate_every: int | None = None
    state_every: int = 250


@dataclass(frozen=True)
class PretrainSettings:
    """One run of further pre-training.

    A configuration checks itself, with the types and ranges of a YAML file's values. A text may
    stand for a path, and a list for a tuple.

    Attributes:
        tasks: tasks whose texts to train on; in YAML also a mapping with records of your own.
        data_dir: folder of relative task files; when None, built-in tasks read the built-in sample.
        splits: splits of the tasks to train on; only texts are read, so a test split may be
            without labels.
        text: text files to train on, a sentence or paragraph per line, with blank lines between
            documents; instead of ``tasks``.
        output: folder of the run; the model is in ``last``.
        backbone: ``minilm`` (all-MiniLM-L6-v2), a Hugging Face BERT folder, or a hub id.
        max_length: longest sequence in tokens; longer texts are taken in pieces.
        hidden_dropout: dropout on hidden states; the checkpoint's value when None.
        attention_dropout: dropout on attention probabilities; the checkpoint's value when None.
        next_sentence: also predict whether two sentences belong together: the two of a task's
            pair, or consecutive lines of a document.
        batch_size: sequences per round.
        rounds: number of rounds; takes precedence over ``epochs``.
        epochs: number of times that each sequence is taken.
        head_rounds: rounds at the start in which the heads alone are trained, since a fresh head's
            first gradients would only disturb the encoder; when None a tenth of all where the
            backbone has no masked-word head, else 0.
        seed: seeds fresh heads, order, masks and dropout.
        backend: implementation of the ops: ``auto``, ``reference``, ``cpu``, ``triton``, ``cuda``.
        precision: ``fp32``, or ``bf16`` matrix products with fp32 weights.
        device: ``auto`` takes a GPU if there is one.
        resume: continue the run in ``output`` from its last state.
        overwrite: replace a run that ``output`` holds already.
        token_cache: where tokens of task files are kept from run to run, as in training.

    Raises:
        ConfigError: naming the dotted key of the first value that cannot be used.
    """

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    data_dir: Path | None = None
    splits: tuple[Split, ...] = ("train",)
    text: tuple[Path, ...] = ()
    output: Path = Path("runs/pretrained")
    backbone: str = "minilm"
    max_length: int = 128
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    next_sentence: bool = False
    batch_size: int = 64
    rounds: int | None = None
    epochs: int = 1
    head_rounds: int | None = None
    seed: int = 0
    backend: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    precision: Precision = "fp32"
    device: Device = "auto"
    resume: bool = False
    overwrite: bool = False
    token_cache: str = "auto"
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optimizer: PretrainOptimizerConfig = field(default_factory=PretrainOptimizerConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    log: PretrainLogConfig = field(default_factory=PretrainLogConfig)
