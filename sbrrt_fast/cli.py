"""The ``sbrrt-fast`` command."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import threading
from collections.abc import Sequence

from sbrrt_fast.errors import Interrupted, RankError, SbrrtError
from sbrrt_fast.messages import shown

# Each command's module is imported when it is called, so that --help and errors are quick.
COMMANDS = {
    "train": ("sbrrt_fast.commands.train", "train a model: --config FILE and any field as a flag"),
    "pretrain": (
        "sbrrt_fast.commands.pretrain",
        "pre-train a checkpoint further on texts of tasks or on text files",
    ),
    "evaluate": ("sbrrt_fast.commands.evaluate", "score a trained run on a split"),
    "predict": (
        "sbrrt_fast.commands.predict",
        "write a run's predictions for task files or texts",
    ),
    "export": ("sbrrt_fast.commands.export", "write a run's model as ONNX"),
    "reproduce": ("sbrrt_fast.commands.reproduce", "train every row of a table of results"),
    "robustness": ("sbrrt_fast.commands.robustness", "finished runs on perturbed dev texts"),
    "search": ("sbrrt_fast.commands.search", "look for the settings with the best dev score"),
    "compare": ("sbrrt_fast.commands.compare", "two finished runs, or two variants side by side"),
    "report": ("sbrrt_fast.commands.report", "one HTML page about one run or several"),
    "info": ("sbrrt_fast.commands.info", "versions, devices, and which op can run how"),
    "completion": ("sbrrt_fast.commands.completion", "print a script that completes for a shell"),
}
ALONE = (  # in one process
    *("pretrain", "export", "reproduce", "robustness", "search", "compare", "report"),
)
HELP = "help"  # [COMMAND], the same as COMMAND --help


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (2 for input that cannot be used)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [HELP]:
        argv = [*argv[1:2], "--help", *argv[2:]]
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"sbrrt-fast {_version()}")
        return 0
    if argv[0] not in COMMANDS:
        print(_unknown(argv[0]), file=sys.stderr)
        return 2
    share_the_machine()
    threading.excepthook = _thread_failed
    try:
        if argv[0] in ALONE:
            refuse_ranks(argv[0])
        status = importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:]) or 0
        leave_ranks()
        return status
    except SbrrtError as error:
        status = 1 if isinstance(error, RankError) else 2
        message = str(error) if tells(error) else None
    except Interrupted as error:
        message, status = None if error.is_told else str(error), error.status
    except BrokenPipeError:  # `sbrrt-fast train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except (OSError, MemoryError, RuntimeError) as error:
        message, status = system_fault(error), 2
        if message is None:
            raise
        message = None if getattr(error, "is_told", False) else message
    if message is not None:
        print(f"sbrrt-fast {argv[0]}: {message}", file=sys.stderr)
    return status


def has_ranks() -> bool:
    """Whether torchrun, or anything like it, has started several of this process."""
    return os.environ.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in os.environ


def refuse_ranks(command: str) -> None:
    """SbrrtError where several processes are to do what one does."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise SbrrtError("works in one process; start it without torchrun")


def tells(error: SbrrtError) -> bool:
    """Whether this process prints an error; of several ranks one does."""
    if error.is_told or not has_ranks():
        return not error.is_told
    from sbrrt_fast.training.ranks.process_group import tell  # imports torch

    try:
        return tell(error)
    except SbrrtError:  # what torchrun sets is set in part, or it is gone
        return True


def leave_ranks() -> None:
    """Waits for the other ranks, where there are any."""
    if has_ranks():
        from sbrrt_fast.training.ranks.process_group import disconnect  # imports torch

        disconnect()


def share_the_machine() -> None:
    """Threads that wait for others give up their core soon, as long as torch is not loaded yet.

    GNU OpenMP's threads spin for 300,000 turns, in which time another process could run; beside
    two busy processes that costs training a factor of ten or more (docs/performance.md). Users'
    own settings stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def system_fault(error: Exception) -> str | None:
    """One line for what the system did, such as a full disk or no memory; None for a bug."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    text = str(error).partition("\n")[0]
    is_memory = isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory")
    )
    if not is_memory:
        return None
    return f"out of memory; lower round.batch_size or model.max_length ({text or 'MemoryError'})"


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Leaves a log writer's file errors to the thread that waits for it, which tells them."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _usage() -> str:
    wide = max(map(len, (*COMMANDS, HELP)))
    texts = {name: text for name, (_, text) in COMMANDS.items()}
    texts[HELP] = "list a command's options, as COMMAND --help does"
    rows = [f"  {name:<{wide}}  {text}" for name, text in texts.items()]
    lines = ["usage: sbrrt-fast COMMAND [options]", "", *rows, ""]
    lines += ["sbrrt-fast help COMMAND lists a command's options; --version tells the version"]
    return "\n".join(lines)


def _unknown(word: str) -> str:
    kind = "flag" if word.startswith("-") else "command"
    close = difflib.get_close_matches(word, [*COMMANDS, HELP, "--help", "--version"], n=1)
    hint = f"did you mean '{close[0]}'?" if close else "`sbrrt-fast help` lists the commands"
    return f"sbrrt-fast: unknown {kind} '{shown(word)}'; {hint}"


def _version() -> str:
    from importlib.metadata import version  # only here: importing it takes time

    return version("sbrrt_fast")


if __name__ == "__main__":
    sys.exit(main())
