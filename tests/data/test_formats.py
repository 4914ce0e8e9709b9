"""The same rows from every format, and what is said of a file that is another than it seems."""

from __future__ import annotations

import json
import random
import sys
import tracemalloc
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbrrt_fast.data.reader import read_split
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.errors import DataError
from tests.data.test_reader import TEXTS
from tests.data.written import COLUMNS, ENTAILMENT, LABELS, ROWS, optional, write_table
from tests.data.written import COMPRESSED as COMPRESSORS

TASK = replace(ENTAILMENT, labels=LABELS, num_classes=3)
ENDINGS = [".csv", ".tsv", ".jsonl", ".parquet"]
COMPRESSED = [f".{text}{c}" for text in ("csv", "jsonl") for c in (".gz", ".bz2", ".xz", ".zst")]


def error_of(path: Path, task: TaskConfig = TASK, split="train") -> str:
    with pytest.raises(DataError) as raised:
        read_split(path, task, split, "mine")
    message = str(raised.value)
    assert message.isprintable() and len(message) < 800 + len(str(path))
    return message


@pytest.mark.parametrize("ending", ENDINGS + COMPRESSED)
def test_every_format_has_the_same_rows(tmp_path, ending):
    path = write_table(tmp_path / f"rows{ending}", ROWS)
    examples, report = read_split(path, TASK, "train", "mine")
    assert [(e.id, *e.texts, LABELS[int(e.label)]) for e in examples] == ROWS
    assert report.message() == f"rows{ending}: 12 rows"


@pytest.mark.parametrize(
    ("format", "ending"),
    [("csv", ".csv"), ("tsv", ".tsv"), ("jsonl", ".jsonl"), ("parquet", ".parquet")],
)
def test_format_is_stronger_than_the_ending(tmp_path, format, ending):
    path = write_table(tmp_path / f"rows{ending}", ROWS).rename(tmp_path / "rows.txt")
    examples, _ = read_split(path, replace(TASK, format=format), "train", "mine")
    assert [e.id for e in examples] == [row[0] for row in ROWS]


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_tabs_or_commas_as_the_header_has_them(tmp_path, ending, name):
    columns = ("id", "premise", "hypothesis", "label", "a, b\tc")  # both are in the header
    path = write_table(tmp_path / f"x{ending}", [(*row, "-") for row in ROWS], columns)
    examples, _ = read_split(path.rename(tmp_path / name), TASK, "train", "mine")
    assert [e.texts for e in examples] == [row[1:3] for row in ROWS]


@pytest.mark.parametrize("ending", ENDINGS)
def test_without_an_id_column_rows_are_numbered(tmp_path, ending):
    rows = [row[1:] for row in ROWS]
    rows[3] = ("", *rows[3][1:])
    path = write_table(tmp_path / f"rows{ending}", rows, COLUMNS[1:])
    examples, report = read_split(path, replace(TASK, on_bad_row="skip"), "train", "mine")
    assert [e.id for e in examples] == [str(i + 1) for i in range(12) if i != 3]
    assert report.num_skipped == 1
    assert "no column named 'key'" in error_of(path, replace(TASK, id_column="key"))


