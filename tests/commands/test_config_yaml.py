"""YAML as configurations use it: what values mean, and that no text costs more than its line."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import tracemalloc

import pytest
import yaml

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_io import config_from_dict, load_config
from sbrrt_fast.config_yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml, read_yaml, to_yaml
from sbrrt_fast.errors import ConfigError

OLDER = (
    "yes no on off Yes NO y n 1:30 12:30:45 190:20:30.15 2020-01-01 2001-12-14T21:59:43Z 1_000 "
    "0b11 nULL tRue = 1.2.3 12a +-3 e5 .e5 none None inf nan"
)
WORDS = (
    "yes no on 1:30 010 08 0o17 0x1f 0b1 1_0 1e5 3E-5 .5 7. .inf .nan ~ null true 2020-01-01 << = "
    "- '' # : a:b [x] &a *a !t % @ é 😀"
)
TEXTS = [*WORDS.split(), "\u2028", "\x85", "", " a ", "a: b", "x #y", "a\nb", "\ta"]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith("r.yaml:") and message.isprintable()
    return message.removeprefix("r.yaml:")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("NULL", None),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("-007", -7),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("1e3", 1000.0),
        ("3e-5", 3e-5),
        (".5", 0.5),
        ("7.", 7.0),
        ("+.inf", math.inf),
        ("-.INF", -math.inf),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
    ],
)
def test_plain_values(text, value):
    parsed = parse_yaml(text, "r.yaml")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", OLDER.split())
def test_what_only_older_versions_take_for_more_is_text(text):
    assert parse_yaml(text, "r.yaml") == text


def test_not_a_number_is_one():
    assert math.isnan(parse_yaml(".nan", "r.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &l [*l]", "1: an alias stands inside what it names"),
        ("a: 1\nb: &m\n  c: {<<: *m}", "3: an alias stands inside what it names"),
        ("a: 1\n? [x, y]\n: 2", "2: a key is a list or a mapping"),
        ("{{a: 1}: 2}", "1: a key is a list or a mapping"),
        ("7: 1", "1: key '7' is not a name; quote it"),
        ("null: 1", "1: key 'null' is not a name; quote it"),
        ("false: 1", "1: key 'false' is not a name; quote it"),
        ("a: 1\na: 2", "2: key 'a' is given twice; remove one"),
        ("x: {<<: {}, <<: {}}", "1: key '<<' is given twice"),
        ("a: 1\nb: " + "7" * 5000, "2: a number of 5,000 characters"),
        ("b: 0x" + "f" * 5000, "1: a number of 5,002 characters"),
        ("b: 1e999", "1: 1e999 is beyond every float; write .inf"),
        ("a: !!binary aGk=", "1: the tag '!!binary' is not allowed; write plain values"),
        ("a: !!set {b}", "1: the tag '!!set' is not allowed"),
        ("a: !!timestamp 2020-01-01", "1: the tag '!!timestamp' is not allowed"),
        ("a: !!python/object/apply:os.getcwd []", "1: the tag '!!python/object/apply:os.getcwd'"),
        ("a: !mine x", "1: the tag '!mine' is not allowed"),
        ("a: !!bool maybe", "1: 'maybe' is no bool"),
        ("a: !!int 1:30", "1: '1:30' is no int"),
        ("a: !!null x", "1: 'x' is no null"),
        ("a: !!float [1]", "1: expected a scalar node, but found sequence"),
        ("a: !!map b", "1: expected a mapping node, but found scalar"),
        ("a: 1\n---\nb: 2", "2: found another document; a configuration is one document"),
        ("a:\n\tb: 1", "2: found character '\\t' that cannot start any token; indent with spaces"),
        ("a: b: c", "1: mapping values are not allowed here; quote text that holds ': '"),
        ("a: *b", "1: found undefined alias 'b'; correct"),
        ("a: &b 1\nc: &b 2", "2: an anchor (&name) is defined twice"),
        ("a: {<<: 3}", "1: expected a mapping or list of mappings for merging"),
        ("a: [1, 2", "1: expected ',' or ']'"),
        ("a: 1\nb: c\x1b[2J", "2: the character '\\x1b' cannot stand here; remove it"),
        ('a: "\\UFFFFFFFF"', "1: a number is out of range"),
        (f"%YAML 1.{'1' * 5000}\n--- 1", "1: a number is out of range"),
        ("a: " + "[" * (MAX_DEPTH + 1), f"1: more than {MAX_DEPTH} levels"),
        ("- " * 3000, f"1: more than {MAX_DEPTH} levels"),
        ("a: *" + "b" * 9000, "1: found undefined alias 'bbbb"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(text, message):
    found = refusal(text)
    assert found.startswith(message)
    assert len(found) < 400


def test_messages_without_lines_name_the_source_alone():
    with pytest.raises(ConfigError, match=r"^--a: seed: key 'x' is given twice"):
        parse_yaml("{x: 1, x: 2}", "--a: seed", has_lines=False)


def lists_of_aliases(depth: int, width: int) -> str:
    lists = ["l0: &l0 [x]"]
    lists += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lists)


def merges_of_aliases(depth: int, width: int) -> str:
    maps = ["m0: &m0 {k: 1}"]
    maps += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * width)}]}}" for i in range(1, depth)]
    return "\n".join(maps)


@pytest.mark.parametrize(
    "text",
    [lists_of_aliases(20, 6), merges_of_aliases(20, 6), "[" + "1," * MAX_NODES + "]"],
    ids=["lists", "merges", "plain"],
)
def test_the_number_of_values_is_bounded_before_any_is_built(text):
    tracemalloc.start()
    begin = time.process_time()
    message = refusal(text)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"more than {MAX_NODES:,} values" in message
    assert peak < 100e6
    assert seconds < 60


def test_aliases_that_stay_small_are_fine():
    assert len(parse_yaml(lists_of_aliases(4, 3), "r.yaml")["l3"]) == 3


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 100_000_000])
def test_a_large_file_is_refused_unread(tmp_path, size):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: 1\n")
    os.truncate(path, size)  # a hole, that takes no place on disk
    with pytest.raises(ConfigError, match=r"c.yaml: is larger than 131,072 bytes"):
        read_yaml(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in [
        (tmp_path, "is a folder; name a YAML file"),
        (tmp_path / "pipe", "is not a regular file; name a YAML file"),
        ("/dev/zero", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        (tmp_path / ("n" * 300), "cannot be read (File name too long)"),
        (tmp_path / "a\nb", "a\\nb: cannot be read (No such file or directory)"),
        (f"{tmp_path}\0", "cannot be read (embedded null byte)"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert reason in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("seed: 1".encode("utf-16"), "c.yaml:1: not UTF-8"),
        (b"a: 1\nb: 2\nc: caf\xe9", "c.yaml:3: not UTF-8; save the file as UTF-8 text"),
    ],
)
def test_other_encodings_are_refused(tmp_path, raw, message):
    (tmp_path / "c.yaml").write_bytes(raw)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfrecipe: mine\r\nseed: 3\r\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.recipe, config.seed) == ("mine", 3)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_saved_so_that_both_versions_read_it_back(text):
    saved = to_yaml({"a": text, "b": [text]})
    assert parse_yaml(saved, "r.yaml") == {"a": text, "b": [text]}
    assert yaml.safe_load(saved) == {"a": text, "b": [text]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resume: yes", "resume: must be a valid boolean, got 'yes'; write true or false"),
        ("seed: 1:30", "seed: must be a valid integer, got '1:30'; write digits alone"),
        ("seed: 2020-01-01", "seed: must be a valid integer, got '2020-01-01'"),
        ("smart: {weight: 1_0}", "smart.weight: must be a valid number, got '1_0'; write a number"),
        ("recipe: 010", "recipe: must be a valid string, got 10; put it in quotes"),
        ('recipe: "a\\0b"', "recipe: must have no control characters"),
        ('data_dir: "C:\\temp"', "data_dir: must have no control characters"),
        ('recipe: "\\ud800"', "recipe: must be UTF-8, got"),
        (f"recipe: {'x' * 5000}", "recipe: must have at most 4,096 characters"),
        (f"tasks: {{sst: {{text_columns: [{'x' * 4000}, b]}}}}", "xxx… (4,009 characters)"),
        (f"mode: {'x' * 5000}", "xxx… (5,002 characters)"),
        (f"{'k' * 900}: 1", "kkk… (900 characters)'"),
    ],
)
def test_values_that_look_like_others_are_named_with_what_to_write(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path)) and str(caught.value).isprintable()


def test_off_and_dates_are_names_like_others(tmp_path):
    (tmp_path / "c.yaml").write_text("recipe: off\nmodel: {backbone: 2020-01-01}\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.recipe, config.model.backbone) == ("off", "2020-01-01")


def test_values_from_python_are_refused_as_well():
    inside_itself: list = []
    inside_itself.append(inside_itself)
    for value in (10**5000, inside_itself):
        with pytest.raises(ConfigError, match="cannot be written as JSON"):
            config_from_dict({"seed": value})
    with pytest.raises(ConfigError, match=r"recipe: must be UTF-8, got 'a.udcff'"):
        dataclasses.replace(RunConfig(), recipe="a\udcff")


def test_a_header_has_tabs_at_most():
    with_tab = {"tasks": {"sst": {"prediction_header": "a \t b"}}}
    config_from_dict(with_tab)
    with_line_break = {"tasks": {"sst": {"prediction_header": "a\nb"}}}
    with pytest.raises(ConfigError, match=r"^x: tasks.sst.prediction_header: must have no control"):
        config_from_dict(with_line_break, "x")
