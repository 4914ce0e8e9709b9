"""The scripts for shells complete what the commands take, in the shells that are there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sbrrt_fast.cli import COMMANDS, main
from sbrrt_fast.commands.completion import SHELLS, arguments_of, script

BASH = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_sbrrt_fast_or_files
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = "source {script}; complete -C '{line}'"
ZSH = """
compdef() {{ : }}
_files() {{ print FILES }}
compadd() {{ shift; print -l -- ${{(M)@:#$words[CURRENT]*}} }}
_describe() {{ print -l -- "${{(@)${{(P)2}}%%:*}}"; (( ${{#${{(P)2}}[1]%%:*}} > 0 )) }}
source {script}
words=({words}); CURRENT=${{#words}}
_sbrrt_fast_or_files
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(script(shell))
    return {shell: folder / shell for shell in SHELLS}


def completed(scripts: dict[str, Path], shell: str, line: str) -> list[str]:
    """What a shell offers for the last word of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = " ".join(f"'{word}'" for word in line.split(" "))
    form = {"bash": BASH, "fish": FISH, "zsh": ZSH}[shell]
    text = form.format(script=scripts[shell], words=words, line=line)
    command = [shell, "--norc"] if shell == "bash" else [shell, "-f"] if shell == "zsh" else [shell]
    result = subprocess.run([*command, "-c", text], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    return [offer.partition("\t")[0] for offer in result.stdout.splitlines() if offer]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("sbrrt-fast tra", ["train"]),
        ("sbrrt-fast train --early-stopping.p", ["--early-stopping.patience"]),
        ("sbrrt-fast train --precision ", ["fp32", "bf16"]),
        ("sbrrt-fast train --backb", ["--backbone"]),
        ("sbrrt-fast pretrain --masking.w", ["--masking.whole-words"]),
        ("sbrrt-fast evaluate run --sp", ["--split"]),
        ("sbrrt-fast compare --ul", ["--ulp"]),
        ("sbrrt-fast reproduce --tab", ["--table"]),
        ("sbrrt-fast search --pru", ["--pruner"]),
        ("sbrrt-fast search --sampler ", ["tpe", "random", "grid"]),
        ("sbrrt-fast search --early-stopping.p", ["--early-stopping.patience"]),
        ("sbrrt-fast help eval", ["evaluate"]),
        ("sbrrt-fast completion z", ["zsh"]),
    ],
)
def test_each_shell_completes_commands_flags_and_choices(scripts, shell, line, offers):
    found = completed(scripts, shell, line)
    assert set(offers) <= set(found)
    if not line.endswith(" "):  # fish offers file names there too
        assert found == offers


def test_all_commands_are_offered(scripts):
    found = completed(scripts, "bash", "sbrrt-fast ")
    assert {*COMMANDS, "help"} <= set(found)


@pytest.mark.parametrize("shell", SHELLS)
def test_recipes_are_offered_beside_files(scripts, shell):
    found = completed(scripts, shell, "sbrrt-fast train --config sbrrt-p")
    assert "sbrrt-paper" in found and "sst-finetune" not in found


def test_files_are_left_to_the_shell(scripts):
    assert completed(scripts, "bash", "sbrrt-fast evaluate tes") == []
    assert completed(scripts, "zsh", "sbrrt-fast evaluate tes")[-1] == "FILES"


def test_fish_hands_the_program_over_by_a_pipe():
    """As one argument it would be longer than Linux allows."""
    text = script("fish")
    assert len(text) > 2**17 and "$python_cmd -c" not in text and "| $python_cmd - $words" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_arguments_to_complete(name):
    if name != "completion":
        assert len(arguments_of(name).__dataclass_fields__) >= 1


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell) + "\n"


def test_an_unknown_shell_is_one_line(capsys):
    assert main(["completion", "tcsh"]) == 2
    error = capsys.readouterr().err
    assert "invalid choice 'tcsh'" in error and error.count("\n") == 1
