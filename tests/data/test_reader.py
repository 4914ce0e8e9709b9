from __future__ import annotations

import csv
import dataclasses
import io
import os
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.errors import DataError

SST, PARA, STS = (BUILTIN_TASKS[name] for name in ("sst", "para", "sts"))
HEADER = "\tid\tsentence\tsentiment"


def skipping(task):
    return dataclasses.replace(task, on_bad_row="skip")


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "rows.csv"
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def error_of(path: Path, task=SST, split="train") -> str:
    with pytest.raises(DataError) as raised:
        read_split(path, task, split, "mine")
    return str(raised.value)


def test_reads_course_rows(tmp_path):
    path = write(
        tmp_path,
        HEADER,
        "0\ta1\t A fine film . \t3",
        '7\ta2\t" He said ""no"" , a tab\there ."\t0.0',
        '2\ta3\t A " stray quote\t4',
    )
    examples, report = read_split(path, SST, "train", "sst")
    assert [(e.id, e.texts, e.label) for e in examples] == [
        ("a1", ("A fine film .",), 3.0),
        ("a2", ('He said "no" , a tab\there .',), 0.0),
        ("a3", ('A " stray quote',), 4.0),
    ]
    assert report.message() == "rows.csv: 3 rows"


@pytest.mark.parametrize("header", ["0\t\tid\tsentence", "id\tsentence", "sentence\tx\tid\tlabel"])
def test_test_split_needs_only_id_and_text(tmp_path, header):
    columns = header.split("\t")
    row = ["9"] * len(columns)
    row[columns.index("id")], row[columns.index("sentence")] = "b1", " Good ."
    path = write(tmp_path, header, "\t".join(row))
    examples, _ = read_split(path, SST, "test", "sst")
    assert [(e.id, e.texts, e.label) for e in examples] == [("b1", ("Good .",), None)]


