"""A split with perturbed texts: other tokens, the same rows and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from sbrrt_fast.data.perturb import RATE, SEED, Perturbation, check_perturbations, perturb_text
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Example


@dataclass(frozen=True)
class Perturbing:
    """Which perturbations, how often, and what they draw.

    Attributes:
        names: of ``data.perturb.PERTURBATION_NAMES``, each once.
        rate: the probability that a word, mark or gap is changed.
        seed: with a row's task, split and id it decides how the row is changed.
    """

    names: tuple[Perturbation, ...]
    rate: float = RATE
    seed: int = SEED

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be used."""
        check_perturbations(self.names, self.rate)


def perturbed_task(
    task: TokenizedTask,
    name: Perturbation,
    settings: Perturbing,
    tokenizer: Tokenizer,
    max_length: int,
    num_rows: int | None = None,
) -> TokenizedTask:
    """The split with perturbed texts, tokenised; it must have been loaded with its texts.

    Args:
        max_length: tokens after which a sequence is cut, as in ``task``.
        num_rows: take the first rows alone; all if None.
    """
    examples = islice(_perturbed(task, name, settings), num_rows)
    built = TokenizedTask.build(task.name, task.config, task.split, examples, tokenizer, max_length)
    labels = task.labels if task.labels is None else task.labels[:num_rows]
    return replace(built, labels=labels, report=task.report)


def num_different(task: TokenizedTask, other: TokenizedTask) -> int:
    """Rows of ``other``, the first ones of a split or all, whose tokens differ from the split's."""
    a, b = task.arrays, other.arrays
    starts = zip(a["starts"], a["starts"][1:], b["starts"], b["starts"][1:], strict=False)
    same = [np.array_equal(a["tokens"][i:j], b["tokens"][k:m]) for i, j, k, m in starts]
    per_row = np.reshape(same, (-1, task.config.sequences_per_example))
    return int((~per_row.all(axis=1)).sum())


def _perturbed(task: TokenizedTask, name: Perturbation, settings: Perturbing) -> Iterator[Example]:
    assert task.texts is not None, f"task '{task.name}' was loaded without its texts"
    for id, texts in zip(task.ids, task.texts, strict=True):
        seed = f"{settings.seed}/{task.name}/{task.split}/{id}"
        yield Example(
            id,
            tuple(
                perturb_text(text, name, rate=settings.rate, seed=f"{seed}/{place}")
                for place, text in enumerate(texts)
            ),
        )
