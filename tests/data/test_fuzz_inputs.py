"""Random configurations and task files: read as an independent reader would, or refused in a line.

The same cases every time; ``-m long`` takes many more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import time
from collections.abc import Iterator

import pytest

from sbrrt_fast.commands.compare import with_overrides
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_to_dict
from sbrrt_fast.config_io import load_config, save_config
from sbrrt_fast.config_yaml import to_yaml
from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import ConfigError, DataError

SEEDS = [pytest.param(0, 300, id="few"), pytest.param(1, 5_000, id="many", marks=pytest.mark.long)]
YAML_PIECES = [
    *"{}[],:-?&*!|>'\"%@`#~=<>.\n\t \x00\x1b\x85\u2028\ufeff\U0001f600",
    *("\n  ", ": ", "- ", "? ", "<<: ", "---\n", "...\n", "%YAML 1.1\n", "!!str ", "!!int ", "!x "),
    *("&a ", "*a", "[*a, *a]", "&b [*a, *b]", "yes", "off", "null", "1:30", "010", "0o8", "1_0"),
    *("2020-01-01", ".inf", "-.nan", "1e999", "9" * 5000, "0x" + "f" * 4000, "[" * 50, "{a: " * 50),
    *("seed: 1\n", "tasks: [sst]\n", "smart: {weight: 1}\n", "overall: {}\n", '"\\ud800"', '"\\0"'),
    *('"\\UFFFFFFFF"', "x" * 6000, "tasks:\n  type: {}\n", "rounds", "smart", "sst", "files"),
]
ROW_PIECES = [
    *"\t\n\r\"' \x00\x0b\x0c\x1b\x1c\x85\u200b\u2028\u3164\ufeff\U0001f600é",
    *("\r\n", '""', '"\t"', '\t"', '"\n', "\n\n", "1", "2.0", "9", "-1", "1e999", "nan", "x", "id"),
    *("\tsame\t", "sentence", "sentiment", "9" * 5000, "word " * 30, "a\tb\tc\td\n", '"a\nb"'),
]


KEYS = (
    "recipe",
    "data_dir",
    "model.backbone",
    "smart.weight",
    "optimizer.betas",
    "tasks.sst.files",
)


def changed(text: str, pieces: list[str], rng: random.Random) -> str:
    """``text`` with a few pieces or none put in, parts taken out, and parts repeated."""
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice((0, 0, 1, 5, 40)))
        kept = text[start:stop] * 2 if rng.random() < 0.2 else ""
        text = text[:start] + kept + rng.choice(pieces) + text[stop:]
    return text


def soup(pieces: list[str], rng: random.Random) -> str:
    return "".join(rng.choices(pieces, k=rng.randrange(30)))


@contextlib.contextmanager
def refused_in_one_line(error: type[Exception], start: str) -> Iterator[None]:
    """No other error than this one, told in one line that can be read; none is slow."""
    begin = time.process_time()
    try:
        yield
    except error as caught:
        message = str(caught)
        assert message.startswith(start) and message.isprintable()
        assert len(message) < len(start) + 900
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_any_configuration_is_read_or_refused(tmp_path, seed, count):
    rng = random.Random(seed)
    path, saved = tmp_path / "c.yaml", tmp_path / "saved.yaml"
    good = [to_yaml(config_to_dict(RunConfig())), "seed: 3\nsmart: {weight: 1, norm: 2}\n"]
    num_read = 0
    for _ in range(count):
        text = soup(YAML_PIECES, rng) if rng.random() < 0.3 else None
        text = text or changed(rng.choice(good), YAML_PIECES, rng)
        path.write_bytes(text.encode("utf-8"))
        with refused_in_one_line(ConfigError, f"{path}:"):
            config = load_config(path)
            num_read += 1
            save_config(config, saved)
            assert load_config(saved) == config
    assert 0.01 * count < num_read < 0.9 * count


@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_any_override_is_read_or_refused(seed, count):
    rng = random.Random(seed)
    num_read = 0
    for _ in range(count):
        value = rng.choice(("3", "0.5", "[0.8, 0.9]", "text"))
        value = changed(value, YAML_PIECES, rng) if rng.random() < 0.8 else value
        text = f"{rng.choice(KEYS)}={value},{rng.choice(KEYS)}={rng.choice(YAML_PIECES)}"
        with refused_in_one_line(ConfigError, ""):
            assert isinstance(with_overrides(RunConfig(), text, "--a"), RunConfig)
            num_read += 1
    assert num_read > 0.02 * count


def table(rng: random.Random, quoting: str = "csv") -> str:
    texts = ["a fine film", "é", "it's"]
    texts += ['"said ""no"""', '"two\nlines"'] if quoting == "csv" else ['"good" film', '"']
    rows = [
        f"{i}\tx{i}\t{rng.choice(texts)}\t{rng.randrange(5)}" for i in range(rng.randrange(1, 6))
    ]
    return "\n".join(["\tid\tsentence\tsentiment", *rows, ""])


@pytest.mark.parametrize("quoting", ["csv", "none"])
@pytest.mark.parametrize("on_bad_row", ["skip", "error"])
@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_any_task_file_is_read_or_refused(tmp_path, seed, count, on_bad_row, quoting):
    rng = random.Random(seed)
    task = dataclasses.replace(BUILTIN_TASKS["sst"], on_bad_row=on_bad_row, quoting=quoting)
    path = tmp_path / "rows.tsv"
    num_read = 0
    for _ in range(count):
        text = changed(table(rng, quoting), ROW_PIECES, rng)
        text = soup(ROW_PIECES, rng) if rng.random() < 0.1 else text
        raw = text.encode("utf-8")
        if rng.random() < 0.1:
            raw = raw[: rng.randrange(len(raw) + 1)] + bytes([rng.randrange(256)])
        path.write_bytes(raw)
        with refused_in_one_line(DataError, str(path)):
            examples, report = read_split(path, task, "train", "mine")
            num_read += 1
            assert len({e.id for e in examples}) == len(examples) == report.num_rows > 0
            assert all(e.label in range(5) and re.search(r"\S", e.texts[0]) for e in examples)
            assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", e.id) for e in examples)
            assert report.message().isprintable()
            assert on_bad_row == "skip" or not report.num_skipped
            if quoting == "none":
                assert rows_in(raw.decode()) >= report.num_rows + report.num_skipped
                assert {(e.id, *e.texts) for e in examples} <= set(plain_rows(raw.decode()))
    assert num_read > 0.05 * count


def plain_rows(text: str) -> Iterator[tuple[str, str]]:
    """Id and sentence of every line of a file without quoting, read by hand."""
    header, *lines = filled_lines(text)
    names = header.split("\t")
    places = [names.index(name) for name in ("id", "sentence")]
    for line in lines:
        fields = line.split("\t")
        if len(fields) == len(names):
            yield tuple(fields[place].strip() for place in places)


def rows_in(text: str) -> int:
    return len(filled_lines(text)) - 1


def filled_lines(text: str) -> list[str]:
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    return [
        line
        for line in lines
        if "\t" in line or re.sub(r"[\s\x00-\x1f\u200b\ufeff\u3164]", "", line)
    ]


def test_the_checks_above_can_fail():
    rng = random.Random(5)
    assert len({changed(table(rng), ROW_PIECES, rng) for _ in range(50)}) > 45
    with pytest.raises(AssertionError), refused_in_one_line(DataError, "a"):
        raise DataError("b")
    with pytest.raises(KeyError), refused_in_one_line(DataError, "a"):
        raise KeyError
    assert list(plain_rows("id\tsentence\n\n1\t a \r2\tb\tc\r\n")) == [("1", "a")]
