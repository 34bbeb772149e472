"""A run that is cut off goes on with the same command, to the same bits."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
from rich.console import Console
from test_checkpoint import spoil
from test_main import small

from experiments import clothing, main, runner, seed
from experiments import config as base
from experiments import task as tasks
from experiments import workdir as rundir
from experiments.bench.kill_resume import outcome
from experiments.bench.toy import write_mmrec
from experiments.setup import make_setup
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.reporting import run_log
from jaxcold.reporting.progress import Progress
from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.step import init_state
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
    advance = Progress.advance

    def counted(self, items, loss):
        advance(self, items, loss)
        left[0] -= 1
        if left[0] == 0:
            raise PowerCut

    monkeypatch.setattr(Progress, "advance", counted)


def cut_run(monkeypatch, steps, config, folder):
    """Runs until the power fails."""
    with monkeypatch.context() as patch:
        cut_after(patch, steps)
        with pytest.raises(PowerCut):
            runner.run(config, folder)


def assert_same(cut, whole):
    got, wanted = outcome(cut), outcome(whole)
    for part in got.keys() | wanted.keys():
        assert got.get(part) == wanted.get(part), part


def newest_of(folder):
    return max(
        (path for path in folder.iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )


@pytest.mark.parametrize("model", ["semco", "semco_offline", "semco_online"])
def test_cut_runs_end_in_the_same_bits(model, data, tmp_path, monkeypatch, capsys):
    config = config_of(data, model)
    runner.run(config, tmp_path / "whole")
    steps = setup_of(config, tmp_path).model.steps_per_epoch
    assert steps > 10
    # Before the first checkpoint, at the end of an epoch, and, for one model, in the second seed.
    for number, cut in enumerate((2, steps, 2 * steps + 5)[: 3 if model == "semco" else 2]):
        cut_run(monkeypatch, cut, config, tmp_path / "cut")
        if number:
            folder = tmp_path / "cut" / rundir.CHECKPOINTS / "seed_0"
            assert len(list(folder.iterdir())) == 2
            if number == 1:
                spoil(newest_of(folder), "cut short")
        (tmp_path / "cut" / "models").mkdir(exist_ok=True)
        for left in ("config.json.0123abcd.part", "models/.seed_0.0123abcd.part/x"):
            (tmp_path / "cut" / left).parent.mkdir(exist_ok=True)
            (tmp_path / "cut" / left).write_bytes(b"half")
        assert not (tmp_path / "cut" / "results.json").exists()
    runner.run(config, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")
    said = capsys.readouterr().out
    assert said.count("the checkpoint cannot be read") == 1
    assert "takes its place" in said


def setup_of(config, folder):
    """What a run of the config makes before it trains."""
    task = tasks.of(config)
    dataset = task.load(config)
    slices = task.slices(config, dataset)
    return make_setup(config, dataset, slices, folder, folder, Console())


def test_a_finished_run_is_shown_again_not_run(data, tmp_path, monkeypatch, capsys):
    config = config_of(data)
    first = runner.run(config, tmp_path / "run")
    monkeypatch.setattr(seed, "train", None)
    again = runner.run(config, tmp_path / "run")
    assert again["metrics"].keys() == first["metrics"].keys()
    assert "--overwrite runs it again" in capsys.readouterr().out


def test_overwrite_begins_again(data, tmp_path, monkeypatch, capsys):
    config = config_of(data)
    cut_run(monkeypatch, 20, config, tmp_path / "run")
    capsys.readouterr()
    runner.run(config, tmp_path / "run", overwrite=True)
    assert "goes on from" not in capsys.readouterr().out


def test_another_config_or_other_data_do_not_go_on(data, tmp_path, monkeypatch):
    config = config_of(data)
    cut_run(monkeypatch, 20, config, tmp_path / "run")
    with pytest.raises(base.ConfigError, match=r"model\.tau differ"):
        runner.run(base.resolve(_with_tau(config, 5.0)), tmp_path / "run")
    write_mmrec(data, "clothing", ("text",), seed=1)
    with pytest.raises(base.ConfigError, match=r"the data are not those .*clothing\.inter"):
        runner.run(config, tmp_path / "run")


def _with_tau(config, tau):
    other = config.copy_and_resolve_references()
    other.model.tau = tau
    return other


def test_a_damaged_checkpoint_is_named(data, tmp_path, monkeypatch):
    config = config_of(data)
    cut_run(monkeypatch, 20, config, tmp_path / "run")
    folder = tmp_path / "run" / rundir.CHECKPOINTS / "seed_0"
    for path in folder.iterdir():
        spoil(path, "cut short")
    with pytest.raises(DataError, match=r"seed_0.*cannot be read.*delete") as error:
        runner.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_checkpoints_of_another_config_are_refused(data, tmp_path, monkeypatch):
    config = config_of(data)
    cut_run(monkeypatch, 20, config, tmp_path / "run")
    other = _with_tau(config, 5.0)
    (tmp_path / "run" / rundir.CONFIG_FILE).write_text(other.to_json())
    with pytest.raises(base.ConfigError, match="seed_0 is of a run with another config; delete it"):
        runner.run(other, tmp_path / "run")


def test_the_best_checkpoint_is_left_when_asked_for(data, tmp_path):
    config = config_of(data, every=1000, epochs=4, learning_rate=0.05)
    with config.unlocked():
        config.checkpoint.update(keep=1, keep_best=True)
        config.seeds = (0,)
    runner.run(config, tmp_path / "run")
    rows = run_log.read_rows(tmp_path / "run" / "metrics.jsonl")
    scores = {row["step"]: row["val/cold/ndcg@5"] for row in rows}
    best = max(scores, key=scores.get)
    assert best < max(scores)  # or the newest would do
    (left,) = (tmp_path / "run" / rundir.BEST / "seed_0").iterdir()
    assert left.name == str(best)
    setup = setup_of(config, tmp_path)
    model, slices = setup.model, {"val": setup.slices["val/cold"]}
    state, metadata = Checkpoints(left.parent).restore(init_state(model, 0))
    metrics = evaluate_model(model, state.params, state.model_state, slices, (5,))["val"]
    assert metrics.mean()["ndcg@5"] == scores[best]
    assert metadata["stopping"]["best_score"] == scores[best]
    assert metadata["stopping"]["best_epoch"] == best // model.steps_per_epoch


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
    folder = workdir / rundir.CHECKPOINTS / "seed_0"
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


def test_asked_to_stop_the_entry_point_saves_and_goes_on(data, tmp_path):
    process = entry(data, tmp_path / "run")
    wait_beyond(process, tmp_path / "run", 0)
    process.terminate()
    said, errors = process.communicate()
    at = newest(tmp_path / "run")
    assert process.returncode == main.STOPPED
    assert errors == f"stopped at step {at} of seed 0; the same command goes on\n"
    last = entry(data, tmp_path / "run")
    said, errors = last.communicate()
    assert (last.returncode, errors) == (0, "")  # nothing but what the run has to say
    assert f"seed 0: goes on from step {at}" in said
    assert "[process=" not in said


def test_killed_at_random_moments_a_run_ends_in_the_same_bits():
    """Five of the kills of the whole benchmark; see there."""
    command = [sys.executable, "-m", "experiments.bench.kill_resume", "--kills=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "\n5 kills" in done.stdout
    assert "all ended in the same bits" in done.stdout
