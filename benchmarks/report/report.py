"""A run's results as Markdown, and the table of the README."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases.round_variants import FAST, counterpart, is_peer, is_plain
from benchmarks.harness.machine import ROOT, Machine
from benchmarks.harness.results import Results, Row, by_case, is_ours, quickest, write_text
from benchmarks.harness.text import duration, markdown_table
from benchmarks.report.floor import floor_table
from benchmarks.report.goals import GOALS, MIB, ROUND, missing_bf16

REPORT, README, COMMITTED = "report.md", ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN = "<!-- made by `python -m benchmarks.report --readme`: do not edit -->"
END = "<!-- end of the table -->"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, with an empty line after it."""
    return [*markdown_table(head, rows), ""]


def where(results: Results) -> str:
    """One sentence: on what, when and with what."""
    e = results.environment
    versions = ", ".join(
        f"{name} {e['versions'][name]}"
        for name in ("torch", "triton")
        if not e["versions"].get(name, "absent").startswith("absent")
    )
    threads = ""
    if e["device"] == "cpu":
        threads = f" ({e['cpu']['capability']}), {e['threads']} thread(s)"
    quick = ", a quick run" if e["quick"] else ""
    return f"{e['hardware']}{threads}, {versions}, commit {e['commit']}, {e['date'][:10]}{quick}"


def markdown(results: Results, plots: list[str]) -> str:
    """The whole report."""
    lines = ["# Benchmarks", "", where(results) + ".", ""]
    if machine := results.detail("machine"):
        lines += [_ceilings(Machine(**machine), results.environment["load"]), ""]
    lines += ["## Goals", "", *goal_lines(results)]
    for part in (_rounds, _stages, _memory, _per_token, _ops):
        lines += part(results)
    for name in plots:
        lines += [f"![{name}]({name})", ""]
    lines += [*_notes(results), *_absent(results)]
    return "\n".join(lines).rstrip() + "\n"


def goal_lines(results: Results) -> list[str]:
    """The table of goals, and what the machine lacks for them."""
    lines = table(["goal", "wanted", "figure", ""], [list(g.line(results)) for g in GOALS])
    return lines + ([missing_bf16(results), ""] if missing_bf16(results) else [])


def _ceilings(machine: Machine, load: float) -> str:
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in machine.flops.items())
    return (
        f"Measured in the same run: matrix product {rates}; copy {machine.bytes / 1e9:.3g} GB/s;"
        f" smallest op {duration(machine.launch)}. Load average at the start: {load:.1f}."
    )


def round_lines(rows: dict[str, Row], ours: Row) -> list[list[str]]:
    """Variants by time, each with its time over that of ours."""
    return [
        [
            row.variant,
            milliseconds(row.seconds),
            "one sample" if row.samples == 1 else _quartiles(row),
            f"{row.seconds / ours.seconds:.2f}",
            f"{row.tokens / row.seconds:,.0f}",
        ]
        for row in sorted(rows.values(), key=lambda row: row.seconds)
    ]


def milliseconds(seconds: float) -> str:
    """At least three digits."""
    shown = 1e3 * seconds
    return f"{shown:.0f}" if shown >= 100 else f"{shown:.3g}"


def _quartiles(row: Row) -> str:
    return f"{milliseconds(row.low)} to {milliseconds(row.high)}"


def _rounds(results: Results) -> list[str]:
    lines = []
    for (benchmark, case), rows in by_case(results.rows).items():
        ours = rows.get(FAST) or quickest(rows, is_ours)
        if ours and benchmark in ("round", "evaluate", "encode"):
            head = ["variant", "ms", "quartiles", f"over `{ours.variant}`", "tokens/s"]
            lines += [f"## {benchmark}: {case}, {ours.tokens} tokens", ""]
            cells = round_lines(rows, ours)
            if benchmark == ROUND[0]:
                head.append("over ours of the same steps")
                cells = [[*line, like_with_like(rows, line[0])] for line in cells]
            lines += table(head, cells)
    return lines


def like_with_like(rows: dict[str, Row], variant: str) -> str:
    """A round's time over that of ours in bf16, both SBRRT or both plain, with as many steps."""
    ours = rows.get(counterpart(variant))
    return f"{rows[variant].seconds / ours.seconds:.2f} (`{ours.variant}`)" if ours else "-"


def _stages(results: Results) -> list[str]:
    stages, machine = results.detail("stages"), results.detail("machine")
    lines = []
    for case, figures in stages.items() if machine else ():
        lines += [f"## Where a round goes: {case}", "", *floor_table(figures, Machine(**machine))]
    return lines