@pytest.mark.parametrize(
    ("ending", "place"),
    [(".csv", ":8"), (".tsv", ":8"), (".jsonl", ":7"), (".parquet", ": row 7"), (".csv.gz", ":8")],
)
def test_a_bad_row_is_named_by_its_line_or_number(tmp_path, ending, place):
    rows = [*ROWS[:6], ("bad", "a", "b", "maybe"), *ROWS[6:]]
    path = write_table(tmp_path / f"rows{ending}", rows)
    assert error_of(path).startswith(
        f"{path}{place}: label 'maybe' is none of 'contradiction', 'entailment', 'neutral' "
        "(tasks.mine.labels); correct the row, or set tasks.mine.on_bad_row"
    )
    _, report = read_split(path, replace(TASK, on_bad_row="skip"), "train", "mine")
    assert report.first_skipped.startswith(f"rows{ending}{place}: label 'maybe'")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"premise": None}, "premise is empty"),
        ({"premise": 3}, "premise is the number 3, not text"),
        ({"premise": ["a"]}, "premise is of type list, not text"),
        ({"premise": True}, "premise is the boolean True, not text"),
        ({"premise": "\ud800"}, "premise has no visible character"),
        ({"premise": "a \ud800"}, "premise holds half of a surrogate pair"),
        ({"label": None}, "label is empty"),
        ({"label": 1}, "label '1' is none of"),
        ({"label": float("nan")}, "label is empty"),
        ({"id": 1.5}, "id is the number 1.5, not text"),
        ({"id": "r0"}, "id 'r0' is already in line 1"),
        ({"premise": "x" * 1_000_001}, "a field has more than 1,000,000 characters"),
    ],
)
def test_bad_cells_of_json(tmp_path, cells, reason):
    path = write_table(tmp_path / "rows.jsonl", ROWS[:1])
    row = dict(zip(COLUMNS, ROWS[1], strict=True)) | cells
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    assert error_of(path).startswith(f"{path}:2: {reason}")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON ("),
        ("3", "no JSON object, but the number 3"),
        ('{"premise": "a"}', "hypothesis is empty"),
        ("[" * 100_000, "not JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_bad_lines_of_json(tmp_path, line, reason):
    path = write_table(tmp_path / "rows.jsonl", ROWS[:1])
    path.write_text("\n" + path.read_text() + "\n" + line + "\n")
    task = replace(TASK, id_column=None)
    if reason.startswith("hypothesis"):
        line_of = json.loads(line) | {"id": "x"}
        path.write_text(path.read_text().replace(line, json.dumps(line_of)))
    assert error_of(path, task).startswith(f"{path}:4: {reason}")


def test_whole_numbers_are_ids_and_true_and_false_are_labels(tmp_path):
    rows = [(1, "a", "b", True), (2, "c", "d", False)]
    task = replace(TASK, head="binary", num_classes=0, labels=("false", "true"))
    for ending in (".jsonl", ".parquet"):
        path = write_table(tmp_path / f"rows{ending}", rows)
        examples, _ = read_split(path, task, "train", "mine")
        assert [(e.id, e.label) for e in examples] == [("1", 1.0), ("2", 0.0)]


WRONG = [
    (".csv", "tsv", "no tab in the header; is this a comma-separated file? set tasks.mine.format"),
    (".tsv", "csv", "no comma in the header; is this a tab-separated file? set tasks.mine.format"),
    (".jsonl", "csv", "is this a file of JSON lines? set tasks.mine.format to 'jsonl'"),
    (".jsonl", "tsv", "is this a file of JSON lines? set tasks.mine.format to 'jsonl'"),
    (".csv", "jsonl", "not JSON (Expecting value: line 1 column 1 (char 0)); JSON lines have"),
    (".csv", "parquet", "cannot be read as a Parquet file"),
    (".parquet", "csv", "this is no text file, but a Parquet file; give it the ending .parquet"),
    (".parquet", "jsonl", "this is no text file, but a Parquet file"),
]


@pytest.mark.parametrize(("ending", "format", "hint"), WRONG)
def test_the_format_that_was_assumed_is_named(tmp_path, ending, format, hint):
    path = write_table(tmp_path / f"rows{ending}", ROWS)
    message = error_of(path, replace(TASK, format=format))
    assert message.startswith(str(path)) and hint in message
    if format in ("csv", "tsv") and ending != ".parquet":
        assert f"read as {'tab' if format == 'tsv' else 'comma'}-separated" in message


def test_other_files_that_people_have(tmp_path):
    semicolons = tmp_path / "rows.csv"
    semicolons.write_text("id;premise;hypothesis;label\n1;a;b;neutral\n")
    assert "if it is separated by ';', save it with commas" in error_of(semicolons)
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([{"premise": "a"}], indent=1))
    assert f"{array}:1: the file is one JSON array; write its objects one a line" in error_of(array)
    excel = tmp_path / "rows.xlsx"
    excel.write_bytes(b"PK\x03\x04\x14\0\0\0")
    assert "a spreadsheet or a zip file; save the table as CSV" in error_of(excel)
    for ending in (".gz", ".bz2", ".xz", ".zst"):
        path = write_table(tmp_path / f"rows.csv{ending}", ROWS).rename(tmp_path / "plain.csv")
        assert f"give it the ending {ending}" in error_of(path)
    assert "5 fields where the header has 4 (comma-separated: a field with" in error_of(
        write_csv(tmp_path, "r1,a,b, or c,neutral")
    )


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join([",".join(COLUMNS), *lines, ""]))
    return path


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, ending):
    draw = random.Random(0)
    rows = [(i, f"text {draw.random()}", "b", "neutral") for i in range(20_000)]
    path = write_table(tmp_path / f"rows.csv{ending}", rows)
    path.write_bytes(path.read_bytes()[:-9])
    message = error_of(path)
    assert message.startswith(f"{path}: cannot be decompressed (")
    assert f"is it a whole {ending} file?" in message
    path.write_bytes(b"id,premise,hypothesis,label")
    assert error_of(path).startswith(f"{path}: cannot be decompressed (")


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_lines_of_a_compressed_file_are_counted(tmp_path, ending):
    compress = COMPRESSORS.get(ending) or optional("zstandard").compress
    plain = write_table(tmp_path / "rows.csv", ROWS[:3]).read_bytes()
    path = tmp_path / f"rows.csv{ending}"
    path.write_bytes(compress(plain + b"r9,\xff,b,neutral\r\n"))
    assert error_of(path).startswith(f"{path}:5: not UTF-8")