def test_columns_are_found_by_name_and_bom_and_crlf_are_fine(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("\ufeffsimilarity\tsentence2\tid\tsentence1\r\n2.5\tb\tq\ta\r\n".encode())
    (example,), _ = read_split(path, STS, "dev", "sts")
    assert (example.id, example.texts, example.label) == ("q", ("a", "b"), 2.5)


BAD_ROWS = [
    ("1\tx\tshort", "3 fields where the header has 4"),
    ("1\tx\tlong\t2\t2", "5 fields where the header has 4"),
    ("\t\t\t", "id is empty"),
    ("1\tx\t  \t2", "sentence is empty"),
    ("1\t\ttext\t2", "id is empty"),
    ("1\tx\ttext\t", "sentiment is empty"),
    ("1\tx\ttext\tgood", "sentiment 'good' is not a number"),
    ("1\tx\ttext\tnan", "sentiment 'nan' is not a number"),
    ("1\tx\ttext\t0_1", "sentiment '0_1' is not a number"),
    ("1\tx\ttext\t5", "sentiment 5 is outside 0 to 4"),
    ("1\tx\ttext\t-1", "sentiment -1 is outside 0 to 4"),
    ("1\tx\ttext\t1.5", "sentiment 1.5 is not a whole number from 0 to 4"),
    ("1\tfirst\ttext\t2", "id 'first' is already in line 2"),
    ('1\tx\t"said" he\t2', "text follows a closing quote; quoted fields look like"),
    ("1\tx\t\u200b\u00ad\u2060\t2", "sentence has no visible character"),
    ("1\tx\t\x07 \x1b\t2", "sentence has no visible character"),
    ("1\tx\t\u0301\ufe0f\t2", "sentence has no visible character"),
    ("1\tx\t\u3164\u2800\t2", "sentence has no visible character"),
    ("1\t\ufeff\ttext\t2", "id has no visible character"),
    ('1\t"x\ny"\ttext\t2', "id 'x\\ny' holds a line break or another control character"),
    ('1\t"x\ty"\ttext\t2', "id 'x\\ty' holds a line break"),
    ("1\tx\u2028y\ttext\t2", "id 'x\\u2028y' holds a line break"),
    ("1\tx\x85y\ttext\t2", "id 'x\\x85y' holds a line break"),
    ("1\tx\ttext\tneutral", "sentiment 'neutral' is not a number; labels are numbers from 0 to 4"),
    ("1\tx\ttext\ta\x1bb", "sentiment 'a\\x1bb' holds a line break or another control char"),
    ("1\tx\ttext\t" + "9" * 5000, f"sentiment {'9' * 80}… (5,000 characters) is outside 0 to 4"),
    ("1\tx\ttext\t1e999", "sentiment 1e999 is outside 0 to 4"),
    ("1\tx\t" + "y" * 1_000_001 + "\t2", "a field has more than 1,000,000 characters; shorten it"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_bad_row_is_an_error_with_its_line(tmp_path, row, reason):
    path = write(tmp_path, HEADER, "0\tfirst\tgood\t1", row, "2\tlast\tfine\t2")
    message = error_of(path)
    assert message.startswith(f"{path}:3: {reason}")
    assert "tasks.mine.on_bad_row" in message
    assert message.isprintable() and len(message) < 500 + len(str(path))


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_bad_row_is_skipped_and_counted(tmp_path, row, reason):
    path = write(tmp_path, HEADER, "0\tfirst\tgood\t1", row, row, "", "2\tlast\tfine\t2", "")
    examples, report = read_split(path, skipping(SST), "train", "sst")
    assert [e.id for e in examples] == ["first", "last"]
    assert (report.num_rows, report.num_skipped) == (2, 2)
    assert report.first_skipped.startswith(f"rows.csv:3: {reason}")
    assert report.message() == f"rows.csv: 2 rows, skipped 2 (first: {report.first_skipped})"


def test_a_quote_open_at_the_end_is_told_from_text_after_one(tmp_path):
    path = write(tmp_path, HEADER, "0\ta\tfine\t1")
    path.write_bytes(path.read_bytes() + b'1\tb\t"open\t1')
    message = error_of(path)
    assert message.startswith(f"{path}:3: a quote is not closed; quoted fields look like")
    assert "set tasks.mine.quoting to 'none'" in message


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_blank_lines_are_passed_over_and_counted(tmp_path, end):
    lines = [
        "",
        " ",
        HEADER,
        "",
        "0\ta\tone\t1",
        "\x0c",
        "\u200b",
        "1\tb\t" + f'"two{end}{end}2"\t2',
        "",
    ]
    path = tmp_path / "rows.csv"
    path.write_bytes(end.join([*lines, "2\tc\tthree\t3", "", "", ""]).encode())
    examples, report = read_split(path, SST, "train", "sst")
    assert [e.texts[0] for e in examples] == ["one", f"two{end}{end}2", "three"]
    assert report.message() == "rows.csv: 3 rows"
    path.write_bytes(end.join([*lines, "2\tc\tthree\t9"]).encode())
    assert error_of(path).startswith(f"{path}:12: sentiment 9 is outside")


UNQUOTED = [
    '"good" film , he said',
    '"open',
    'closed"',
    '""',
    '"',
    'a "b" c',
    '"whole"',
    "it's \\ fine \\",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_unquoted_files_have_quotes_as_text(tmp_path, end):
    rows = [f"{i}\tx{i}\t{text}\t1" for i, text in enumerate(UNQUOTED)]
    path = tmp_path / "rows.csv"
    path.write_bytes(end.join([HEADER, *rows, ""]).encode())
    task = dataclasses.replace(SST, quoting="none")
    examples, report = read_split(path, task, "train", "mine")
    assert [e.texts[0] for e in examples] == UNQUOTED
    assert report.num_skipped == 0
    assert "quote" in error_of(path)


@pytest.mark.parametrize(
    "inside", ["\x0c", "\x0b", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\ufeff"]
)
@pytest.mark.parametrize("quote", ["", '"'])
def test_only_line_feeds_and_returns_end_lines(tmp_path, inside, quote):
    text = f"{quote}one{inside}two{quote}"
    path = write(tmp_path, HEADER, f"0\ta\t{text}\t1", "1\tb\tthree\t7")
    assert error_of(path).startswith(f"{path}:3: sentiment 7 is outside")
    examples, _ = read_split(path, skipping(SST), "train", "sst")
    assert [e.texts for e in examples] == [(f"one{inside}two",)]


def test_long_texts_are_read_and_the_process_s_limit_is_left_alone(tmp_path):
    before = csv.field_size_limit()
    path = write(tmp_path, HEADER, f"0\ta\t{'word ' * 199_999}.\t1", "1\tb\tshort\t9")
    error_of(path)
    examples, _ = read_split(path, skipping(SST), "train", "sst")
    assert len(examples[0].texts[0]) == 999_996
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("start", "unit", "message"),
    [
        ("0\ta\t", "word ", ":2: a line of more than 4,000,000 characters"),
        ("0\ta\t", "字", ":2: a line of more than 4,000,000 characters"),
        ('0\ta\t"', "line\n", ":2: a quote opened in this row is not closed"),
        ("0\ta\t", "line\r", ":2: 3 fields where the header has 4"),
    ],
)
def test_a_field_without_an_end_takes_little_memory(tmp_path, start, unit, message):
    path = tmp_path / "rows.csv"
    num_bytes = 64_000_000
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{HEADER}\n{start}")
        for _ in range(64):
            file.write(unit * (1_000_000 // len(unit.encode())))
    assert path.stat().st_size > 0.99 * num_bytes
    tracemalloc.start()
    found = error_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.startswith(f"{path}{message}")
    assert peak < num_bytes / 2


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_lines_are_counted_across_the_pieces_of_a_file(tmp_path, offset):
    """With the bad byte behind 1 MiB, and pieces that end inside a line break or a letter."""
    path = tmp_path / "rows.csv"
    body = b"x" * ((1 << 20) - offset - 4) + "\r\n字\r\r\n\n".encode()
    path.write_bytes(body + b"a\0b\n")
    assert error_of(path).startswith(f"{path}:5: a NUL byte")
    path.write_bytes(body + b"a\xff\n")
    assert error_of(path).startswith(f"{path}:5: not UTF-8")
    path.write_bytes(body + "字".encode()[:2])
    assert error_of(path).startswith(f"{path}:5: not UTF-8")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        assert "cannot be read (not a regular file)" in error_of(path)
    assert "cannot be read (File name too long)" in error_of(tmp_path / ("n" * 300))


def test_names_of_files_and_columns_are_escaped_and_cut(tmp_path):
    message = error_of(tmp_path / "no\nsuch\x1b[31m.csv")
    assert "/no\\nsuch\\x1b[31m.csv: no such file" in message and message.isprintable()
    header = "id\t" + "\t".join(f"c\x1b{i}" + "y" * 500 for i in range(900))
    message = error_of(write(tmp_path, header))
    assert message.isprintable() and len(message) < 1000
    (tmp_path / "a\x07").mkdir()
    path = write(tmp_path / "a\x07", HEADER, "0\ta\tfine\t1", "0\ta\tb\x07\t1")
    path = path.rename(path.with_name("r\n.csv"))
    assert read_split(path, skipping(SST), "train", "sst")[1].message() == (
        "r\\n.csv: 1 rows, skipped 1 (first: r\\n.csv:3: id 'a' is already in line 2)"
    )


@pytest.mark.parametrize(
    ("task", "label", "reason"),
    [
        (STS, "5.01", "similarity 5.01 is outside 0 to 5"),
        (STS, "-0.1", "similarity -0.1 is outside 0 to 5"),
        (STS, "inf", "similarity 'inf' is not a number"),
        (PARA, "2", "is_duplicate 2 is outside 0 to 1"),
        (PARA, "0.5", "is_duplicate 0.5 is not a whole number from 0 to 1"),
        (BUILTIN_TASKS["cfimdb"], "2", "sentiment 2 is outside 0 to 1"),
    ],
)
def test_label_must_fit_the_head(tmp_path, task, label, reason):
    texts = ["text"] * len(task.text_columns)
    path = write(
        tmp_path,
        "\t".join(["id", *task.text_columns, task.label_column]),
        "\t".join(["x", *texts, label]),
    )
    strict = dataclasses.replace(task, on_bad_row="error")
    assert error_of(path, strict).startswith(f"{path}:2: {reason}")


def test_line_is_where_the_row_starts(tmp_path):
    path = write(
        tmp_path, HEADER, '0\ta\t"two\nlines"\t1', '1\tb\t"three\n\nlines"\t9', "2\tc\td\t1"
    )
    assert error_of(path).startswith(f"{path}:4: sentiment 9 is outside")


@pytest.mark.parametrize("task", [SST, skipping(SST)], ids=["error", "skip"])
@pytest.mark.parametrize(
    ("rows", "last_line"),
    [
        # taken to the end of the file
        (['1\tb\t"open\t1', "2\tc\tfine\t2", "3\td\tfine\t2"], 5),
        # ended by the opening quote of a later row
        (['1\tb\t"open\t1', "2\tc\tfine\t2", '3\td\t"quoted\tfield"\t2'], 5),
        # ended by a stray quote: the fields count right, whole rows are lost
        (['1\tb\t"open\t1', "2\tc\tfine\t2", '3\td\tstray"\t2'], 5),
        (['1\tb\t"open\t1', '2\tc\tstray"\t2'], 4),
        # ended in another column
        (['1\tb\t"open\t1', '2\t"\tfine\t2'], 4),
    ],
)
def test_unclosed_quote_never_swallows_rows(tmp_path, task, rows, last_line):
    path = write(tmp_path, HEADER, "0\ta\tfine\t1", *rows)
    message = error_of(path, task)
    assert message.startswith(f"{path}:3: a quote opened in this row is not closed")
    assert f"to {last_line};" in message


@pytest.mark.parametrize("task", [SST, skipping(SST)], ids=["error", "skip"])
@pytest.mark.parametrize(
    ("lines", "start", "parts"),
    [
        ([HEADER, "0\ta\tfine\t1", b"1\tb\tcaf\xe9\t2"], ":3: not UTF-8", ["UTF-8 text"]),
        ([HEADER, "0\ta\tfine\t1", "1\tb\tno\0pe\t2"], ":3: a NUL byte", ["text file"]),
        ([""], ":1: the file is empty", ["header"]),
        (["\tid\tsentence"], ":1: no column named 'sentiment'", ["label_column", "'sentence'"]),
        (["\tsentence\tsentiment"], ":1: no column named 'id'", ["tasks.mine.id_column"]),
        (["\tid\ttext\tsentiment"], ":1: no column named 'sentence'", ["text_columns"]),
        (["id\tid\tsentence\tsentiment"], ":1: two columns named 'id'", ["tasks.mine.id_column"]),
        ([b"\xef\xbb\xbf", "", " \t"], ":1: the file is empty", ["header"]),
        (['"id" x\tsentence'], ":1: no header line, text follows a closing quote", ["'none'"]),
        ([HEADER], ":1: no row of task 'mine' can be used", ["0 rows"]),
        ([HEADER, "0\ta\t\t1"], ":", ["sentence is empty"]),
    ],
)
def test_file_errors_whatever_on_bad_row_says(tmp_path, task, lines, start, parts):
    path = write(tmp_path, *lines)
    message = error_of(path, task)
    assert message.startswith(f"{path}{start}")
    assert all(part in message for part in parts)


def test_missing_file_says_what_was_wanted_and_what_to_do(tmp_path):
    message = error_of(tmp_path / "ids-sst-train.csv")
    assert message.startswith(f"{tmp_path / 'ids-sst-train.csv'}: no such file")
    assert all(file in message for file in SST.files.values())
    assert "--data-dir" in message
    assert "built-in sample" in message
    assert "there is no folder" in error_of(tmp_path / "nowhere" / "ids-sst-train.csv")
    assert "cannot be read" in error_of(tmp_path)


def has_shape(text: str) -> bool:
    """Whether BERT's tokenizer can make anything of a text: letters, numbers, signs."""
    return any(
        unicodedata.category(c)[0] in "LNPS" and c not in "\u3164\u2800\uffa0\u115f\u1160"
        for c in text
    )


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
TEXTS = CELLS.filter(
    lambda text: has_shape(text) and not (set("\r\n") & set(text) and "\t" in text)
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 25)), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=ROWS, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_any_texts_come_back_unchanged(tmp_path, rows, quoting):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t", quoting=quoting)
    writer.writerow(["", "id", "sentence1", "sentence2", "similarity"])
    writer.writerows([i, f"row {i}", a, b, label / 5] for i, (a, b, label) in enumerate(rows))
    path = tmp_path / "rows.csv"
    path.write_bytes(buffer.getvalue().encode())
    examples, report = read_split(path, STS, "train", "sts")
    assert [(e.id, e.texts, e.label) for e in examples] == [
        (f"row {i}", (a.strip(), b.strip()), label / 5) for i, (a, b, label) in enumerate(rows)
    ]
    assert report.num_skipped == 0
