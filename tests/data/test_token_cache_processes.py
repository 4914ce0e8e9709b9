"""Several processes at one token cache, and killed ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from sbrrt_fast import files
from sbrrt_fast.data.token_cache import array_file, folder_cache
from sbrrt_fast.data.token_cache import cache as cache_module
from tests.data.kept_tokens import (
    assert_same,
    entries,
    entry,
    flip_byte,
    load,
)
from tests.data.written import ROWS, write_table


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
