"""A small random encoder, small data folders and runs that several test files share."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sbrrt_fast.cli import main
from sbrrt_fast.data.sample import write_sample
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.hub import save_encoder
from sbrrt_fast.training.trainer import Trainer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD = re.compile(r"[a-z]+")


@functools.cache
def sample_words() -> tuple[str, ...]:
    """The words of the built-in sample in lower case, in alphabetical order."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(folder)
        texts = [path.read_text(encoding="utf-8") for path in Path(folder).iterdir()]
    without_ids = re.sub(r"\b[0-9a-f]{25}\b", " ", " ".join(texts).lower())
    return tuple(sorted(set(WORD.findall(without_ids))))


def tiny_tokenizer() -> Tokenizer:
    """A lower-case WordPiece tokenizer: words of the sample, letters for others, never [UNK]."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = dict.fromkeys([*characters, *(f"##{c}" for c in characters), *sample_words()])
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tiny_backbone(
    directory: Path,
    *,
    hidden_size: int = 32,
    num_layers: int = 2,
    head_dim: int = 32,
    intermediate_size: int | None = None,
    pooling: str = "mean",
    max_length: int = 128,
    seed: int = 0,
) -> Path:
    """Writes a Hugging Face BertModel folder with a random encoder and returns it.

    Args:
        directory: folder to write; it may not hold anything else.
        intermediate_size: twice the hidden size if None.
        max_length: longest sequence in tokens; longer texts are truncated.
        seed: of the weights; the global random state is left alone.
    """
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // head_dim,
        intermediate_size=intermediate_size or 2 * hidden_size,
        max_position_embeddings=max_length,
        initializer_range=0.1,  # at 0.02 a narrow encoder hardly tells texts apart
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = MiniBert(config, pooling)
    save_encoder(encoder, directory, tokenizer)
    return directory


def small_sample(directory: Path, num_rows: int = 24) -> Path:
    """Writes the built-in sample's files cut to their first rows; returns the folder."""
    write_sample(directory)
    for path in Path(directory).iterdir():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[: num_rows + 1]), encoding="utf-8")
    return Path(directory)


def train_tiny(directory: Path, *flags: str) -> Path:
    """Trains a tiny encoder for a few rounds by ``sbrrt-fast train``; returns the run's folder.

    The data are ``directory/data``, the encoder ``directory/backbone``; either is written if it is
    not there. Later ``flags`` win.
    """
    data, backbone, run = (Path(directory) / name for name in ("data", "backbone", "run"))
    if not data.exists():
        small_sample(data)
    if not backbone.exists():
        tiny_backbone(backbone)
    arguments = ["--data-dir", str(data), "--backbone", str(backbone), "--output", str(run)]
    arguments += ["--rounds", "3", "--round.batch-size", "4", "--log.no-tensorboard"]
    assert main(["train", *arguments, *flags]) == 0
    return run


def config_file(folder: Path, text: str) -> Path:
    """Writes a configuration's YAML and returns its path."""
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read_log(run: Path) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Ends a run as a kill does: nothing in the trainer handles it."""


def kill_in_round(trainer: Trainer, index: int) -> None:
    """Trains until ``index`` rounds are done; the next one ends the run as a kill does."""
    original = trainer.step.round_of

    def round_or_kill(works, done, report):
        if done == index:
            raise Killed
        return original(works, done, report)

    trainer.step.round_of = round_or_kill
    with pytest.raises(Killed):
        trainer.run()
