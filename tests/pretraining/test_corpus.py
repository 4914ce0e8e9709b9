"""Text as rows: documents of files, texts of tasks, and pairs that belong together or do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import DataError
from sbrrt_fast.pretraining.corpus import Corpus, CorpusBuilder
from sbrrt_fast.pretraining.random_words import RandomRows
from sbrrt_fast.pretraining.read_text import read_files, read_tasks
from sbrrt_fast.pretraining.sentences import IS_NEXT, IS_RANDOM, Sentences, trimmed
from tests.helpers import small_sample, tiny_tokenizer

WORDS = "abcdefghijklmnopqrstuvwxyz"


def text_of(corpus: Corpus, row: int) -> str:
    return tiny_tokenizer().decode(corpus.between(*corpus.rows[row]).tolist()).replace(" ", "")


def read(tmp_path: Path, text: str, max_line: int = 4, max_row: int = 8) -> Corpus:
    """The corpus of a file in which a letter is a token."""
    (tmp_path / "x.txt").write_text(text)
    builder = CorpusBuilder(max_line, max_row)
    return read_files((tmp_path / "x.txt",), tiny_tokenizer(), builder)


def test_blank_lines_are_between_documents(tmp_path):
    corpus = read(tmp_path, "a b\nc d\n\n \ne f\n", max_row=8)
    assert [text_of(corpus, i) for i in range(corpus.num_rows)] == ["abcd", "ef"]
    assert corpus.documents.tolist() == [0, 1] and corpus.has_pair.tolist() == [True, False]


def test_rows_are_filled_with_neighbouring_lines(tmp_path):
    corpus = read(tmp_path, "a b c\nd e f\ng h\ni j k\n")
    assert [text_of(corpus, i) for i in range(corpus.num_rows)] == ["abcdefgh", "ijk"]
    assert np.diff(corpus.rows).ravel().tolist() == [3, 1]


def test_no_token_of_a_long_line_is_lost(tmp_path):
    corpus = read(tmp_path, " ".join(WORDS) + "\n")
    assert "".join(text_of(corpus, i) for i in range(corpus.num_rows)) == WORDS
    assert np.diff(corpus.starts).max() <= 4
    assert max(len(text_of(corpus, i)) for i in range(corpus.num_rows)) <= 8


@pytest.mark.parametrize("as_pairs", [False, True])
def test_texts_of_tasks_are_rows(tmp_path, as_pairs):
    names = ("sst", "sts")
    data = small_sample(tmp_path / "data")
    tasks = {name: BUILTIN_TASKS[name] for name in names}
    tasks["sts"] = replace(tasks["sts"], encoding="cross", head="regression")
    config = RunConfig(tasks=tasks, data_dir=data, token_cache="none")
    arguments = config, ("train", "test"), tiny_tokenizer(), 128, CorpusBuilder(126, 126)
    corpus = read_tasks(*arguments, as_pairs=as_pairs, log=lambda line: None)
    assert corpus.num_rows == (2 * (24 + 24) if as_pairs else 2 * (24 + 48))
    assert corpus.has_pair.sum() == (48 if as_pairs else 0)
    lines = (data / "sts-train.csv").read_text().splitlines()[1].split("\t")
    row = np.flatnonzero(corpus.sources == 1)[0]
    expected = (lines[2] + lines[3] if as_pairs else lines[2]).lower().replace(" ", "")
    assert text_of(corpus, row) == expected


def documents(num_documents: int, num_lines: int = 5) -> Corpus:
    """Every line has a token of its own three times: 10 d + l + 1 for line l of document d."""
    builder = CorpusBuilder(8, 100)
    for d in range(num_documents):
        numbers = (10 * d + 1 + line for line in range(num_lines))
        builder.add_document([np.full(3, x, dtype=np.int32) for x in numbers], 0)
    return builder.corpus()


def test_half_of_the_pairs_belong_together():
    sentences, splits, labels = Sentences(documents(20), 100, True), [], []
    for round in range(200):
        for row in range(20):
            first, second, label = sentences.row(row, RandomRows(0, round), row)
            one, two = np.unique(first), np.unique(second)
            assert one.min() == 10 * row + 1 and (np.diff(one) == 1).all()
            if label == IS_NEXT:
                assert two.tolist() == list(range(one.max() + 1, 10 * row + 6))
            else:
                assert label == IS_RANDOM
                document = (two.min() - 1) // 10
                assert document != row and two.max() == 10 * document + 5
            splits.append(len(one))
            labels.append(label)
    assert abs(np.mean(labels) - 0.5) < 5 * 0.5 / len(labels) ** 0.5
    counts = np.bincount(splits)[1:] / len(splits)
    assert len(counts) == 4 and abs(counts - 0.25).max() < 5 * (0.25 * 0.75 / len(splits)) ** 0.5


def test_random_segments_come_from_all_other_documents_alike():
    sentences, found = Sentences(documents(6), 100, True), []
    for round in range(3000):
        _, second, label = sentences.row(2, RandomRows(0, round), 0)
        if label == IS_RANDOM:
            found.append((second[0] - 1) // 10)
    shares = np.bincount(found, minlength=6) / len(found)
    assert shares[2] == 0
    assert abs(np.delete(shares, 2) - 0.2).max() < 5 * (0.2 * 0.8 / len(found)) ** 0.5


def test_pairs_are_a_function_of_seed_round_and_row():
    sentences = Sentences(documents(20), 100, True)
    one, two = (sentences.row(4, RandomRows(1, 2), 9) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))
    others = [sentences.row(4, RandomRows(1, 2), place) for place in range(10, 30)]
    assert len({(o.label, len(o.first)) for o in others}) > 3


def test_rows_of_one_line_have_no_next_sentence():
    builder = CorpusBuilder(8, 8)
    builder.add_texts([[np.array([1, 2])], [np.array([3]), np.array([4])]] * 2, 0)
    sentences = Sentences(builder.corpus(), 8, True)
    assert [sentences.row(i, RandomRows(0), i).label is None for i in range(4)] == [
        *(True, False),
        *(True, False),
    ]


@pytest.mark.parametrize("corpus", [documents(1), documents(5, num_lines=1)])
def test_next_sentences_need_two_documents_of_several_lines(corpus):
    with pytest.raises(DataError, match="next_sentence: needs text in which sentences follow"):
        Sentences(corpus, 100, True)


@pytest.mark.parametrize("lengths", [(10, 2), (2, 10), (10, 10), (4, 5), (3, 3)])
@pytest.mark.parametrize("most", [7, 8])
def test_the_longer_segment_is_cut(lengths, most):
    whole = [np.arange(n) for n in lengths]
    cut = trimmed(*whole, most)
    assert sum(map(len, cut)) == min(most, sum(lengths))
    for x, y in zip(cut, whole, strict=True):
        assert np.array_equal(x, y[: len(x)])
        assert len(x) >= min(len(y), most // 2)
