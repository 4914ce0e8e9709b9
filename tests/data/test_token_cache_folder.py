"""The token cache's folder: damaged, full, not to be written, too large."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sbrrt_fast.data.token_cache.cache import TokenCache
from sbrrt_fast.errors import DataError, OutputError
from tests.data.kept_tokens import (
    TENSORS,
    assert_same,
    entries,
    entry,
    flip_byte,
    load,
)
from tests.data.written import ROWS, write_table

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


@pytest.mark.parametrize("call", ["mkdir", "os.fsync", "write", "a later write"])
def test_a_disk_that_is_full(data, tokenizer, store, monkeypatch, call):
    num_calls = 0

    def full(*args, **kwargs):
        nonlocal num_calls
        num_calls += 1
        if call != "a later write" or num_calls > 10:  # the file of rows is open then
            raise OSError(28, "No space left on device")

    target = {
        "mkdir": "pathlib.Path.mkdir",
        "os.fsync": "os.fsync",
        "write": "sbrrt_fast.data.token_cache.array_file.ArrayWriter.append",
        "a later write": "sbrrt_fast.data.token_cache.array_file.ArrayWriter.append",
    }[call]
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(OutputError, match="No space left on device"):
            load(data, tokenizer, store)
        task = load(data, tokenizer, replace(store, is_required=False), log=said.append)
    assert_same(task, load(data, tokenizer))
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
