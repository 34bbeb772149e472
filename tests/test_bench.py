"""The benchmarks run, on tiny sizes, and count and generate what they say. No test reads a time."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest

from experiments.bench import baselines, distillation_step, entmax, linear_entmax, semco_step
from experiments.bench.timing import median_times

TINY = semco_step.Sizes(users=60, items=50, pairs=400, dim=6, hidden=5, out=4, batch=32)


def command(name: str, *flags: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", f"experiments.bench.{name}", *flags]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def test_flops_of_a_step():
    sizes = semco_step.Sizes(users=9, items=5, pairs=9, dim=3, hidden=7, out=2, batch=11)
    assert sizes.warm == 4
    first, final, logits = 2 * 4 * 3 * 7, 2 * 4 * 7 * 2, 2 * 11 * 11 * 2
    assert semco_step.step_flops(sizes) == 2 * first + 3 * final + 3 * logits


def test_generated_pairs_are_distinct_skewed_and_warm():
    sizes = TINY._replace(users=2000, items=1000, pairs=15_000)
    dataset = semco_step.generate(sizes)
    pairs = dataset.split.pairs["warm_train"]
    assert len(pairs) == len(np.unique(pairs, axis=0)) == round(0.64 * 15_000)
    assert pairs[:, 0].max() < 2000
    assert pairs[:, 1].max() < sizes.warm == len(dataset.split.warm_items)
    for column, rows in ((0, 2000), (1, sizes.warm)):
        degree = np.sort(np.bincount(pairs[:, column], minlength=rows))[::-1]
        assert degree[: rows // 10].sum() > 0.2 * degree.sum()  # equal degrees would give 0.1
        assert degree[0] > 4 * degree.mean()
    np.testing.assert_array_equal(pairs, semco_step.generate(sizes).split.pairs["warm_train"])


def test_more_pairs_than_exist_are_refused():
    with pytest.raises(ValueError, match=r"--pairs=5000 is too dense for 60 users and 40 warm"):
        semco_step.generate(TINY._replace(pairs=5000))


def test_semco_step_measures_every_row():
    measured = semco_step.measure(TINY, repeats=1, threads=1)
    maps = {"softmax", "entmax15", "sparsemax"}
    assert set(measured.step) == set(measured.fraction_of_peak) == maps
    times = [*measured.step.values(), *measured.matmul.values(), measured.active, measured.batches]
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in times)
    assert measured.steps_per_epoch == math.ceil(round(0.64 * 400) / 32)
    # Features alone are an argument of the step.
    assert measured.peak_bytes > measured.step_bytes > 4 * TINY.warm * TINY.dim
    report = "\n".join(semco_step.format_report(measured))
    assert "step needs" in report
    if all(importlib.util.find_spec(name) for name in ("torch", "entmax")):
        assert set(measured.torch.seconds) == set(measured.torch.ours) == maps
        assert measured.torch.loss_gap < 1e-5
    else:
        assert "PyTorch: skipped" in report


def test_baselines_measure_the_same_losses():
    names = ["clcrec", "heater", "gar"]
    times = baselines.measure(TINY._replace(items=400, batch=64), names, repeats=1, threads=1)
    assert list(times) == names
    report = "\n".join(baselines.format_report(times))
    for t in times.values():
        assert t.steps >= baselines.STEPS
        assert t.epoch == pytest.approx(t.batches + t.steps * t.step)
    if importlib.util.find_spec("torch"):
        assert times["gar"].loss_gap is None  # its dropout is drawn at random
        assert all(times[name].loss_gap < 1e-5 for name in names[:2])
        assert "over ours" in report
    else:
        assert "PyTorch: skipped" in report


def test_semco_step_command_reads_its_flags():
    done = command("semco_step", "--users=60", "--items=50", "--pairs=5000")
    assert done.returncode != 0
    assert "--pairs=5000 is too dense" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_distillation_step_measures_every_row():
    times = distillation_step.measure(TINY, teacher=6, repeats=1)
    assert set(times) == {"base", "online", "online, teacher stopped"}
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in times.values())


def test_evaluation_command():
    done = command("evaluation", "--users=40", "--items=30", "--width=4", "--k=5", "--repeats=1")
    assert done.returncode == 0, done.stderr
    assert "40 users x 30 items x 4 dimensions, K = 5" in done.stdout
    assert "peak memory" in done.stdout


def test_entmax_table(monkeypatch):
    monkeypatch.setattr(entmax, "ROWS", 16)
    lines = entmax.table(1).splitlines()
    assert {"softmax", "entmax15", "sparsemax"} <= {line.split(" | ")[1] for line in lines[2:]}


def test_linear_entmax_measures_the_same_loss_both_ways():
    dense, blocked = (
        linear_entmax.measure(name, 1.5, 20.0, 32, 96, 8) for name in ("dense", "xla")
    )
    assert blocked["value"] == pytest.approx(dense["value"], rel=1e-5)


def test_median_times_calls_each_function_once_a_round():
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = median_times(functions, repeats=3, warm_up=1)
    assert set(times) == {"a", "b"}
    assert calls == ["a", "b"] * 4
    with pytest.raises(ValueError, match="repeats"):
        median_times(functions, repeats=0)
