"""metrics.jsonl, metrics.json and TensorBoard events of a run."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import torch

from sbrrt_fast.config import LogConfig
from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.training.logging import RunLogger, read_values
from tests.helpers import read_log

QUIET = LogConfig(tensorboard=False)
FINAL = {
    "dev": {"sst": {"accuracy": 0.5}, "sts": {"pearson": torch.tensor(0.25)}, "overall": 0.375},
    "rounds": 755,
    "rounds_per_second": np.float64(1.5),
    "backend": "reference",
    "precision": "fp32",
    "seed": 0,
}


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def write(folder, rounds, resume_round=None):
    with RunLogger(folder, QUIET, resume_round) as logger:
        for index in rounds:
            logger.log(index, {"loss/sst": torch.tensor(index / 3), "rounds/s": 2})


def test_values_are_read_in_order_and_exactly():
    values = {
        "a": torch.tensor(0.1, requires_grad=True),
        "b": 0.1,
        "c": torch.tensor(3, dtype=torch.int64),
        "d": torch.tensor(0.1, dtype=torch.bfloat16),
    }
    expected = {"a": float(np.float32(0.1)), "b": 0.1, "c": 3.0, "d": 0.10009765625}
    assert list(read_values(values).items()) == list(expected.items())


def test_each_line_is_on_disk_at_once(tmp_path):
    logger = RunLogger(tmp_path, QUIET)
    returned = logger.log(20, {"loss/sst": torch.tensor(0.5), "rounds/s": 2})
    assert returned == {"loss/sst": 0.5, "rounds/s": 2.0}
    assert read_log(tmp_path) == [{"round": 20, "loss/sst": 0.5, "rounds/s": 2.0}]
    logger.close()


def test_numbers_json_does_not_have_become_null(tmp_path):
    with RunLogger(tmp_path, QUIET) as logger:
        read = logger.log(1, {"a": torch.tensor(math.nan), "b": math.inf, "c": 1.0})
        logger.write_final({**FINAL, "gain": [math.nan, torch.tensor(-math.inf)]})
    assert math.isnan(read["a"])
    assert read_log(tmp_path) == [{"round": 1, "a": None, "b": None, "c": 1.0}]
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse_constant)["gain"] == [None, None]


@pytest.mark.parametrize("torn", ["", '{"round": 7, "loss/ss'])
def test_a_resumed_file_is_as_if_never_interrupted(tmp_path, torn):
    write(tmp_path / "whole", range(1, 9))
    write(tmp_path / "killed", range(1, 7))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path / "killed", range(5, 9), resume_round=4)
    whole, killed = (tmp_path / n / "metrics.jsonl" for n in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()


def test_resuming_without_a_file_starts_one(tmp_path):
    write(tmp_path, [5], resume_round=4)
    assert [line["round"] for line in read_log(tmp_path)] == [5]


def test_a_new_run_starts_afresh(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert [line["round"] for line in read_log(tmp_path)] == [1]


@pytest.mark.parametrize("foreign", ["hello", "[1]", '{"rounds": 3}'])
def test_a_foreign_line_is_named_on_resume(tmp_path, foreign):
    write(tmp_path, [1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(f'{foreign}\n{{"round": 2}}\n')
    with pytest.raises(SbrrtError, match=r"metrics.jsonl:2: "):
        RunLogger(tmp_path, QUIET, resume_round=2)


def test_final_metrics_have_the_published_format(tmp_path):
    with RunLogger(tmp_path, QUIET) as logger:
        path = logger.write_final(FINAL)
        with pytest.raises(AssertionError, match="seed"):
            logger.write_final({k: v for k, v in FINAL.items() if k != "seed"})
    assert json.loads(path.read_text()) == {
        "dev": {"sst": {"accuracy": 0.5}, "sts": {"pearson": 0.25}, "overall": 0.375},
        "rounds": 755,
        "rounds_per_second": 1.5,
        "backend": "reference",
        "precision": "fp32",
        "seed": 0,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "metrics.jsonl"]


def read_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss/sst")]


def test_tensorboard_has_the_same_scalars_also_after_a_resume(tmp_path):
    with RunLogger(tmp_path, LogConfig()) as logger:
        for index in (1, 2, 3):
            logger.log(index, {"loss/sst": index / 2})
    assert read_scalars(tmp_path) == [(1, 0.5), (2, 1.0), (3, 1.5)]
    with RunLogger(tmp_path, LogConfig(), resume_round=2) as logger:
        logger.log(3, {"loss/sst": 8.0})
    assert read_scalars(tmp_path) == [(1, 0.5), (2, 1.0), (3, 8.0)]
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(names) == 2 and all(name.endswith(".sbrrt_fast") for name in names)


def test_tensorboard_reads_the_file_of_a_resume_last(tmp_path, monkeypatch):
    """Writers are numbered, the tenth sorts before the ninth, and both come within a second."""
    from tensorboard.summary.writer import event_file_writer

    counter = event_file_writer.AtomicCounter(9)
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)
    time.sleep(1 - time.time() % 1)
    for resume_round, value in ((None, 1.0), (0, 8.0)):
        with RunLogger(tmp_path, LogConfig(), resume_round=resume_round) as logger:
            logger.log(1, {"loss/sst": value})
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert {name.split(".")[-2] for name in names} == {"9", "10"}
    assert read_scalars(tmp_path) == [(1, 8.0)]


def test_tensorboard_has_no_point_for_what_json_does_not_have(tmp_path):
    with RunLogger(tmp_path, LogConfig()) as logger:
        for index, value in ((1, 0.5), (2, math.nan), (3, math.inf), (4, 1.5)):
            logger.log(index, {"loss/sst": value})
    assert read_scalars(tmp_path) == [(1, 0.5), (4, 1.5)]
    assert [line["loss/sst"] for line in read_log(tmp_path)] == [0.5, None, None, 1.5]
