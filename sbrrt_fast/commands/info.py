"""``sbrrt-fast info``: versions, devices, and which op can run how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.info import collect
from sbrrt_fast.messages import columns
from sbrrt_fast.ops._backend.dispatch import BACKENDS

_GIB = 1 << 30


@dataclass(frozen=True)
class InfoArguments:
    """Print versions, devices, and which implementation of which op can run here, or why not.

    Attributes:
        json: print JSON instead of text.
    """

    json: bool = False


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(InfoArguments, argv, "sbrrt-fast info")
    facts = collect()
    print(json.dumps(facts, indent=2) if arguments.json else format_info(facts))
    return 0


def format_info(facts: dict) -> str:
    """The text of the facts of ``info.collect``."""
    parts = {
        "versions": _versions(facts["versions"]),
        "devices": _devices(facts["devices"]),
        "C++ ops (sbrrt_fast._C)": _extension(facts["extension"]),
        "which implementation can run": _ops(facts["ops"]),
    }
    if reasons := _reasons(facts["ops"]):
        parts["why not"] = reasons
    return "\n\n".join("\n".join([title, *_indented(lines)]) for title, lines in parts.items())


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _versions(versions: dict) -> list[str]:
    return columns([(name, v["version"] or f"none: {v['reason']}") for name, v in versions.items()])


def _devices(devices: dict) -> list[str]:
    cpu = devices["cpu"]
    threads = f"{cpu['num_cores']} cores, torch threads: {cpu['num_threads']}"
    rows = [("CPU", f"{cpu['name']}, {cpu['capability']}, {threads}")]
    for index, gpu in enumerate(devices["gpus"]):
        memory = f"{gpu['memory'] / _GIB:.1f} GiB"
        rows.append((f"GPU {index}", f"{gpu['name']}, {memory}, capability {gpu['capability']}"))
    if not devices["gpus"]:
        rows.append(("GPU", f"none: {devices['gpu_reason']}"))
    return columns(rows)


def _extension(extension: dict) -> list[str]:
    if not extension["loaded"]:
        return [f"not there: {extension['reason']}"]
    build = extension["build"]
    rows = [("file", extension["path"]), ("compiler", build["compiler"])]
    rows += [("for torch", build["torch"]), ("threads", build["threads"])]
    rows.append(("CPU code", build["cpu_capability"]))
    rows.append(("CUDA", build["cuda"] or f"none: {build['cuda_reason']}"))
    return columns(rows)


def _ops(ops: dict) -> list[str]:
    rows = [("op", *BACKENDS)]
    for op, reasons in ops.items():
        rows.append((op, *("no" if reasons[name] else "yes" for name in BACKENDS)))
    return columns(rows)


def _reasons(ops: dict) -> list[str]:
    """A line per backend and reason, with the ops that it holds for."""
    rows = []
    for backend in BACKENDS:
        held: dict[str, list[str]] = {}
        for op, reasons in ops.items():
            if reasons[backend]:
                held.setdefault(reasons[backend], []).append(op)
        for reason, names in held.items():
            which = f"all {len(ops)} ops" if len(names) == len(ops) else ", ".join(names)
            rows.append((backend, f"{reason} ({which})"))
    return columns(rows) if rows else []
