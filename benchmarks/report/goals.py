"""What the package wants to reach, each goal with the figure of a run, met or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness.results import Results, Row, by_case

ROUND, FAST = ("round", "minilm round train"), "fast bf16"
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


def times_faster(*rivals: str, ours: str = FAST) -> Callable[[Results], tuple[float, str]]:
    """The time of the quickest of some peers over that of our round, with one step per task."""

    def find(results: Results) -> tuple[float, str]:
        known = by_case(results.rows).get(ROUND, {})
        present = [known[name] for name in rivals if name in known]
        if not present:
            raise Unknown(why_absent(results, ROUND[0], rivals[0]))
        rival = min(present, key=lambda row: row.seconds)
        figure = rival.seconds / row_of(results, ROUND, ours).seconds
        joint = known.get(f"{ours} joint")
        more = f"; {rival.seconds / joint.seconds:.1f}x with one step per round" if joint else ""
        return figure, f"{figure:.1f}x ({rival.variant}){more}"

    return find


def over_plain(results: Results) -> tuple[float, str]:
    figure = row_of(results, ROUND, FAST).seconds / row_of(results, ROUND, "plain bf16").seconds
    return figure, f"{figure:.2f}"


def memory_ratio(results: Results) -> tuple[float, str]:
    """Of what a round takes beyond weights, moments and teacher."""
    memory = results.detail("memory")
    if not {FAST, "reference fp32"} <= set(memory):
        raise Unknown("no memory in this run")
    ours, reference = memory[FAST]["round_bytes"], memory["reference fp32"]["round_bytes"]
    figure = ours / reference
    return figure, f"{figure:.2f} ({ours / MIB:.0f} of {reference / MIB:.0f} MiB)"


def per_token_spread(variant: str) -> Callable[[Results], tuple[float, str]]:
    """The largest time per token over the smallest, over batches of the sweep."""

    def find(results: Results) -> tuple[float, str]:
        rows = {
            row.case: row.seconds / row.tokens
            for row in results.rows
            if row.benchmark == "sweep" and row.variant == variant and " round-" in row.case
        }
        if len(rows) < 2:
            raise Unknown("no sweep in this run")
        figure = max(rows.values()) / min(rows.values())
        sizes = [int(case.split()[1].partition("-")[2]) for case in rows]
        shown = ", ".join(f"{1e6 * x:.0f}" for x in rows.values())
        return figure, f"{figure:.2f} ({shown} us a token, batch {min(sizes)} to {max(sizes)})"

    return find


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


BF16 = ("hf bf16 sdpa", "hf bf16 eager")
GOALS = (
    Goal("SBRRT round against Hugging Face fp32 eager, CPU", ">= 8x", at_least(8.0),
         times_faster("hf fp32 eager"), "cpu"),
    Goal("SBRRT round against Hugging Face bf16 autocast, CPU", ">= 4x", at_least(4.0),
         times_faster(*BF16), "cpu"),
    Goal("The same in fp32 on both sides, against fp32 eager, CPU", "-", None,
         times_faster("hf fp32 eager", ours="fast fp32"), "cpu"),
    Goal("SBRRT round against our reference, eager, GPU", ">= 12x", at_least(12.0),
         times_faster("reference fp32"), "cuda"),
    Goal("SBRRT round against torch.compile with graphs, GPU", ">= 2.2x", at_least(2.2),
         times_faster("hf bf16 graphs"), "cuda"),
    Goal("SBRRT round over a plain round", "<= 3.0", at_most(3.0), over_plain),
    Goal("Memory of a round against the reference's", "<= 0.5", at_most(0.5), memory_ratio),
    Goal("Time per token, batch 8 to 64, largest over smallest, a step per task", "<= 1.2",
         at_most(1.2), per_token_spread(FAST)),
    Goal("The same, a step per round", "<= 1.2", at_most(1.2), per_token_spread(f"{FAST} joint")),
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
