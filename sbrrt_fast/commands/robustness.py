"""``sbrrt-fast robustness``: finished runs on perturbed dev texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.data.perturb import PERTURBATION_NAMES, RATE, SEED, Perturbation
from sbrrt_fast.data.perturbed import Perturbing
from sbrrt_fast.data.sources import expanded
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.experiments.robustness import (
    RobustnessSettings,
    check_record,
    finished_runs,
    measure_robustness,
    record_path,
    robustness_lines,
)
from sbrrt_fast.messages import columns, printable


@dataclass(frozen=True)
class RobustnessArguments:
    """Score the best models of finished runs on perturbed dev texts, a small JSON file per run.

    Called again it computes only what is missing. The table has means over the runs of a row, those
    in one folder.

    Attributes:
        folders: runs, or folders with runs below them, such as that of `sbrrt-fast reproduce`.
        perturb: the perturbations.
        perturb_rate: the probability that a word, mark or gap is changed.
        perturb_seed: with a row's task and id it decides how the row is changed.
        dev_rows: take the first N rows of each dev split alone.
        data_dir: folder of the task files.
        output: folder of the files, ROW/RUN.json.
        device: auto takes a GPU if there is one.
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER [FOLDER ...]")]
    perturb: tuple[Perturbation, ...] = PERTURBATION_NAMES
    perturb_rate: float = RATE
    perturb_seed: int = SEED
    dev_rows: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all rows)")] = (
        None
    )
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: as each run was trained)")
    ] = None
    output: Path = Path("runs/robustness")
    device: Literal["auto", "cpu", "cuda"] = "auto"


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(RobustnessArguments, argv, "sbrrt-fast robustness")
    settings = _settings(arguments)
    runs = finished_runs([expanded(folder) for folder in arguments.folders])
    paths = [record_path(arguments.output, run) for run in runs]
    for run, path in zip(runs, paths, strict=True):
        check_record(run, path, settings)
    records = []
    for number, (run, path) in enumerate(zip(runs, paths, strict=True), 1):
        print(printable(f"{run} ({number} of {len(runs)})"))
        options = {"data_dir": arguments.data_dir and expanded(arguments.data_dir)}
        records.append(measure_robustness(run, path, settings, device=arguments.device, **options))
    print("\noverall dev scores, and what perturbed texts change")
    print("\n".join(f"  {line}" for line in columns(robustness_lines(records))))
    return 0


def _settings(arguments: RobustnessArguments) -> RobustnessSettings:
    """Raises ConfigError for what cannot be used."""
    if arguments.dev_rows is not None and arguments.dev_rows < 1:
        raise ConfigError(f"--dev-rows: must be at least 1, got {arguments.dev_rows}")
    names = tuple(dict.fromkeys(arguments.perturb))
    perturbing = Perturbing(names, arguments.perturb_rate, arguments.perturb_seed)
    return RobustnessSettings(perturbing, arguments.dev_rows)