def _memory(results: Results) -> list[str]:
    memory = results.detail("memory")
    if not memory:
        return []
    cells = [
        [f"`{name}`", *(f"{figures[n] / MIB:.0f}" for n in ("round_bytes", "process_bytes"))]
        for name, figures in memory.items()
    ]
    head = ["variant", "a round of MiniLM, MiB", "the process, MiB"]
    return ["## Memory", "", *table(head, cells)]


def _per_token(results: Results) -> list[str]:
    sweep = {c: rows for (b, c), rows in by_case(results.rows).items() if b == "sweep"}
    if not sweep:
        return []
    variants = list(dict.fromkeys(name for rows in sweep.values() for name in rows))
    cells = [
        [case, str(next(iter(rows.values())).tokens)]
        + [_micros_per_token(rows[v]) if v in rows else "-" for v in variants]
        for case, rows in sweep.items()
    ]
    head = ["round", "tokens", *(f"{v} (quartiles)" for v in variants)]
    return ["## Microseconds per token", "", *table(head, cells)]


def _micros_per_token(row: Row) -> str:
    """The median, with its quartiles where there are several samples."""
    middle, low, high = (f"{1e6 * x / row.tokens:.0f}" for x in (row.seconds, row.low, row.high))
    return f"{middle} ({low} to {high})" if row.samples > 1 else f"{middle} (one sample)"


def _ops(results: Results) -> list[str]:
    lines, groups = [], {}
    for (benchmark, case), rows in by_case(results.rows).items():
        if benchmark not in ("round", "sweep", "evaluate", "encode") and quickest(rows, is_ours):
            groups.setdefault(benchmark, {})[case] = rows
    for benchmark, cases in groups.items():
        names = list(dict.fromkeys(n for rows in cases.values() for n in rows))
        peers = [name for name in names if not is_ours(name)]
        head = ["case", "ours", "time", "GB/s", *(f"{name}, over ours" for name in peers)]
        cells = [_op_line(case, rows, peers) for case, rows in cases.items()]
        lines += [f"## {benchmark}", "", *table(head, cells)]
    return lines


def _op_line(case: str, rows: dict[str, Row], peers: list[str]) -> list[str]:
    ours = quickest(rows, is_ours)
    rate = f"{ours.bytes / ours.seconds / 1e9:.1f}" if ours.bytes else "-"
    ratios = [f"{rows[n].seconds / ours.seconds:.2f}" if n in rows else "-" for n in peers]
    return [case, ours.variant, duration(ours.seconds), rate, *ratios]


def _notes(results: Results) -> list[str]:
    lines = [f"- {note}" for stage in results.stages.values() for note in stage.notes]
    return ["## Notes", "", *lines, ""] if lines else []


def _absent(results: Results) -> list[str]:
    entries = [e for stage in results.stages.values() for e in stage.absent]
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        reasons.setdefault((entry["variant"], entry["reason"]), []).append(entry["benchmark"])
    lines = ["## Absent", ""]
    lines += [
        f"- `{variant}` ({', '.join(benchmarks)}): {reason}"
        for (variant, reason), benchmarks in reasons.items()
    ]
    lines += ["", "## Stopped", ""] if results.failures else []
    return lines + [f"- {f['what']}: {f['error']}" for f in results.failures]


def write_report(results: Results, folder: Path, with_plots: bool = True) -> str:
    """Writes report.md and plots; returns the goals' table."""
    plots = []
    if with_plots:
        from benchmarks.report.plots import draw_all  # matplotlib is slow to import

        plots = draw_all(results, folder)
    write_text(folder / REPORT, markdown(results, plots))
    return "\n".join(goal_lines(results))


def readme_table(runs: list[Results]) -> str:
    """One table of rounds for every committed run."""
    lines = [BEGIN, ""]
    for results in runs:
        cells = []
        for (benchmark, case), rows in by_case(results.rows).items():
            is_main = benchmark == ROUND[0] and not case.endswith("compiled")
            if is_main and FAST in rows:
                model, each = case.split()[0], round_lines(rows, rows[FAST])
                each = [line for line in each if not (is_peer(line[0]) and is_plain(line[0]))]
                size = case.split()[1].partition("-")[2] or "8"
                cells += [[model, size, f"`{name}`", *rest[:3]] for name, *rest in each]
        lines += [where(results) + ".", *filter(None, [missing_bf16(results)]), ""]
        head = ["model", "examples a task", "round of", "ms", "quartiles", f"over `{FAST}`"]
        lines += table(head, cells)
    return "\n".join([*lines, END])


def committed() -> list[Results]:
    """The runs under ``benchmarks/results``, by name."""
    return [Results.load(path) for path in sorted(COMMITTED.glob("*/results.json"))]


def with_table(text: str, table: str) -> str:
    """The README with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"no place for the table: {BEGIN} ... {END}")
    return before + table + after
