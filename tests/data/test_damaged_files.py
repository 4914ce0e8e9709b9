"""Damaged files of every format are read, or refused in one line; nothing else happens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sbrrt_fast.data.reader import read_split
from sbrrt_fast.errors import DataError
from tests.data.written import ENTAILMENT, LABELS, ROWS, write_table

TASK = replace(ENTAILMENT, labels=LABELS, num_classes=3)
ENDINGS = [".csv", ".jsonl", ".parquet", ".csv.gz", ".csv.bz2", ".csv.xz", ".jsonl.zst"]


def damaged(draw: random.Random, whole: bytes) -> bytes:
    """Some bytes changed, a piece left out or doubled, or the end cut off."""
    raw = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 8])):
        start = draw.randrange(len(raw))
        stop = min(start + draw.choice([1, 1, 4, 40]), len(raw))
        kind = draw.randrange(4)
        if kind == 0:
            raw[start:stop] = draw.randbytes(stop - start)
        elif kind == 1 and len(raw) > 50:
            del raw[start:stop]
        elif kind == 2:
            raw[start:start] = raw[start:stop]
        elif len(raw) > 50:
            del raw[max(start, 1) :]
    return bytes(raw)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_damage_is_refused_in_one_line(tmp_path, ending, on_bad_row):
    path, draw = tmp_path / f"rows{ending}", random.Random(ending)
    whole, task = write_table(path, ROWS).read_bytes(), replace(TASK, on_bad_row=on_bad_row)
    num_refused = 0
    for _ in range(150):
        path.write_bytes(damaged(draw, whole))
        try:
            examples, report = read_split(path, task, "train", "mine")
        except DataError as error:
            message, num_refused = str(error), num_refused + 1
            assert message.startswith(str(path)) and message.isprintable()
            assert len(message) < 900 + len(str(path))
        else:
            assert all(e.label in (0, 1, 2) and all(e.texts) and e.id for e in examples)
            assert report.num_rows == len(examples)
    assert num_refused > 20
