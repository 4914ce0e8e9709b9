"""What the package wants to reach, each goal with the figure of a run, met or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases.encode import LIKE, PEER
from benchmarks.cases.round_variants import FAST, JOINT, PLAIN, REFERENCE
from benchmarks.harness.results import Results, Row, by_case

ROUND, COMPILED = ("round", "minilm round train"), ("round", "minilm round train compiled")
MIB = 2**20


class Unknown(Exception):
    """A run does not have the figure; the text says why."""


@dataclass(frozen=True)
class Goal:
    """One line of the report.

    Attributes:
        text: what is counted. wanted: as it is shown.
        is_met: of the figure; None where it is told for information.
        find: the figure of a run and how it is shown; raises Unknown.
        device: on which it is a goal, or any if empty.
    """

    text: str
    wanted: str
    is_met: Callable[[float], bool] | None
    find: Callable[[Results], tuple[float, str]]
    device: str = ""

    def line(self, results: Results) -> tuple[str, str, str, str]:
        """(goal, wanted, figure, "met", "not met", "for information" or why it is not known)."""
        try:
            if self.device and results.environment["device"] != self.device:
                raise Unknown("not of this device")
            figure, shown = self.find(results)
        except Unknown as reason:
            return self.text, self.wanted, "-", str(reason)
        if self.is_met is None:
            return self.text, self.wanted, shown, "for information"
        return self.text, self.wanted, shown, "met" if self.is_met(figure) else "not met"


def row_of(results: Results, key: tuple[str, str], variant: str) -> Row:
    rows = by_case(results.rows).get(key, {})
    if variant not in rows:
        raise Unknown(why_absent(results, key[0], variant))
    return rows[variant]


def why_absent(results: Results, benchmark: str, variant: str) -> str:
    """In a run."""
    for stage in results.stages.values():
        for entry in stage.absent:
            if (entry["benchmark"].split()[0], entry["variant"]) == (benchmark, variant):
                return f"no `{variant}`: {entry['reason']}"
    return f"no `{variant}` in this run"


def times_faster(
    ours: str, *rivals: str, key: tuple[str, str] = ROUND
) -> Callable[[Results], tuple[float, str]]:
    """The time of the quickest of some peers over that of ours, in one case of a run."""

    def find(results: Results) -> tuple[float, str]:
        known = by_case(results.rows).get(key, {})
        present = [known[name] for name in rivals if name in known]
        if not present:
            raise Unknown(why_absent(results, key[0], rivals[0]))
        rival = min(present, key=lambda row: row.seconds)
        figure = rival.seconds / row_of(results, key, ours).seconds
        return figure, f"{figure:.1f}x (`{ours}`, `{rival.variant}`)"

    return find


def over_plain(steps: str) -> Callable[[Results], tuple[float, str]]:
    """The time of a round over that of a plain one, both joint or with a step per task."""

    def find(results: Results) -> tuple[float, str]:
        names = FAST + steps, PLAIN + steps
        fast, plain = (row_of(results, ROUND, name).seconds for name in names)
        return fast / plain, f"{fast / plain:.2f}"

    return find


def memory_ratio(variant: str) -> Callable[[Results], tuple[float, str]]:
    """Of what a round takes beyond weights, moments and teacher."""

    def find(results: Results) -> tuple[float, str]:
        memory = results.detail("memory")
        if not {variant, REFERENCE} <= set(memory):
            raise Unknown(f"no memory of `{variant}` in this run")
        ours, reference = (memory[name]["round_bytes"] for name in (variant, REFERENCE))
        figure = ours / reference
        return figure, f"{figure:.2f} ({ours / MIB:.0f} of {reference / MIB:.0f} MiB)"

    return find


def per_token_spread(
    variant: str, kind: str, ends: tuple[int, int]
) -> Callable[[Results], tuple[float, str]]:
    """The largest time per token over the smallest in the sweep of ``round`` or ``tokens``, which
    must have both ends."""

    def find(results: Results) -> tuple[float, str]:
        rows = sorted(
            (int(row.case.split()[1].partition("-")[2]), row)
            for row in results.rows
            if (row.benchmark, row.variant) == ("sweep", variant)
            and f" {kind}-" in row.case
            and row.samples > 1
        )
        if missing := set(ends) - {size for size, _ in rows}:
            raise Unknown(f"`{variant}` has no samples of {kind}-{min(missing)} in this run")
        each = [row.seconds / row.tokens for _, row in rows]
        figure = max(each) / min(each)
        return figure, f"{figure:.2f} ({', '.join(_point(size, row) for size, row in rows)})"

    return find


def _point(size: int, row: Row) -> str:
    """Microseconds per token at a size, with half the distance of the quartiles."""
    half = (row.high - row.low) / 2 / row.seconds
    return f"{size}: {1e6 * row.seconds / row.tokens:.0f} us ±{half:.0%}"


def assembling(results: Results) -> tuple[float, str]:
    figure = row_of(results, ("assemble", "any model round data"), "ours").seconds
    return figure, f"{1e3 * figure:.2f} ms"


def elsewhere(where: str) -> Callable[[Results], tuple[float, str]]:
    """Of a goal that no time of these benchmarks can tell."""

    def find(results: Results) -> tuple[float, str]:
        raise Unknown(where)

    return find


def at_least(limit: float) -> Callable[[float], bool]:
    return lambda figure: figure >= limit


def at_most(limit: float) -> Callable[[float], bool]:
    return lambda figure: figure <= limit


def missing_bf16(results: Results) -> str:
    """That a machine has no bf16 instructions, which the goals presuppose, in a sentence; or ""."""
    flops = results.detail("machine").get("flops")
    if not flops or flops["bf16"] > flops["fp32"]:
        return ""
    capability = results.environment["cpu"]["capability"]
    return (
        f"This processor has no instructions for bf16 products ({capability}): torch's reach"
        f" {flops['bf16'] / flops['fp32']:.2f} of the rate of fp32 ones. Goals against Hugging Face"
        " were set for a processor that has them."
    )


def peers(precision: str, what: str) -> tuple[str, str]:
    """Hugging Face's in a precision, by either attention."""
    return tuple(f"hf {precision} {attention}{what}" for attention in ("sdpa", "eager"))


