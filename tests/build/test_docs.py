"""Every command in the documentation parses, names what is there, and every block can be read."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from sbrrt_fast.cli import COMMANDS, HELP
from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.commands.compare import CompareOptions, FinishedRuns
from sbrrt_fast.commands.completion import CompletionArguments
from sbrrt_fast.commands.evaluate import EvaluateArguments
from sbrrt_fast.commands.export import ExportArguments
from sbrrt_fast.commands.info import InfoArguments
from sbrrt_fast.commands.predict import PredictArguments
from sbrrt_fast.commands.pretrain import PretrainArguments
from sbrrt_fast.commands.report import ReportArguments
from sbrrt_fast.commands.reproduce import ReproduceOptions
from sbrrt_fast.commands.robustness import RobustnessArguments
from sbrrt_fast.commands.search import SearchOptions
from sbrrt_fast.commands.train import load_config, parse_cli, split_config_flag
from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_help import ALL, groups, help_topic
from sbrrt_fast.config_io import config_from_dict
from sbrrt_fast.config_yaml import parse_yaml
from sbrrt_fast.data.task_rules import validate_task
from tests.build.markdown import ROOT, all_commands, blocks_of
from tests.helpers import tiny_backbone

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES = [*GUIDES, *sorted(ROOT.glob("docs/**/*.md"))]
ARGUMENTS = {
    "evaluate": EvaluateArguments,
    "export": ExportArguments,
    "predict": PredictArguments,
    "pretrain": PretrainArguments,
    "report": ReportArguments,
    "robustness": RobustnessArguments,
    "info": InfoArguments,
    "completion": CompletionArguments,
}
OPTIONS = {
    "train": None,
    "reproduce": ReproduceOptions,
    "search": SearchOptions,
    "compare": CompareOptions,
}
TO_FILL_IN = {"S": "0"}  # the reader's own number; other words in capitals are names of files


def cases(program: str) -> list:
    """Every command of a program in the documentation, by the page that has it."""
    return [
        pytest.param(command, id=f"{page.relative_to(ROOT).as_posix()}: {command}")
        for page in PAGES
        for command in all_commands(page, program)
    ]


def words_of(command: str) -> list[str]:
    """The arguments after the program."""
    words = [w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w)]
    words = list(itertools.takewhile(lambda word: word not in ("|", ">", "&"), words))
    return [TO_FILL_IN.get(word, word) for word in words[1:] if word != "..."]


def parse_run(command: str, flags: list[str]) -> None:
    """Parses what the commands that train are given; configurations of the project are read."""
    if command == "compare" and not flags[0].startswith("-"):
        parse_arguments(FinishedRuns, flags, command)
        return
    if OPTIONS[command]:
        _, flags = tyro.cli(
            OPTIONS[command],
            args=flags,
            config=(tyro.conf.FlagCreatePairsOff,),
            return_unknown_args=True,
        )
    path, flags = split_config_flag(flags)
    is_recipe = path is not None and (ROOT / path).parent == ROOT / "configs"
    base = load_config(ROOT / path) if is_recipe else RunConfig()
    if (topic := help_topic(flags)) is None:
        parse_cli(flags, base)
    else:
        assert topic in ("", "GROUP", ALL, *groups(base))


@pytest.mark.parametrize("command", cases("sbrrt-fast"))
def test_the_command_parses(command):
    name, *flags = words_of(command) or ["train"]
    if name == HELP:
        name, flags = flags[0] if flags else "COMMAND", []
    assert name in (*COMMANDS, "COMMAND", "--version")
    if not flags:
        return  # it is only named
    if name in ARGUMENTS:
        parse_arguments(ARGUMENTS[name], flags, name)
    else:
        parse_run(name, flags)


@pytest.mark.parametrize("command", cases("python"))
def test_what_python_runs_is_there(command):
    words = words_of(command)
    paths = [word for word in words if word.startswith(("tests/", "benchmarks/", "setup.py"))]
    assert words[0] in ("-m", *paths)
    assert words[0] != "-m" or importlib.util.find_spec(words[1])
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", cases("make"))
def test_the_target_is_there(command):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    name, *settings = shlex.split(command)[1:]
    assert name in targets
    paths = re.findall(r"tests/[\w/.]+", " ".join(settings))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_commands_are_found():
    """Where none was found, the tests above would pass."""
    assert len(cases("sbrrt-fast")) >= 15
    assert len(cases("python")) >= 15
    assert len(cases("make")) >= 15


# test_python_page.py, test_tutorial_page.py, test_minibert_page.py, test_smart_anywhere_page.py
OF_ITS_OWN = ("python.md", "tutorial.md", "minibert.md", "smart_anywhere.md")

PYTHON = [
    pytest.param(block.text, id=f"{page.relative_to(ROOT).as_posix()}, block {number}")
    for page in PAGES[1:]  # test_readme.py has the README's
    if page.name not in OF_ITS_OWN
    for number, block in enumerate(blocks_of(page))
    if block.language == "python"
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_runs_as_printed(text, tmp_path):
    """In a folder that has a small encoder under the name of a published one."""
    tiny_backbone(tmp_path / "bert-base-uncased")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", text]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


YAML = [
    pytest.param(block.text, page.name, id=page.name)
    for page in PAGES
    if page.name != "pretrain.md"  # test_pretrain_page.py has its settings
    for block in blocks_of(page)
    if block.language == "yaml" and page.name != "search.md"  # a space: test_search_page.py
]


@pytest.mark.parametrize(("text", "name"), YAML)
def test_yaml_is_a_configuration(text, name):
    config = config_from_dict(parse_yaml(text, name), name)
    for task, record in config.tasks.items():
        validate_task(task, record)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    for file, _, anchor in links:
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors_of(target), f"{file}#{anchor}"


def anchors_of(page: Path) -> set[str]:
    """Of a page's headings, as they are made from their words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
