"""A split with perturbed texts: its rows are the same ones, its tokens those of the new texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbrrt_fast.data.perturb import PERTURBATION_NAMES, perturb_text
from sbrrt_fast.data.perturbed import Perturbing, num_different, perturbed_task
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Example
from sbrrt_fast.errors import ConfigError
from tests.data.kept_tokens import MAX_LENGTH, TASK, load


@pytest.fixture
def dev(data, tokenizer) -> TokenizedTask:
    return load(data, tokenizer, split="dev")


def perturbed(task, name, tokenizer, num_rows=None, **settings):
    return perturbed_task(task, name, Perturbing((name,), **settings), tokenizer, 32, num_rows)


@pytest.mark.parametrize("name", PERTURBATION_NAMES)
@pytest.mark.parametrize("encoding", ["cross", "siamese"])
def test_texts_change_and_nothing_else(name, encoding, data, tokenizer):
    dev = load(data, tokenizer, task=replace(TASK, encoding=encoding), split="dev")
    changed = perturbed(dev, name, tokenizer, rate=0.5, seed=3)
    assert (changed.name, changed.split, changed.report) == (dev.name, dev.split, dev.report)
    assert list(changed.ids) == list(dev.ids) and torch.equal(changed.labels, dev.labels)
    examples = []
    for id, texts, old, label in zip(
        dev.ids, changed.texts, dev.texts, dev.labels.tolist(), strict=True
    ):
        for place, (text, before) in enumerate(zip(texts, old, strict=True)):
            seed = f"3/mine/dev/{id}/{place}"
            assert text == perturb_text(before, name, rate=0.5, seed=seed)
        examples.append(Example(id, texts, label))
    built = TokenizedTask.build("mine", dev.config, "dev", examples, tokenizer, MAX_LENGTH)
    assert torch.equal(changed.tokens, built.tokens) and torch.equal(changed.starts, built.starts)


def test_a_row_changes_in_the_same_way_wherever_it_is(dev, tokenizer):
    whole = perturbed(dev, "typos", tokenizer, rate=1.0)
    few = perturbed(dev, "typos", tokenizer, num_rows=2, rate=1.0)
    assert few.num_examples == len(few.labels) == 2 and list(few.texts) == list(whole.texts)[:2]
    for other in (
        perturbed(replace(dev, name="other"), "typos", tokenizer, rate=1.0),
        perturbed(replace(dev, split="test"), "typos", tokenizer, rate=1.0),
        perturbed(dev, "typos", tokenizer, rate=1.0, seed=1),
    ):
        assert list(other.texts) != list(whole.texts)


def test_rows_with_other_tokens_are_counted(dev, tokenizer):
    assert num_different(dev, perturbed(dev, "typos", tokenizer, rate=0.0)) == 0
    assert num_different(dev, perturbed(dev, "case", tokenizer)) == 0  # it lower-cases
    assert num_different(dev, perturbed(dev, "word_drop", tokenizer, rate=1.0)) == 4
    one = [list(texts) for texts in dev.texts]
    one[2][1] += " film"
    other = replace(perturbed(dev, "case", tokenizer), texts=[tuple(texts) for texts in one])
    rebuilt = perturbed(other, "typos", tokenizer, rate=0.0)
    assert num_different(dev, rebuilt) == 1
    assert num_different(dev, perturbed(other, "typos", tokenizer, num_rows=2, rate=0.0)) == 0


def test_settings_that_there_are_not():
    with pytest.raises(ConfigError, match="perturb_rate: must be from 0 to 1, got 2"):
        Perturbing(("typos",), 2.0)
    with pytest.raises(ConfigError, match="perturb: 'all' is none of typos"):
        Perturbing(("all",))