def against(precision: str, steps: str, least: float) -> Goal:
    """SBRRT in bf16 against Hugging Face's, with as many optimiser steps."""
    kind = {"fp32": "fp32 eager", "bf16": "bf16 autocast"}[precision]
    rivals = (f"hf fp32 eager{steps}",) if precision == "fp32" else peers("bf16", steps)
    text = f"SBRRT against Hugging Face {kind}, {STEPS[steps]}, CPU"
    return Goal(text, f">= {least:g}x", at_least(least), times_faster(FAST + steps, *rivals), "cpu")


def alike(what: str, ours: str, rivals: tuple[str, ...], device: str = "") -> list[Goal]:
    """For information: the same work in the same precision on both sides, joint and per task."""
    return [
        Goal(f"{what}, {STEPS[steps]}", "-", None,
             times_faster(ours + steps, *(rival + steps for rival in rivals)), device)
        for steps in STEPS
    ]  # fmt: skip


def spread(kind: str, ends: tuple[int, int], unit: str, most: float) -> list[Goal]:
    what = f"Time per token, {ends[0]} to {ends[1]} {unit}, largest over smallest"
    return [
        Goal(f"{what}, {STEPS[steps]}", f"<= {most:g}", at_most(most),
             per_token_spread(FAST + steps, kind, ends))
        for steps in STEPS
    ]  # fmt: skip


STEPS = {JOINT: "a step per round", "": "a step per task"}
GRAPHS = "hf bf16 graphs"
VECTORS = "encode", "minilm texts vectors"
GOALS = (
    against("fp32", JOINT, 10.0),
    against("bf16", JOINT, 5.0),
    against("fp32", "", 8.0),
    against("bf16", "", 4.0),
    *alike("SBRRT, fp32 on both sides", "fast fp32", peers("fp32", "")),
    *alike("SBRRT, TF32 on their side", "fast fp32", peers("tf32", ""), "cuda"),
    *alike("Plain against plain, bf16 on both sides", PLAIN, peers("bf16", " plain")),
    *alike("Plain against plain, fp32 on both sides", "plain fp32", peers("fp32", " plain")),
    Goal("SBRRT against our reference, eager, a step per task, GPU", ">= 12x", at_least(12.0),
         times_faster(FAST, REFERENCE), "cuda"),
    *(Goal(f"SBRRT against torch.compile with graphs, {STEPS[steps]}, GPU", ">= 2.2x",
           at_least(2.2), times_faster(FAST + steps, GRAPHS + steps, key=COMPILED), "cuda")
      for steps in STEPS),
    Goal("SBRRT over plain, a step per round", "<= 2.2", at_most(2.2), over_plain(JOINT)),
    Goal("SBRRT over plain, a step per task", "-", None, over_plain("")),
    *(Goal(f"Memory of a round against the reference's, {STEPS[steps]}", "<= 0.5", at_most(0.5),
           memory_ratio(FAST + steps)) for steps in STEPS),
    *spread("round", (8, 64), "examples a task", 1.2),
    *spread("tokens", (16, 512), "tokens a sequence", 1.25),
    *(Goal(f"Sentence vectors against sentence-transformers, {precision} on both sides", "-", None,
           times_faster(f"ours {precision} {LIKE}", f"{PEER} {precision} {LIKE}", key=VECTORS))
      for precision in ("fp32", "bf16")),
    Goal("Putting a round's batches together", "< 0.3 ms", lambda x: x < 3e-4, assembling),
    Goal("Fast step against the reference, dropout on", "200 rounds", at_least(1.0),
         elsewhere("docs/results.md")),
    Goal("bf16 against fp32 over 3 seeds, 755 rounds", "within seed noise", at_least(1.0),
         elsewhere("docs/results.md")),
    Goal("Tangent gradient in bf16, cosine to float64; R_s at 1e-5", ">= .99; <= 1e-2 off",
         at_least(1.0), elsewhere("docs/smart.md")),
    Goal("Dev mean after two epochs, MiniLM, bf16, CPU", ">= .72, < 12 min", at_least(1.0),
         elsewhere("docs/results.md")),
)  # fmt: skip
