"""A run that is cut off goes on with the same command, to the same bits."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_main import small, write_mmrec

from experiments import base, clothing, main, runner
from jaxcold.data.loading import load
from jaxcold.eval import report
from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.step import TrainState
from jaxcold.types import DataError

ROOT = pathlib.Path(__file__).parent.parent


class PowerCut(BaseException):
    """Nothing catches it."""


@pytest.fixture
def data(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    return tmp_path / "data"


def config_of(root, model="semco", every=3, **train):
    config = small(clothing.get_config(model), root)
    with config.unlocked():
        config.seeds = (0, 1)
        config.checkpoint.every_steps = every
        config.train.update(batch_size=16, **train)
        config.eval.figure = False
    return base.resolve(config)


def cut_after(monkeypatch, steps):
    """The power fails after that many steps of this process, whatever they are of."""
    left = [steps]
    advance = report.Progress.advance

    def counted(self, items, loss):
        advance(self, items, loss)
        left[0] -= 1
        if left[0] == 0:
            raise PowerCut

    monkeypatch.setattr(report.Progress, "advance", counted)


def outcome(workdir):
    """Everything that a finished run leaves, less times and sizes."""
    results = json.loads((workdir / "results.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    models = {}
    for path in sorted((workdir / "models").glob("seed_*/*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            models |= {f"{path.parent.name}/{name}": arrays[name].tobytes() for name in arrays}
    assert models
    return {part: results[part] for part in ("metrics", "baselines", "comparisons")}, rows, models


def assert_same(cut, whole):
    for got, wanted in zip(outcome(cut), outcome(whole), strict=True):
        assert got == wanted
    left = {path.name for path in cut.rglob("*") if not path.name.startswith("events.")}
    assert left == {path.name for path in whole.rglob("*") if not path.name.startswith("events.")}


@pytest.mark.parametrize("model", ["semco", "semco_offline", "semco_online"])
def test_cut_runs_end_in_the_same_bits(model, data, tmp_path, monkeypatch):
    config = config_of(data, model)
    runner.run(config, tmp_path / "whole")
    steps = runner.setup(
        config, *_loaded(config), tmp_path / "unused", runner.Console()
    ).model.steps_per_epoch
    assert steps > 10
    # Before the first checkpoint, at the end of an epoch, and, for one model, in the second seed.
    for number, cut in enumerate((2, steps, 2 * steps + 5)[: 3 if model == "semco" else 2]):
        with monkeypatch.context() as patch:
            cut_after(patch, cut)
            with pytest.raises(PowerCut):
                runner.run(config, tmp_path / "cut")
        if number:
            assert list((tmp_path / "cut" / runner.CHECKPOINTS).iterdir())
        assert not (tmp_path / "cut" / "results.json").exists()
    runner.run(config, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")


def _loaded(config):
    dataset = load(**config.data.to_dict())
    return dataset, dataset.split.slices()


def test_a_finished_run_is_shown_again_not_run(data, tmp_path, monkeypatch, capsys):
    config = config_of(data)
    first = runner.run(config, tmp_path / "run")
    monkeypatch.setattr(runner, "_train", None)
    again = runner.run(config, tmp_path / "run")
    assert again["metrics"].keys() == first["metrics"].keys()
    assert "--overwrite runs it again" in capsys.readouterr().out


def test_overwrite_begins_again(data, tmp_path, monkeypatch, capsys):
    config = config_of(data)
    with monkeypatch.context() as patch:
        cut_after(patch, 20)
        with pytest.raises(PowerCut):
            runner.run(config, tmp_path / "run")
    capsys.readouterr()
    runner.run(config, tmp_path / "run", overwrite=True)
    assert "goes on from" not in capsys.readouterr().out


def test_another_config_or_other_data_do_not_go_on(data, tmp_path, monkeypatch):
    config = config_of(data)
    with monkeypatch.context() as patch:
        cut_after(patch, 20)
        with pytest.raises(PowerCut):
            runner.run(config, tmp_path / "run")
    with pytest.raises(base.ConfigError, match=r"model\.tau differ"):
        runner.run(base.resolve(_with_tau(config, 5.0)), tmp_path / "run")
    write_mmrec(data, "clothing", ("text",), seed=1)
    with pytest.raises(base.ConfigError, match="the data are not those"):
        runner.run(config, tmp_path / "run")


def _with_tau(config, tau):
    other = config.copy_and_resolve_references()
    other.model.tau = tau
    return other


def test_a_damaged_checkpoint_is_named(data, tmp_path, monkeypatch):
    config = config_of(data)
    with monkeypatch.context() as patch:
        cut_after(patch, 20)
        with pytest.raises(PowerCut):
            runner.run(config, tmp_path / "run")
    folder = tmp_path / "run" / runner.CHECKPOINTS / "seed_0"
    damaged = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert damaged
    for path in damaged:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"seed_0.*cannot be read.*delete") as error:
        runner.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_checkpoint_keeps_the_state_and_the_newest_only(tmp_path):
    rng = np.random.default_rng(0)

    def state(step):
        return TrainState(np.int32(step), {"w": rng.normal(size=3)}, (rng.normal(size=2),), None)

    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.restore(state(0)) is None
    saved = [state(step) for step in (3, 6, 9)]
    for number, one in enumerate(saved):
        checkpoints.save(one, {"number": number, "x": 0.1 + 0.2})
    checkpoints.close()
    found, note = Checkpoints(tmp_path / "c").restore(state(0))
    assert note == {"number": 2, "x": 0.1 + 0.2}
    assert int(found.step) == 9
    np.testing.assert_array_equal(found.params["w"], np.float32(saved[2].params["w"]))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["9"]


def entry(data, workdir):
    flags = {
        "config": "experiments/clothing.py",
        "workdir": workdir,
        "config.data.root": data,
        "config.seeds": "(0,)",
        "config.model.hidden": 8,
        "config.model.out": 4,
        "config.train.epochs": 12,
        "config.train.batch_size": 16,
        "config.train.eval_every": 5,
        "config.eval.cutoffs": "(5,)",
        "config.eval.figure": False,
        "config.checkpoint.every_steps": 7,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.main", *(f"--{k}={v}" for k, v in flags.items())],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(workdir):
    folder = workdir / runner.CHECKPOINTS / "seed_0"
    steps = (
        [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if folder.exists()
        else []
    )
    return max(steps, default=0)


def wait_beyond(process, workdir, step):
    deadline = time.monotonic() + 300
    while newest(workdir) <= step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_and_asked_to_stop_the_entry_point_goes_on(data, tmp_path):
    whole = entry(data, tmp_path / "whole")
    said, errors = whole.communicate()
    assert (whole.returncode, errors) == (0, "")  # nothing but what the run has to say
    assert "[process=" not in said
    at = 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = entry(data, tmp_path / "cut")
        wait_beyond(process, tmp_path / "cut", at)
        process.send_signal(number)
        said, errors = process.communicate()
        at = newest(tmp_path / "cut")
        if number == signal.SIGTERM:
            assert process.returncode == main.STOPPED
            assert errors.strip().splitlines()[-1].startswith(f"stopped at step {at} of seed 0")
    last = entry(data, tmp_path / "cut")
    said, errors = last.communicate()
    assert last.returncode == 0, errors
    assert f"seed 0: goes on from step {at}" in said
    assert_same(tmp_path / "cut", tmp_path / "whole")
