"""Figures of a run, drawn without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.cases.round_variants import counterpart
from benchmarks.harness.machine import Machine
from benchmarks.harness.results import Results, by_case, is_ours, is_peer, quickest
from benchmarks.report.floor import cost_of
from benchmarks.report.goals import ROUND
from sbrrt_fast.experiments.plots import save_figure
from sbrrt_fast.training.cost.profile import STAGES

NO_PEER = ("sweep", "round")


def ratios(results: Results) -> Figure | None:
    """Bars: every op and round of MiniLM's joint batch, stock torch's time over ours."""
    speed_ups = {}
    for (benchmark, case), rows in by_case(results.rows).items():
        ours, peer = quickest(rows, is_ours), quickest(rows, is_peer)
        if ours and peer and benchmark not in NO_PEER and _is_shown(case):
            speed_ups[f"{benchmark} {_short(case)}"] = peer.seconds / ours.seconds
    rounds = by_case(results.rows).get(ROUND, {})
    for name, row in rounds.items():
        ours = rounds.get(counterpart(name))
        if ours and not is_ours(name):
            speed_ups[f"round, {name}"] = row.seconds / ours.seconds
    if not speed_ups:
        return None
    figure = Figure(figsize=(8, 1 + 0.25 * len(speed_ups)), layout="constrained")
    axes, names = figure.subplots(), list(speed_ups)[::-1]
    bars = axes.barh(names, [speed_ups[name] for name in names])
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time of the quickest peer over ours")
    axes.tick_params(axis="y", labelsize="small")
    return figure


def _is_shown(case: str) -> bool:
    words = case.split()
    of_round = words[0] == "minilm" and words[1] in ("round", "all") and "both" not in words
    return of_round or words[0] in ("any",) or words[-1] in ("predict", "vectors")


def _short(case: str) -> str:
    return case.replace("minilm ", "").replace("any model ", "").replace("round ", "", 1)


def roofline(results: Results) -> Figure | None:
    """Operations per second against operations per byte, and the bytes per second of the rest."""
    if not (ceilings := results.detail("machine")):
        return None
    machine = Machine(**ceilings)
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_roof(left, machine)
    _draw_operations(left, results)
    _draw_bytes(right, results, machine)
    return figure


def _draw_roof(axes, machine: Machine) -> None:
    intensities = [2.0**i for i in range(-4, 14)]
    for name in machine.flops:
        flops = machine.ceilings(name).flops
        roof = [min(flops, x * machine.bytes) for x in intensities]
        axes.plot(intensities, roof, label=f"roof, {name}")
    axes.set(
        xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second"
    )
    axes.set_title("attention and whole rounds")


def _draw_operations(axes, results: Results) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in results.rows:
        if row.flops and row.bytes and is_ours(row.variant):
            name = f"{row.benchmark}, {row.case.split()[2]}"
            points.setdefault(name, []).append((row.flops / row.bytes, row.flops / row.seconds))
    for case, stages in results.detail("stages").items():
        flops, moved = sum(stages["flops"].values()), sum(stages["bytes"].values())
        seconds = sum(stages["seconds"].values())
        points[case] = [(flops / moved, flops / seconds)]
    for name, pairs in points.items():
        axes.scatter(*zip(*pairs, strict=True), s=14, label=name)
    axes.legend(fontsize="small")


def _draw_bytes(axes, results: Results, machine: Machine) -> None:
    """Ours on the joint round: bytes it must move, per second, with a copy's beside."""
    ours, copies = {}, {}
    for (benchmark, case), rows in by_case(results.rows).items():
        best = quickest(rows, is_ours)
        if best and best.bytes and _is_shown(case) and case.startswith("minilm"):
            ours[name := f"{benchmark} {_short(case)}"] = best.bytes / best.seconds / 1e9
            if copy := rows.get("copy"):
                copies[name] = copy.bytes / copy.seconds / 1e9
    axes.barh(list(ours), list(ours.values()), label="ours")
    axes.scatter(
        list(copies.values()), list(copies), marker="|", color="black", label="a copy of it"
    )
    axes.axvline(machine.bytes / 1e9, color="C1", label="copy of what no cache holds")
    axes.set(xlabel="GB/s", title="bytes that the op must move")
    axes.tick_params(axis="y", labelsize="x-small")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)


def per_token(results: Results) -> Figure | None:
    """Microseconds per token against batch and against length."""
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {"round": {}, "tokens": {}}
    for row in results.rows:
        if row.benchmark == "sweep":
            kind, _, number = row.case.split()[1].partition("-")
            point = int(number), 1e6 * row.seconds / row.tokens
            lines[kind].setdefault(row.variant, []).append(point)
    if not lines["round"]:
        return None
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    titles = {"round": "examples a task", "tokens": "tokens a sequence"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name, points in lines[kind].items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set(xlabel=title, ylabel="us per token", xscale="log", ylim=(0, None))
        sizes = sorted({size for points in lines[kind].values() for size, _ in points})
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
        if lines[kind]:
            axes.legend(fontsize="small")
    return figure


def where_it_goes(results: Results) -> Figure | None:
    """A stacked bar per round with its floor beside."""
    stages, machine = results.detail("stages"), results.detail("machine")
    if not (stages and machine):
        return None
    bars = {}
    for case, figures in stages.items():
        ceilings = Machine(**machine).ceilings(figures["precision"])
        bars[case] = figures["seconds"]
        bars[f"{case}, floor"] = cost_of(figures).seconds(ceilings)
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(bars)), layout="constrained")
    axes, reached = figure.subplots(), dict.fromkeys(bars, 0.0)
    for stage in STAGES:
        widths = [1e3 * bar.get(stage, 0.0) for bar in bars.values()]
        if any(widths):
            axes.barh(list(bars), widths, left=list(reached.values()), label=stage)
            reached = {n: x + w for (n, x), w in zip(reached.items(), widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    figure.legend(loc="outside lower center", fontsize="small", ncols=len(STAGES))
    return figure


FIGURES = {"ratios": ratios, "roofline": roofline, "per_token": per_token, "stages": where_it_goes}


def draw_all(results: Results, folder: Path) -> list[str]:
    """Writes those that the run has figures for; their file names."""
    written = []
    for name, draw in FIGURES.items():
        if figure := draw(results):
            save_figure(figure, folder / f"{name}.png")
            written.append(f"{name}.png")
    return written
