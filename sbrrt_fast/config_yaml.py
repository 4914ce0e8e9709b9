"""YAML as configurations use it: one document of plain values, bounded in memory and time.

Plain scalars mean what YAML 1.2's core schema says (``yes``, ``1:30`` and dates are text, ``010``
is ten), with ``<<`` for merging as in 1.1.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown

MAX_BYTES = 128 * 1024
MAX_DEPTH = 32
MAX_NODES = 10_000  # with every alias written out
MAX_DIGITS = 400

_TAG = "tag:yaml.org,2002:"
_SCALARS = {  # in the order in which a plain scalar is tried
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
}
_ADVICE = {
    "cannot start any token": "indent with spaces, and quote text that starts with a special sign",
    "mapping values are not allowed": "quote text that holds ': ', and check the indentation",
    "found another document": "a configuration is one document: remove the '---' between them",
}


def read_yaml(path: Path) -> Any:
    """The data in a YAML file: dicts, lists, strings, numbers, booleans and None.

    Raises:
        ConfigError: it is not a regular file, is larger than 128 KiB, is not UTF-8, or holds
            something ``parse_yaml`` refuses.
    """
    return parse_yaml(_read_text(path), str(path))


def key_lines(path: Path) -> dict[str, int]:
    """The line, from 1, of every key at the top of a YAML file that ``read_yaml`` reads."""
    node = _Loader(_read_text(path)).get_single_node()
    is_mapping = isinstance(node, yaml.MappingNode)
    return {key.value: key.start_mark.line + 1 for key, _ in (node.value if is_mapping else ())}


def parse_yaml(text: str, source: str, has_lines: bool = True) -> Any:
    """The data in YAML text.

    Args:
        source: where it comes from; messages start with it.
        has_lines: whether messages also name the line.

    Raises:
        ConfigError: it is not YAML, has a tag, a key that is no text or is given twice, an alias
            inside what it names, more than 32 levels, or more than 10,000 values once every alias
            is written out.
    """
    loader = None
    try:
        if control := yaml.reader.Reader.NON_PRINTABLE.search(text):
            line = 1 + text.count("\n", 0, control.start())
            raise _Problem(line, f"the character {control[0]!r} cannot stand here; remove it")
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = _Problem(mark.line + 1 if mark else 1, _with_advice(error.problem or "not YAML"))
    except (
        ValueError,
        OverflowError,
    ):  # an escape or a version with a number beyond what Python takes
        problem = _Problem(loader.get_mark().line + 1, "a number is out of range; correct it")
    except _Problem as error:
        problem = error
    where = f"{source}:{problem.line}" if has_lines else source
    raise ConfigError(f"{where}: {problem}")


def to_yaml(data: Any) -> str:
    """YAML text that ``parse_yaml`` reads back as equal data; keys keep their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Problem(Exception):
    def __init__(self, line: int, text: str):
        super().__init__(text)
        self.line = line


def _with_advice(problem: str) -> str:
    if problem == "second occurrence":
        problem = "an anchor (&name) is defined twice"
    advice = next((text for part, text in _ADVICE.items() if part in problem), "correct the YAML")
    return f"{shown(problem.removeprefix('but '), 160)}; {advice}"


def _read_text(path: Path) -> str:
    raw = _read_bytes(path)
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise ConfigError(f"{path}:{line}: not UTF-8; save the file as UTF-8 text") from None


def _read_bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise ConfigError(f"{path}: is {kind}; name a YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"{path}: is larger than {MAX_BYTES:,} bytes; is this a configuration? It has one "
            "key and value per line"
        )
    return raw


class _Loader(yaml.SafeLoader):
    """The core schema alone; every limit is checked before a value is built."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own way; filled below
    yaml_constructors: dict = {}  # noqa: RUF012
    yaml_multi_constructors: dict = {}  # noqa: RUF012

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        mark = self.peek_event().start_mark
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Problem(
                mark.line + 1, f"more than {MAX_DEPTH} levels of lists and keys; use fewer"
            )
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not is_alias:
            node.size = 1 + sum(child.size for child in _children(node))
        elif not hasattr(node, "size"):
            raise _Problem(mark.line + 1, "an alias stands inside what it names; write it out")
        if node.size > MAX_NODES:
            problem = f"more than {MAX_NODES:,} values with every alias (*name) written out"
            raise _Problem(mark.line + 1, f"{problem}; use fewer of them")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            _check_key(key_node, seen)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_core(self, node: yaml.Node) -> Any:
        """A null, boolean, integer or float, plain or tagged."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if not _SCALARS[kind][0].match(text):
            raise _at(node, f"'{shown(text)}' is no {kind}; correct it or remove the tag")
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            raise _at(node, f"a number of {len(text):,} characters; no setting takes such a number")
        return {"null": _null, "bool": _bool, "int": _int, "float": _float}[kind](text, node)

    def refuse(self, node: yaml.Node) -> None:
        tag = shown(node.tag.replace(_TAG, "!!"))
        raise _at(node, f"the tag '{tag}' is not allowed; write plain values without tags")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_key(node: yaml.Node, seen: set[str]) -> None:
    if not isinstance(node, yaml.ScalarNode):
        raise _at(node, "a key is a list or a mapping; keys are names")
    if node.tag not in (f"{_TAG}str", f"{_TAG}merge"):
        raise _at(node, f"key '{shown(node.value)}' is not a name; quote it if it is meant as one")
    if node.value in seen:
        raise _at(node, f"key '{shown(node.value)}' is given twice; remove one of them")


def _at(node: yaml.Node, problem: str) -> _Problem:
    return _Problem(node.start_mark.line + 1, problem)


def _null(text: str, node: yaml.Node) -> None:
    return None


def _bool(text: str, node: yaml.Node) -> bool:
    return text.lower() == "true"


def _int(text: str, node: yaml.Node) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str, node: yaml.Node) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if abs(value) == float("inf") and text[-1].isdigit():
        raise _at(node, f"{shown(text)} is beyond every float; write .inf for infinity")
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that a reader of either version would take for something else."""

    def analyze_scalar(self, scalar: str) -> Any:
        """Escapes what does not print; PyYAML's other styles lose U+0085."""
        analysis = super().analyze_scalar(scalar)
        if not scalar.isprintable():
            analysis.allow_flow_plain = analysis.allow_block_plain = False
            analysis.allow_single_quoted = analysis.allow_block = False
        return analysis


for _kind, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, _pattern, _first)
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_core)
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor(f"{_TAG}str", _Loader.construct_yaml_str)
_Loader.add_constructor(f"{_TAG}seq", _Loader.construct_yaml_seq)
_Loader.add_constructor(f"{_TAG}map", _Loader.construct_yaml_map)
_Loader.add_constructor(None, _Loader.refuse)
