"""The ``sbrrt-fast`` command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.messages import shown

# Each command's module is imported when it is called, so that --help and errors are quick.
COMMANDS = {
    "train": ("sbrrt_fast.commands.train", "train a model: --config FILE and any field as a flag"),
    "evaluate": ("sbrrt_fast.commands.evaluate", "score a trained run on a split"),
    "predict": ("sbrrt_fast.commands.predict", "write a run's predictions in the course's format"),
    "reproduce": ("sbrrt_fast.commands.reproduce", "run every row of the paper's table 1 or 2"),
    "compare": ("sbrrt_fast.commands.compare", "train two variants of a run side by side"),
    "info": ("sbrrt_fast.commands.info", "versions, devices, and which op can run how"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (2 for input that cannot be used)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] not in COMMANDS:
        print(f"sbrrt-fast: unknown command '{shown(argv[0])}'\n{_usage()}", file=sys.stderr)
        return 2
    command = importlib.import_module(COMMANDS[argv[0]][0])
    try:
        return command.main(argv[1:]) or 0
    except SbrrtError as error:
        print(f"sbrrt-fast {argv[0]}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `sbrrt-fast train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"sbrrt-fast {argv[0]}: interrupted", file=sys.stderr)
        return 130


def _usage() -> str:
    rows = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: sbrrt-fast COMMAND [options]\n\n"
        + "\n".join(rows)
        + ("\n\nsbrrt-fast COMMAND --help lists a command's options")
    )


if __name__ == "__main__":
    sys.exit(main())
