"""Splits that are tokenised once: the same rows, whoever wrote them and whatever went wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import filelock
import pytest
import torch
from tokenizers import Tokenizer

from sbrrt_fast import files
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.labels import complete_tasks
from sbrrt_fast.data.load import load_task
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.token_cache import array_file, folder_cache
from sbrrt_fast.data.token_cache import cache as cache_module
from sbrrt_fast.data.token_cache.cache import TokenCache
from sbrrt_fast.data.token_cache.key import NOT_READ, row_settings, token_settings
from sbrrt_fast.errors import DataError, OutputError
from tests.data.written import ENTAILMENT, LABELS, ROWS, write_table
from tests.helpers import tiny_tokenizer

TASK = replace(ENTAILMENT, labels=LABELS, num_classes=3, on_bad_row="skip")
TENSORS = ("labels", "tokens", "token_types", "special", "starts")
MAX_LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    bad = ("bad", "no label", "in this row", "")
    write_table(folder / "train.csv", [*ROWS[:5], bad, *ROWS[5:]])
    write_table(folder / "dev.csv", ROWS[:4])
    return folder


@pytest.fixture
def store(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "store")


def load(
    data: Path,
    tokenizer: Tokenizer,
    store: TokenCache | None = None,
    *,
    task: TaskConfig = TASK,
    split="train",
    max_length: int = MAX_LENGTH,
    log=lambda line: None,
    **options,
) -> TokenizedTask:
    return load_task("mine", task, split, data, tokenizer, max_length, log, cache=store, **options)


def assert_same(one: TokenizedTask, other: TokenizedTask) -> None:
    assert (one.name, one.config, one.split) == (other.name, other.config, other.split)
    assert list(one.ids) == list(other.ids)
    assert list(one.texts) == list(other.texts)
    assert (one.num_truncated, one.report) == (other.num_truncated, other.report)
    for name in TENSORS:
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours is None or theirs is None:
            assert ours is theirs
        else:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def entries(store: TokenCache) -> list[Path]:
    return sorted(path for path in store.folder.iterdir() if len(path.name) == 64)


def entry(store: TokenCache) -> Path:
    (only,) = entries(store)
    return only


def refuse(*args, **kwargs) -> None:
    raise AssertionError("it was tokenised again")


# The same split


@pytest.mark.parametrize("encoding", ["cross", "siamese"])
@pytest.mark.parametrize(
    ("split", "files"),
    [
        ("train", {"train": "train.csv"}),
        ("dev", {"train": "train.csv", "dev": "dev.csv"}),
        ("train", {"train": ("train.csv", "more.csv"), "dev": "40%"}),
        ("dev", {"train": ("train.csv", "more.csv"), "dev": "2/3"}),
        ("test", {"train": "train.csv", "test": "labelled.csv"}),
        ("test", {"train": "train.csv", "test": "mixed.csv"}),
        ("test", {"train": "train.csv", "test": "blank.csv"}),
        ("test", {"train": "train.csv", "test": "bare.csv"}),
    ],
)
def test_a_split_from_the_store_is_the_split(
    tmp_path, data, tokenizer, store, monkeypatch, encoding, split, files
):
    write_table(data / "more.csv", [(f"more {row[0]}", *row[1:]) for row in ROWS])
    write_table(data / "labelled.csv", ROWS)
    write_table(data / "mixed.csv", [(*row[:3], row[3] * (i % 3)) for i, row in enumerate(ROWS)])
    write_table(data / "blank.csv", [(*row[:3], "") for row in ROWS])
    write_table(data / "bare.csv", [row[:3] for row in ROWS], ("id", "premise", "hypothesis"))
    monkeypatch.setattr("sbrrt_fast.data.tokens.ROWS_PER_CHUNK", 5)
    task = replace(TASK, files=files, encoding=encoding)
    said: list[list[str]] = [[], [], []]
    plain = load(data, tokenizer, task=task, split=split, max_length=8, log=said[0].append)
    first = load(data, tokenizer, store, task=task, split=split, max_length=8, log=said[1].append)
    monkeypatch.setattr("sbrrt_fast.data.token_cache.cache.tokenised", refuse)
    again = load(data, tokenizer, store, task=task, split=split, max_length=8, log=said[2].append)
    assert_same(plain, first)
    assert_same(plain, again)
    assert said[0] == said[1] == said[2] and any("cut" in line for line in said[0])
    assert plain.num_truncated > 0


@pytest.mark.parametrize("ending", [".jsonl", ".csv.gz", ".tsv"])
def test_files_of_other_formats_are_kept_too(data, tokenizer, store, monkeypatch, ending):
    write_table(data / f"rows{ending}", ROWS)
    task = replace(TASK, files={"train": f"rows{ending}"})
    plain = load(data, tokenizer, task=task)
    load(data, tokenizer, store, task=task)
    monkeypatch.setattr("sbrrt_fast.data.token_cache.cache.tokenised", refuse)
    assert_same(plain, load(data, tokenizer, store, task=task))


def test_a_run_sees_the_batches_that_it_would_see(data, tokenizer, store):
    plain, stored = load(data, tokenizer), load(data, tokenizer, store)
    chosen = torch.tensor([7, 0, 3])
    ours, theirs = assemble(plain, chosen), assemble(stored, chosen)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert ours.input_ids.is_contiguous() and torch.equal(ours.cu_seqlens, theirs.cu_seqlens)


def test_ids_and_texts_are_made_when_they_are_asked_for(data, tokenizer, store, monkeypatch):
    monkeypatch.setattr("sbrrt_fast.data.token_cache.strings._PER_PIECE", 5)
    plain, stored = load(data, tokenizer), load(data, tokenizer, store)
    for lazy, whole in ((stored.ids, plain.ids), (stored.texts, plain.texts)):
        assert not isinstance(lazy, list) and len(lazy) == len(whole) == 12
        assert list(lazy) == [lazy[i] for i in range(12)] == whole
        assert lazy[-1] == whole[-1] and lazy[torch.tensor(3)] == whole[3]
        for part in (slice(2, 7), slice(None), slice(-3, None), slice(9, 1, -2), slice(5, 5)):
            assert lazy[part] == whole[part]
        assert whole[4] in lazy and "no such" not in lazy
        for beyond in (12, -13):
            with pytest.raises(IndexError, match="of 12"):
                lazy[beyond]


def test_bad_rows_are_the_errors_that_they_are(data, tokenizer, store):
    strict = replace(TASK, on_bad_row="error")
    with pytest.raises(DataError) as plain:
        load(data, tokenizer, task=strict)
    with pytest.raises(DataError) as stored:
        load(data, tokenizer, store, task=strict)
    assert str(plain.value) == str(stored.value) and "train.csv:7" in str(plain.value)
    absent = replace(TASK, files={"train": "absent.csv"})
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        load(data, tokenizer, store, task=absent)
    assert entries(store) == [] and not list(store.folder.glob("*.tmp-*"))


# The key


def key_parts(data: Path, tokenizer: Tokenizer, **changes) -> dict:
    task = changes.pop("task", TASK)
    name, split = changes.pop("name", "mine"), changes.pop("split", "train")
    max_length = changes.pop("max_length", MAX_LENGTH)
    rows = SplitRows(name, task, split, data)
    return {**row_settings(rows), **token_settings(tokenizer, max_length)}


READ = {
    "text_columns": ("hypothesis", "premise"),
    "label_column": "other",
    "head": "regression",
    "id_column": "id",
    "encoding": "siamese",
    "num_classes": 4,
    "labels": LABELS[::-1],
    "label_range": (0.0, 2.0),
    "format": "csv",
    "dataset": "other",
    "dataset_config": "other",
    "quoting": "none",
    "on_bad_row": "error",
    "max_rows": 5,
}


def test_every_setting_that_reading_depends_on_is_in_the_key(data, tokenizer):
    assert READ.keys() | NOT_READ == {field.name for field in fields(TaskConfig)}
    before = key_parts(data, tokenizer)
    for name, value in READ.items():
        rows = SplitRows("mine", replace(TASK, **{name: value}), "train", data)
        object.__setattr__(rows, "sources", (data / "train.csv",))
        assert {**before, **row_settings(rows)} != before, name
    assert key_parts(data, tokenizer, name="other") != before
    assert key_parts(data, tokenizer, max_length=31) != before
    other = replace(TASK, weight=2.0, metric="f1", class_weights=(1.0, 2.0, 1.0), loss="auto")
    assert key_parts(data, tokenizer, task=other) == before


def test_files_and_shares_are_in_the_key(data, tokenizer):
    def of(files, split="train", split_seed=0):
        task = replace(TASK, files=files, split_seed=split_seed)
        return key_parts(data, tokenizer, task=task, split=split)

    shutil.copy(data / "train.csv", data / "copy.csv")
    (data / "below").mkdir()
    shutil.copy(data / "train.csv", data / "below" / "train.csv")
    parts = [
        of({"train": "train.csv"}),
        of({"train": "copy.csv"}),  # messages name the file
        of({"train": ("train.csv", "copy.csv")}),
        of({"train": ("copy.csv", "train.csv")}),
        of({"train": "train.csv", "dev": "20%"}),
        of({"train": "train.csv", "dev": "20%"}, split_seed=1),
        of({"train": "train.csv", "dev": "30%"}),
        of({"train": "train.csv", "dev": "20%"}, split="dev"),
        of({"train": "train.csv", "dev": "train.csv"}, split="dev"),
    ]
    assert len({json.dumps(part) for part in parts}) == len(parts)
    assert of({"train": "below/train.csv"}) == of({"train": "train.csv", "dev": "copy.csv"})
    assert of({"train": "train.csv"}, split_seed=1) == parts[0]
    text = (data / "train.csv").read_text()
    (data / "train.csv").write_text(text.replace("film 3", "film 4", 1))
    assert of({"train": "train.csv"}) != parts[0]


def test_tokenizers_and_versions_are_in_the_key(data, tokenizer, monkeypatch):
    before = key_parts(data, tokenizer)
    other = tiny_tokenizer()
    assert key_parts(data, other) == before
    other.add_tokens(["film"])
    assert key_parts(data, other) != before
    for target, value in (
        ("sbrrt_fast.data.token_cache.key.FORMAT", 99),
        ("tokenizers.__version__", "99"),
        ("unicodedata.unidata_version", "99"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            assert key_parts(data, tokenizer) != before, target


def test_another_entry_for_another_file(data, tokenizer, store):
    load(data, tokenizer, store)
    write_table(data / "train.csv", ROWS[:3])
    assert load(data, tokenizer, store).num_examples == 3
    assert len(entries(store)) == 2


# Damage


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": flip_byte,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": Path.unlink,
}
FILES = ("entry.json", *(f"{name}.npy" for name in (*TENSORS, "ids", "id_starts", "texts")))


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_entry_is_written_again_with_a_line(data, tokenizer, store, file, how):
    load(data, tokenizer, store)
    plain = load(data, tokenizer)  # not mapped: a file that is cut off takes its pages along
    DAMAGE[how](entry(store) / file)
    said: list[str] = []
    again = load(data, tokenizer, store, log=said.append)
    assert_same(plain, again)
    assert "cannot be used" in said[0] and "written again" in said[0] and "\n" not in said[0]
    assert file.removesuffix(".npy") in said[0]
    said.clear()
    load(data, tokenizer, store, log=said.append)
    assert not any("cannot be used" in line for line in said)
    assert not list(store.folder.glob("*.tmp-*"))


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"entry": 1, "crc32": 2}', "[" * 100_000])
def test_a_list_that_is_something_else_is_damage(data, tokenizer, store, text):
    load(data, tokenizer, store)
    (entry(store) / "entry.json").write_text(text)
    said: list[str] = []
    load(data, tokenizer, store, log=said.append)
    assert "entry.json is not what was written" in said[0]


def test_an_entry_under_another_name_is_not_taken(data, tokenizer, store):
    load(data, tokenizer, store)
    write_table(data / "train.csv", ROWS[:3])
    load(data, tokenizer, store)
    one, other = entries(store)
    shutil.rmtree(one)
    shutil.copytree(other, one)
    for rows in (ROWS[:3], ROWS):
        write_table(data / "train.csv", rows)
        assert load(data, tokenizer, store).num_examples == len(rows)


def test_the_files_are_never_written_to(data, tokenizer, store):
    task = load(data, tokenizer, store)
    before = {path: path.read_bytes() for path in entry(store).iterdir()}
    for name in TENSORS:
        getattr(task, name).fill_(1)
    assert {path: path.read_bytes() for path in entry(store).iterdir()} == before
    assert_same(load(data, tokenizer), load(data, tokenizer, store))


def test_a_file_that_changes_while_it_is_read_is_refused(data, tokenizer, store, monkeypatch):
    def tick() -> None:
        with (data / "train.csv").open("a") as file:
            file.write("late,a,b,neutral\n")

    monkeypatch.setattr("sbrrt_fast.data.token_cache.cache.cache_key", lambda *args: "0" * 64)
    with pytest.raises(DataError, match=r"train\.csv: changed while it was read; start again"):
        load(data, tokenizer, store, tick=tick)
    assert entries(store) == []


# What the training rows say of a task


def completed(data: Path, store: TokenCache | None, **changes) -> tuple[TaskConfig, list[str]]:
    task = replace(ENTAILMENT, on_bad_row="skip", **changes)
    said: list[str] = []
    return complete_tasks({"mine": task}, data, said.append, store)["mine"], said


@pytest.mark.parametrize("weights", [None, "balanced", (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("files", [{"train": "train.csv"}, {"train": "train.csv", "dev": "25%"}])
def test_classes_are_looked_for_once(data, store, monkeypatch, weights, files):
    plain = completed(data, None, class_weights=weights, files=files)
    assert completed(data, store, class_weights=weights, files=files) == plain
    with monkeypatch.context() as patch:
        patch.setattr("sbrrt_fast.data.labels.open_table", refuse)
        patch.setattr("sbrrt_fast.data.reader.open_table", refuse)
        assert completed(data, store, class_weights=weights, files=files) == plain
    assert plain[0].labels == LABELS and "3 classes" in plain[1][0]
    assert len(plain[1]) == 1 + (weights == "balanced")


def test_classes_of_other_rows_or_weights_are_looked_for_again(data, store):
    assert completed(data, store)[0].class_weights is None
    one = completed(data, store, class_weights="balanced", files={"train": "train.csv"})[0]
    other = completed(data, store, class_weights="balanced", max_rows=5)[0]
    assert one.class_weights == (1.0, 1.0, 1.0) != other.class_weights
    write_table(data / "train.csv", [row for row in ROWS if row[3] != LABELS[0]])
    assert completed(data, store)[0].labels == LABELS[1:]
    assert len(entries(store)) == 4
    flip_byte(entries(store)[0] / "entry.json")
    for changes in ({}, {"class_weights": "balanced"}):
        assert completed(data, store, **changes)[0].labels == LABELS[1:]


def test_rows_without_classes_are_the_errors_that_they_are(data, store):
    write_table(data / "train.csv", [(*row[:3], "") for row in ROWS])
    for kept in (None, store):
        with pytest.raises(DataError, match="no row has a label"):
            completed(data, kept)
    assert entries(store) == []


# Where it is kept


def test_where_entries_are(tmp_path, monkeypatch):
    assert TokenCache.of("none") is None
    named = TokenCache.of(str(tmp_path / "here"))
    assert (named.folder, named.is_required, named.min_bytes) == (tmp_path / "here", True, 0)
    for variables, folder in (
        ({"SBRRT_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/tokens"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/sbrrt_fast/tokens"),
        ({"HOME": "/c"}, "/c/.cache/sbrrt_fast/tokens"),
    ):
        for name in ("SBRRT_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        auto = TokenCache.of("auto")
        assert (str(auto.folder), auto.is_required) == (folder, False)
        assert auto.min_bytes == 1_000_000
    monkeypatch.setenv("SBRRT_CACHE", "none")
    assert TokenCache.of("auto") is None


def test_small_files_are_left_out(data, tokenizer, store):
    size = (data / "train.csv").stat().st_size
    load(data, tokenizer, replace(store, min_bytes=size + 1))
    assert not store.folder.exists()
    load(data, tokenizer, replace(store, min_bytes=size))
    assert len(entries(store)) == 1


@pytest.mark.parametrize("at", ["store", "store/below"])
def test_a_folder_that_cannot_be_written(tmp_path, data, tokenizer, at):
    (tmp_path / "store").write_text("a file")
    store, said = TokenCache(tmp_path / at), []
    with pytest.raises(OutputError, match=r"^token_cache: .*store.*; name another folder$"):
        load(data, tokenizer, store)
    task = load(data, tokenizer, replace(store, is_required=False), log=said.append)
    assert_same(task, load(data, tokenizer))
    assert len([line for line in said if "is kept for later (token_cache)" in line]) == 1


@pytest.mark.parametrize("call", ["mkdir", "os.fsync", "write"])
def test_a_disk_that_is_full(data, tokenizer, store, monkeypatch, call):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = {
        "mkdir": "pathlib.Path.mkdir",
        "os.fsync": "os.fsync",
        "write": "sbrrt_fast.data.token_cache.array_file.ArrayWriter.append",
    }[call]
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(OutputError, match="No space left on device"):
            load(data, tokenizer, store)
        load(data, tokenizer, replace(store, is_required=False), log=said.append)
    assert "No space left on device" in said[0] and "\n" not in said[0]
    assert not store.folder.exists() or not [p for p in store.folder.iterdir() if p.is_dir()]


def test_the_entries_used_least_recently_go_first(data, tokenizer, store):
    for number in range(4):
        write_table(data / "train.csv", ROWS[: number + 3])
        load(data, tokenizer, store)
        newest = max(entries(store), key=lambda path: (path / "entry.json").stat().st_mtime_ns)
        os.utime(newest / "entry.json", (number, number))
    by_age = sorted(entries(store), key=lambda path: (path / "entry.json").stat().st_mtime)
    write_table(data / "train.csv", ROWS[:3])
    held = load(data, tokenizer, store)  # the oldest is used once more
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in by_age]
    write_table(data / "train.csv", ROWS[:2])
    load(data, tokenizer, replace(store, max_bytes=sizes[0] + sizes[3] + sizes[0]))
    left = entries(store)
    assert by_age[0] in left and by_age[3] in left and len(left) == 3
    write_table(data / "train.csv", ROWS)
    load(data, tokenizer, replace(store, max_bytes=0))
    assert len(entries(store)) == 1  # never the one that is used
    assert held.num_examples == 3 and list(held.ids) == ["r0", "r1", "r2"]
    assert not list(store.folder.glob("*.tmp-*"))


# Several processes


def in_child(work: Callable[[], object]) -> int:
    """Starts a copy of this process that does some work, and ends; returns its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def status_of(process: int) -> int:
    """A child's exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_at(number: int) -> None:
    """This process kills itself instead of the call of that number, counted from 0, that writes."""
    calls = 0

    def counted(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def call(*args, **kwargs):
            nonlocal calls
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return function(*args, **kwargs)

        setattr(owner, name, call)

    for name in ("append", "finish", "_write_header"):
        counted(array_file.ArrayWriter, name)
    for name in ("mkdir", "rename", "write_text"):
        counted(Path, name)
    counted(files, "_sync")
    counted(shutil, "rmtree")
    counted(filelock.FileLock, "release")


def slowly(folder: Path, seconds: float) -> None:
    """This process leaves a note where it tokenises, and takes its time."""
    tokenised = cache_module.tokenised

    def slow(*args):
        (folder / f"tokenised-{os.getpid()}").touch()
        time.sleep(seconds)
        return tokenised(*args)

    cache_module.tokenised = slow


def wait_for(folder: Path, pattern: str) -> Path:
    deadline = time.monotonic() + 60
    while not (found := list(folder.glob(pattern))) and time.monotonic() < deadline:
        time.sleep(0.02)
    (only,) = found
    return only


def test_one_of_several_processes_tokenises_and_the_others_wait(
    tmp_path, data, tokenizer, store, monkeypatch
):
    monkeypatch.setattr(folder_cache, "_POLL", 0.1)
    plain = load(data, tokenizer)

    def work() -> None:
        slowly(tmp_path, 2.0)
        ticks: list[int] = []
        said: list[str] = []
        task = load(data, tokenizer, store, tick=lambda: ticks.append(1), log=said.append)
        assert_same(plain, task)
        waited = any(
            "waiting for another process that reads the same rows" in line for line in said
        )
        (tmp_path / f"done-{os.getpid()}").write_text(json.dumps([waited, len(ticks)]))

    processes = [in_child(work) for _ in range(4)]
    assert [status_of(process) for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("tokenised-*"))) == 1
    done = [json.loads(path.read_text()) for path in tmp_path.glob("done-*")]
    assert sum(waited for waited, _ in done) == 3
    assert all(num_ticks > 10 for waited, num_ticks in done if waited)


def test_a_writer_that_is_killed_leaves_nothing_that_is_taken(data, tokenizer, store):
    plain = load(data, tokenizer)
    number, statuses = 0, set()
    while 0 not in statuses:
        process = in_child(lambda: (killed_at(number), load(data, tokenizer, store)))  # noqa: B023
        statuses.add(status_of(process))
        said: list[str] = []
        assert_same(plain, load(data, tokenizer, store, log=said.append))
        assert not any("cannot be used" in line for line in said)
        assert len(entries(store)) == 1 and not list(store.folder.glob("*.tmp-*"))
        shutil.rmtree(store.folder)
        number += 1
    assert statuses == {0, -signal.SIGKILL} and number > 50


def test_a_writer_that_is_killed_while_it_replaces_a_damaged_entry(data, tokenizer, store):
    plain = load(data, tokenizer)
    number, statuses = 0, set()
    while 0 not in statuses:
        load(data, tokenizer, store)
        flip_byte(entry(store) / "tokens.npy")
        process = in_child(lambda: (killed_at(number), load(data, tokenizer, store)))  # noqa: B023
        statuses.add(status_of(process))
        assert_same(plain, load(data, tokenizer, store))
        write_table(data / "dev.csv", ROWS[: 2 + number % 2])
        load(data, tokenizer, store, split="dev")
        assert not list(store.folder.glob("*.tmp-*"))
        shutil.rmtree(store.folder)
        number += 1
    assert statuses == {0, -signal.SIGKILL}


def test_what_a_killed_writer_left_goes_with_the_next_entry(data, tokenizer, store):
    process = in_child(lambda: (killed_at(30), load(data, tokenizer, store)))
    assert status_of(process) == -signal.SIGKILL
    assert list(store.folder.glob("*.tmp-*")) and not entries(store)
    write_table(data / "train.csv", ROWS[:3])
    load(data, tokenizer, store)
    assert len(entries(store)) == 1 and not list(store.folder.glob("*.tmp-*"))


def test_a_live_writer_keeps_its_unfinished_entry(tmp_path, data, tokenizer, store):
    process = in_child(lambda: (slowly(tmp_path, 2.0), load(data, tokenizer, store)))
    wait_for(tmp_path, "tokenised-*")
    unfinished = wait_for(store.folder, "*.tmp-*")
    load(data, tokenizer, store, split="dev")
    assert unfinished.exists() and len(entries(store)) == 1
    assert status_of(process) == 0 and len(entries(store)) == 2


def test_ticks_while_another_process_holds_the_lock(data, tokenizer, store, monkeypatch):
    monkeypatch.setattr(folder_cache, "_POLL", 0.05)
    load(data, tokenizer, store)
    key = entry(store).name
    shutil.rmtree(entry(store))
    lock = filelock.FileLock(store.folder / f"{key}.lock")
    lock.acquire()
    num_ticks = 0

    def tick() -> None:
        nonlocal num_ticks
        num_ticks += 1
        if num_ticks == 8:
            lock.release()

    said: list[str] = []
    load(data, tokenizer, store, tick=tick, log=said.append)
    assert num_ticks > 8
    assert said[0] == "mine train: waiting for another process that reads the same rows"


def test_the_key_is_of_the_contents(data):
    rows = SplitRows("mine", TASK, "train", data)
    ((name, checksum),) = row_settings(rows)["files"]
    assert name == "train.csv"
    assert checksum == hashlib.sha256((data / "train.csv").read_bytes()).hexdigest()
