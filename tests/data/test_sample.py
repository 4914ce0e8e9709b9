from __future__ import annotations

import hashlib
import threading
from collections import Counter
from pathlib import Path

import pytest

from sbrrt_fast.data import sample
from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.sample import NUM_ROWS, SAMPLE_VERSION, sample_dir, write_sample
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import DataError, OutputError

SPLITS = ("train", "dev", "test")
FILES = sorted(file for task in BUILTIN_TASKS.values() for file in task.files.values())
DIGEST_OF_VERSION = {1: "c6ae7652482e9e95ec2d2a4fd779bbe9ce5609453f0ce2e40b2bcb48215ffaf7"}


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    return folder


def rows(folder, name, split):
    task = BUILTIN_TASKS[name]
    return read_split(folder / task.files[split], task, split, name)[0]


def test_same_seed_same_bytes_other_seed_other_rows(folder, tmp_path):
    write_sample(tmp_path / "same" / "nested", seed=0)
    write_sample(tmp_path / "other", seed=1)
    first = contents(folder)
    assert sorted(first) == FILES
    assert contents(tmp_path / "same" / "nested") == first
    other = contents(tmp_path / "other")
    assert all(other[file] != first[file] for file in FILES)


def test_a_changed_sample_has_a_new_version(folder):
    digest = hashlib.sha256(b"".join(raw for _, raw in sorted(contents(folder).items())))
    assert DIGEST_OF_VERSION.get(SAMPLE_VERSION) == digest.hexdigest(), (
        "the sample's rows changed: raise SAMPLE_VERSION, so that cached folders are not reused"
    )


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_row_counts_and_no_texts_twice(folder, name):
    splits = {split: rows(folder, name, split) for split in SPLITS}
    assert {split: len(part) for split, part in splits.items()} == NUM_ROWS
    everything = [example for part in splits.values() for example in part]
    assert len({frozenset(example.texts) for example in everything}) == len(everything)
    assert len({example.id for example in everything}) == len(everything)
    assert all(len(set(example.texts)) == len(example.texts) for example in everything)


@pytest.mark.parametrize(
    ("file", "header", "first_fields"),
    [
        ("ids-sst-train.csv", "\tid\tsentence\tsentiment", "0\t"),
        ("ids-sst-test-student.csv", "0\t\tid\tsentence", "1\t0.0\t"),
        ("ids-cfimdb-dev.csv", "\tid\tsentence\tsentiment", "0\t"),
        ("ids-cfimdb-test-student.csv", "0\t\tid\tsentence", "1\t0.0\t"),
        ("quora-train.csv", "\tid\tsentence1\tsentence2\tis_duplicate", "0\t"),
        ("quora-test-student.csv", "0\tid\tsentence1\tsentence2", "0\t"),
        ("sts-dev.csv", "\tid\tsentence1\tsentence2\tsimilarity", "0\t"),
        ("sts-test-student.csv", "0\tid\tsentence1\tsentence2", "0\t"),
    ],
)
def test_files_look_like_the_course_files(folder, file, header, first_fields):
    lines = (folder / file).read_text(encoding="utf-8").split("\n")
    assert lines[0] == header
    assert lines[1].startswith(first_fields)
    assert lines[-1] == ""


def test_some_sentences_need_csv_quoting(folder):
    raw = (folder / "ids-sst-train.csv").read_text()
    assert '""' in raw
    assert any('"' in example.texts[0] for example in rows(folder, "sst", "train"))


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize(
    ("name", "labels", "lowest", "highest"),
    [
        ("sst", range(5), 0.15, 0.25),
        ("para", range(2), 0.45, 0.55),
        ("cfimdb", range(2), 0.45, 0.55),
    ],
)
def test_classes_are_balanced(folder, name, labels, lowest, highest, split):
    part = rows(folder, name, split)
    shares = {label: n / len(part) for label, n in Counter(e.label for e in part).items()}
    assert sorted(shares) == list(labels)
    assert lowest <= min(shares.values())
    assert max(shares.values()) <= highest


def test_similarities_spread_over_the_range(folder):
    labels = [example.label for example in rows(folder, "sts", "train")]
    shares = Counter(min(int(label), 4) for label in labels)
    assert all(0.1 < shares[unit] / len(labels) < 0.35 for unit in range(5))
    assert (min(labels), max(labels)) == (0.0, 5.0)
    assert all(round(label * 5) / 5 == label for label in labels)


def test_labels_follow_the_words_but_not_always(folder):
    grades = {word: grade for grade, words in sample._ADJECTIVES.items() for word in words}
    agrees = []
    for example in rows(folder, "sst", "train"):
        text = example.texts[0]
        if text.startswith(("I found", "Everything about", "Here is", "What a")):
            (grade,) = (grades[word] for word in text.split() if word in grades)
            agrees.append(example.label == grade + 2)
    assert len(agrees) > 50
    assert 0.85 < sum(agrees) / len(agrees) < 0.99


def test_reviews_are_long(folder):
    num_words = [len(example.texts[0].split()) for example in rows(folder, "cfimdb", "train")]
    assert min(num_words) > 100
    assert max(num_words) < 400


def test_sample_dir_is_in_the_cache_and_repairs_itself(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = sample_dir()
    assert cached == tmp_path / "sbrrt_fast" / f"sample-v{SAMPLE_VERSION}"
    assert contents(cached) == contents(folder)
    (cached / "sts-dev.csv").unlink()
    assert contents(sample_dir()) == contents(folder)
    monkeypatch.setattr(sample, "write_sample", lambda folder: pytest.fail("written again"))
    assert sample_dir() == cached


def test_sample_dir_without_xdg_is_below_home(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sample_dir().parent == tmp_path / ".cache" / "sbrrt_fast"


def test_sample_dir_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"built-in sample: .* is a file.*XDG_CACHE_HOME"):
        sample_dir()


def test_writers_at_the_same_time_leave_whole_files_only(folder, tmp_path):
    writers = [threading.Thread(target=write_sample, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert contents(tmp_path) == contents(folder)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"cannot be written \(no\)"):
        write_sample(tmp_path)
    assert list(tmp_path.iterdir()) == []