def test_a_zstandard_file_of_several_frames(tmp_path):
    zstandard = optional("zstandard")
    path = write_table(tmp_path / "rows.csv.zst", ROWS)
    path.write_bytes(path.read_bytes() + zstandard.compress(b"last,a,b,neutral\n"))
    examples, _ = read_split(path, TASK, "train", "mine")
    assert [e.id for e in examples] == [*(row[0] for row in ROWS), "last"]


@pytest.mark.parametrize(
    ("library", "ending", "extra"),
    [("pyarrow", ".parquet", "parquet"), ("zstandard", ".csv.zst", "zst")],
)
def test_a_library_that_is_absent_is_named(tmp_path, monkeypatch, library, ending, extra):
    path = write_table(tmp_path / f"rows{ending}", ROWS)
    for name in [*sys.modules, library]:
        if name.partition(".")[0] == library:
            monkeypatch.setitem(sys.modules, name, None)
    message = error_of(path)
    assert f"cannot be read without {library}" in message
    assert f"pip install 'sbrrt_fast[{extra}]'" in message


def test_compressed_parquet_and_damaged_parquet(tmp_path):
    path = write_table(tmp_path / "rows.parquet", ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert error_of(path).startswith(f"{path}: cannot be read as a Parquet file (")
    packed = path.rename(tmp_path / "rows.parquet.gz")
    assert "Parquet is compressed in itself" in error_of(packed)


def test_parquet_columns_of_other_kinds(tmp_path):
    pyarrow, parquet = optional("pyarrow"), optional("pyarrow.parquet")

    def write(**columns) -> Path:
        table = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": ["neutral"] * 2}
        path = tmp_path / "rows.parquet"
        parquet.write_table(pyarrow.table(table | columns), path)
        return path

    words = pyarrow.array(["neutral", "entailment"]).dictionary_encode()
    examples, _ = read_split(write(label=words), TASK, "train", "mine")
    assert [e.label for e in examples] == [2.0, 1.0]
    assert ": row 1: premise is the number 1, not text" in error_of(write(premise=[1, 2]))
    assert ": row 2: premise is empty" in error_of(write(premise=["a", None]))
    raw = pyarrow.array([b"a", b"\xff"]).cast(pyarrow.string(), safe=False)
    assert ": row 2: a text is not UTF-8" in error_of(write(premise=raw))


def test_text_with_commas_over_several_lines_is_no_row(tmp_path):
    """In a CSV file, text may have as many commas as rows have."""
    texts = [
        "Dear all,\nbest",
        "One, two, three\nfour, five, six\nand, so, on",
        "1,000 people\ncame",
        "a,b,c\n\nd",
        "yes,no\nnow,or,never",
        "x,y\nr0,z",
    ]
    rows = [(f"r{i}", text, text, "neutral") for i, text in enumerate(texts)]
    examples, _ = read_split(write_table(tmp_path / "rows.csv", rows), TASK, "train", "mine")
    assert [e.texts for e in examples] == [(text, text) for text in texts]


@pytest.mark.parametrize(
    "lines",
    [
        ['r1,a,"open,neutral', "r2,c,d,neutral", "r3,e,f,neutral"],
        ['r1,a,"open,neutral', 'r2,c,closed",neutral'],
        ['r1,"a,b,neutral', 'r2,c",d,neutral'],
        ['r1,a,"open,neutral', 'r2,c,"quoted, d",neutral'],
        ['r1,a,"open,neutral', "r2,c,d,entailment", 'r3,e,closed",neutral'],
    ],
)
def test_an_unclosed_quote_never_swallows_rows_of_csv(tmp_path, lines):
    path = write_csv(tmp_path, "r0,x,y,entailment", *lines)
    for task in (TASK, replace(TASK, on_bad_row="skip")):
        assert error_of(path, task).startswith(
            f"{path}:3: a quote opened in this row is not closed"
        )


def test_rows_of_a_large_parquet_file_are_not_all_in_memory(tmp_path):
    pyarrow, parquet = optional("pyarrow"), optional("pyarrow.parquet")

    count = 60_000
    table = pyarrow.table(
        {
            "premise": ["word " * 200] * count,
            "hypothesis": ["b"] * count,
            "label": ["neutral"] * count,
        }
    )
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path, row_group_size=5000)
    tracemalloc.start()
    examples, _ = read_split(path, replace(TASK, max_rows=100), "train", "mine")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(examples) == 100
    assert peak < 1000 * count / 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(
        st.tuples(TEXTS, TEXTS, st.sampled_from(LABELS)),
        min_size=1,
        max_size=6,
    ),
    ending=st.sampled_from(ENDINGS if find_spec("pyarrow") else ENDINGS[:-1]),
)
def test_any_texts_come_back_from_any_format(tmp_path, rows, ending):
    path = write_table(tmp_path / f"rows{ending}", rows, COLUMNS[1:])
    examples, report = read_split(path, TASK, "train", "mine")
    assert [(*e.texts, LABELS[int(e.label)]) for e in examples] == [
        (a.strip(), b.strip(), label) for a, b, label in rows
    ]
    assert report.num_skipped == 0
