"""Rows, events and memory of a run."""

import math

import numpy as np
import pytest

from jaxcold.reporting import run_log


def test_rows_survive_a_kill(tmp_path):
    """Half a line, left by a killed run, costs that line and no other."""
    path = tmp_path / "metrics.jsonl"
    run_log.append_row(path, {"seed": 0, "loss": math.nan, "ndcg": np.float64(0.5)})
    long = {"seed": 1, "note": "x" * 10_000}
    run_log.append_row(path, long)
    with open(path, "a") as file:
        file.write('{"seed": 2, "lo' + "s" * 9_000)
    assert run_log.read_rows(path) == [{"seed": 0, "loss": None, "ndcg": 0.5}, long]
    run_log.append_row(path, {"seed": 3})
    assert [row["seed"] for row in run_log.read_rows(path)] == [0, 1, 3]
    path.write_text('{"seed": 0')  # nothing but half a line
    run_log.append_row(path, {"seed": 4})
    assert run_log.read_rows(path) == [{"seed": 4}]


def test_broken_row_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"seed": 0}\n{"seed"\n{}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        run_log.read_rows(path)


def test_tensorboard_writes_scalars(tmp_path):
    with run_log.tensorboard(tmp_path) as log:
        log(1, {"loss": 2.0, "val/cold/ndcg@20": 0.5})
        log(2, {"loss": 1.0})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    data = events.read_bytes()
    assert data.count(b"loss") == 2
    assert b"val/cold/ndcg" in data


def test_peak_memory_is_in_bytes():
    block = np.ones(2**23)
    assert block.nbytes < run_log.peak_memory() < 1e12
