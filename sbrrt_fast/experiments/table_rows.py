"""Which runs are the rows of which table, and what the paper has for them: data.

A row's runs are kept under its name, so a row that stands in several tables is trained once. Rows
of one name have the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sbrrt_fast.experiments.table import Paper, Row, Table

_COURSE = ("sst", "para", "sts")

# The paper gives one learning rate and no schedule, so the rate is taken to be constant.
_PAPER = {
    "epochs": 10,
    "optimizer.warmup": 0.0,
    "optimizer.decay": "constant",
    "model.hidden_dropout": 0.1,
    "model.attention_dropout": 0.1,
}
# SST alone is trained. Its dev split is whole within 2,000 rows, and decides which model is best.
_ALONE = {
    "tasks": {"sst": {}, "para": {"train": False}, "sts": {"train": False}},
    "log.dev_rows": 2000,
}
_PAPER_SST = {**_PAPER, **_ALONE, "round.batch_size": 64}
_PAPER_CFIMDB = {**_PAPER, "round.batch_size": 8}
_ONE_RATE = {"optimizer.head_learning_rate": None}
_PRETRAIN = {"optimizer.learning_rate": 1e-3}
_FINETUNE = {"optimizer.learning_rate": 1e-5, **_ONE_RATE}
_PAPER_SMART = {"smart.weight": 5.0, "smart.preset": "paper"}
_NO_SMART, _NO_TEACHER = {"smart.weight": 0.0}, {"bregman.weight": 0.0}
_BEST = "sbrrt-best"  # the recipe that the table of ingredients takes apart


def _scores(sst: float, para: float, sts: float, speed: float | None = None) -> Paper:
    return Paper({"sst": sst, "para": para, "sts": sts}, speed)


def _single(task: str, score: float, benchmark: float) -> Paper:
    return Paper({task: score}, benchmark={task: benchmark})


# Table 1

_TABLE_1 = (
    Row("sst-pretrain", "sst-pretrain", _ALONE, _single("sst", 0.416, 0.390)),
    Row("sst-finetune", "sst-finetune", _ALONE, _single("sst", 0.531, 0.515)),
    Row("cfimdb-pretrain", "cfimdb-pretrain", {}, _single("cfimdb", 0.780, 0.780)),
    Row("cfimdb-finetune", "cfimdb-finetune", {}, _single("cfimdb", 0.963, 0.966)),
)
_PAPER_OF_TABLE_1 = {
    "sst-pretrain": _PAPER_SST | _PRETRAIN,
    "sst-finetune": _PAPER_SST | _FINETUNE,
    "cfimdb-pretrain": _PAPER_CFIMDB | _PRETRAIN,
    "cfimdb-finetune": _PAPER_CFIMDB | _FINETUNE,
}


def _as_in_the_paper(row: Row, settings: Mapping[str, Any], **changes: Any) -> Row:
    """The row with the paper's settings, called ``NAME-paper``."""
    return replace(row, name=f"{row.name}-paper", overrides=settings, **changes)


# Table 2

_PRETRAIN_PAPER = _scores(0.415, 0.609, -0.072)
_FINETUNE_PAPER = _scores(0.529, 0.381, 0.246, 8.09)
_SMART_PAPER = _scores(0.518, 0.371, 0.307, 3.36)
_ROUND_ROBIN_PAPER = _scores(0.500, 0.695, 0.496, 2.20)
_SBRRT_PAPER = _scores(0.505, 0.719, 0.567, 1.45)

_ROUND_ROBIN = Row("round-robin", "round-robin", {}, _ROUND_ROBIN_PAPER)
_SBRRT = Row("sbrrt", "sbrrt", {}, _SBRRT_PAPER, base="round-robin", plain="round-robin")
_SMART_ONLY = replace(
    _SBRRT, name="round-robin-smart", overrides=_NO_TEACHER, paper=Paper()
)  # no teacher
_TEACHER_ONLY = replace(_SBRRT, name="round-robin-teacher", overrides=_NO_SMART, paper=Paper())

_ON_SST = (
    replace(_TABLE_1[0], paper=_PRETRAIN_PAPER, base="round-robin"),
    replace(_TABLE_1[1], paper=_FINETUNE_PAPER, base="round-robin"),
    Row("smart", "smart", _ALONE, _SMART_PAPER, base="round-robin", plain="sst-finetune"),
)
_TABLE_2 = (
    *_ON_SST,
    _ROUND_ROBIN,
    _SBRRT,
    _SMART_ONLY,
    _TEACHER_ONLY,
    replace(_SBRRT, name="sbrrt-mtdnn", overrides={"smart.preset": "mtdnn"}, paper=Paper()),
    *(
        _as_in_the_paper(row, _PAPER_OF_TABLE_1[row.name], base="round-robin-paper")
        for row in _ON_SST[:2]
    ),
    _as_in_the_paper(
        _ON_SST[2],
        _PAPER_SST | _FINETUNE | _PAPER_SMART,
        base="round-robin-paper",
        plain="sst-finetune-paper",
    ),
    Row("round-robin-paper", "sbrrt-paper", _NO_SMART | _NO_TEACHER, _ROUND_ROBIN_PAPER),
    Row(
        *("sbrrt-paper", "sbrrt-paper", {}, _SBRRT_PAPER),
        base="round-robin-paper",
        plain="round-robin-paper",
    ),
)

