"""Small pre-training runs and text files that several test files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.pretraining.batches import Batches, MaskedBatch
from sbrrt_fast.pretraining.corpus import CorpusBuilder
from sbrrt_fast.pretraining.masking import Masking
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.pretraining.random_words import RandomRows
from sbrrt_fast.pretraining.sentences import Sentences
from sbrrt_fast.pretraining.settings import MaskingConfig
from sbrrt_fast.pretraining.vocabulary import Vocabulary
from tests.helpers import small_sample, tiny_backbone

LENGTHS = [(9, 4), (6, 6), (3, 12), (11, 5), (7, 2), (30, 30)]  # of the two texts of some pairs


def pretrain(folder: Path, *flags: str) -> Path:
    """Pre-trains a tiny encoder on the sample's tasks for a few rounds; returns the run's folder.

    Data and encoder are in ``folder/data`` and ``folder/backbone``; later ``flags`` win.
    """
    run = folder / "run"
    assert main(["pretrain", *inputs(folder), "--output", str(run), *flags]) == 0
    return run


def inputs(folder: Path) -> list[str]:
    """Flags of a short run; writes data and encoder where they are not there."""
    data, backbone = folder / "data", folder / "backbone"
    if not data.exists():
        small_sample(data)
    if not backbone.exists():
        tiny_backbone(backbone)
    arguments = ["--tasks", "sst", "para", "sts", "--data-dir", str(data)]
    arguments += ["--backbone", str(backbone), "--rounds", "6", "--batch-size", "8"]
    return [*arguments, "--log.every", "2", "--log.no-tensorboard"]


def tiny_model(folder: Path, *, next_sentence: bool = False, **fields) -> PretrainingModel:
    """A random model without dropout; ``fields`` are those of ``tiny_backbone``."""
    model = PretrainingModel(MiniBert.from_folder(tiny_backbone(folder, **fields)), next_sentence)
    model.set_dropout(0.0, 0.0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # vectors that are not all alike
        for parameter in model.cls.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def tiny_batch(
    folder: Path, *, next_sentence: bool = False, lengths=LENGTHS, **masking
) -> MaskedBatch:
    """A batch of random words of the model that ``tiny_model`` wrote to ``folder``."""
    vocabulary = Vocabulary.of(load_tokenizer(folder), folder)
    draw = np.random.default_rng(0)
    builder = CorpusBuilder(60, 60)
    texts = [[draw.choice(vocabulary.words, n).astype(np.int32) for n in pair] for pair in lengths]
    builder.add_texts(texts if next_sentence else ([x] for pair in texts for x in pair), 0)
    corpus = builder.corpus()
    masker = Masking(MaskingConfig(**{"share": 0.3, **masking}), vocabulary)
    batches = Batches(Sentences(corpus, 40, next_sentence), masker)
    return batches.batch(np.arange(corpus.num_rows), RandomRows(5))