# Size of R_s

_RADIUS = (
    _ROUND_ROBIN,
    *(
        replace(_SBRRT, name=f"sbrrt-radius-{x:g}", overrides={"smart.radius": x}, paper=Paper())
        for x in (1e-5, 0.002)
    ),
    _SBRRT,
    *(
        replace(_SBRRT, name=f"sbrrt-radius-{x:g}", overrides={"smart.radius": x}, paper=Paper())
        for x in (0.06, 0.2, 0.6)
    ),
    *(
        replace(_SBRRT, name=f"sbrrt-lambda-{x:g}", overrides={"smart.weight": x}, paper=Paper())
        for x in (0.1, 3.0, 10.0)
    ),
)

# Less data, and noise in the labels: with and without SMART, with and without the teacher

_FOUR = (_ROUND_ROBIN, _SMART_ONLY, _TEACHER_ONLY, _SBRRT)


def _variants(suffix: str, settings: Mapping[str, Any]) -> tuple[Row, ...]:
    """Those four with further settings."""
    return tuple(
        replace(
            row,
            name=f"{row.name}-{suffix}",
            overrides={**row.overrides, **settings},
            paper=Paper(),
            base=row.base and f"{row.base}-{suffix}",
            plain=row.plain and f"{row.plain}-{suffix}",
        )
        for row in _FOUR
    )


def _of_each_task(setting: str, value: float) -> dict[str, float]:
    return {f"tasks.{task}.{setting}": value for task in _COURSE}


_FEW = {"log.evaluate_every": 60, "log.dev_rows": 2000}  # epochs are short
_DATA = (
    *_variants("100-rows", {**_of_each_task("train_rows", 100), "rounds": 240, **_FEW}),
    *_variants("1000-rows", {**_of_each_task("train_rows", 1000), "rounds": 480, **_FEW}),
    *_FOUR,
)
_NOISE = (
    *_FOUR,
    *_variants("noise-0.2", _of_each_task("label_noise", 0.2)),
    *_variants("noise-0.4", _of_each_task("label_noise", 0.4)),
)

# The best recipe, and what its parts give: each changes one thing of one epoch, not regularised,
# which is short enough for many rows. Surgery needs joint updates, so it is tested against them.

_SHORT = {"epochs": 1, **_NO_SMART, **_NO_TEACHER}
_DROPOUT = {"model.hidden_dropout": 0.1, "model.attention_dropout": 0.1}
_SST_ALONE = {"tasks.para.dropout": False, "tasks.sts.dropout": False}
_SMART_ON, _TEACHER_ON = {"smart.weight": 1.0}, {"bregman.weight": 0.8}
_CHANGES: dict[str, dict[str, Any]] = {
    "smart": _SMART_ON,
    "teacher": _TEACHER_ON,
    "smart-teacher": _SMART_ON | _TEACHER_ON,
    "teacher-weights": _TEACHER_ON | {"average.weights": "teacher"},
    "swa": {"average.weights": "swa"},
    "dropout": _DROPOUT,
    "sst-dropout": _DROPOUT | _SST_ALONE,
    "cross": {"tasks.para.encoding": "cross"},
    "cfimdb": {"tasks.cfimdb": {}, "model.max_length": 128},  # a fourth task, of long texts
    "no-smoothing": {"tasks.sst.label_smoothing": 0.0},
    "one-rate": {"optimizer.head_learning_rate": None},
    "no-layer-decay": {"optimizer.layer_decay": 1.0},
    "frozen": {"optimizer.frozen_layers": 2},
    "unfreezing": {"optimizer.unfreeze_every": 40},
    "batch-8": {"round.batch_size": 8},
    "batch-32": {"round.batch_size": 32},
    "proportional": {"round.schedule": "proportional"},
    "annealed": {"round.schedule": "annealed"},
    "uncertainty": {"round.task_weights": "uncertainty"},
    "joint": {"round.update": "joint"},
    "surgery": {"round.update": "joint", "optimizer.surgery": "pcgrad"},
    "pretrained": {"model.backbone": "runs/pretrained/last"},
}
_INGREDIENTS = (
    _ROUND_ROBIN,
    Row("best", _BEST, base="round-robin"),
    Row("short", _BEST, _SHORT),
    *(
        Row(
            *(f"short-{name}", _BEST, _SHORT | changes),
            base="short-joint" if name == "surgery" else "short",
        )
        for name, changes in _CHANGES.items()
    ),
)

TABLES = {
    table.name: table
    for table in (
        Table(
            *("1", "Table 1, single-task sentiment", ("sst", "cfimdb")),
            (*_TABLE_1, *(_as_in_the_paper(r, _PAPER_OF_TABLE_1[r.name]) for r in _TABLE_1)),
            has_overall=False,
        ),
        Table("2", "Table 2, single-task and multi-task fine-tuning", _COURSE, _TABLE_2),
        Table("radius", "Size of R_s", _COURSE, _RADIUS),
        Table("data", "Training rows of each task", _COURSE, _DATA),
        Table("noise", "Noise in the labels", _COURSE, _NOISE),
        Table("ingredients", "The best recipe and its parts", _COURSE, _INGREDIENTS),
    )
}
