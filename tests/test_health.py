"""What can go wrong while a run is under way ends in one clear line, and spoils nothing."""

import contextlib
import errno
import json
import os
import pathlib
import re
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_checkpoint import a_state, assert_state
from test_resume import ROOT, config_of

from experiments import config as base
from experiments import main, runner, setup
from experiments import workdir as rundir
from experiments.bench.toy import write_mmrec
from jaxcold.data.pairs.batches import shuffled_pairs
from jaxcold.files import check_mapped, write_atomic
from jaxcold.reporting import run_log
from jaxcold.reporting.progress import Progress
from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import init_state, make_step
from jaxcold.types import DataError, Model

SIZE, STEPS = 4, 5


@pytest.fixture
def data(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    return tmp_path / "data"


@contextlib.contextmanager
def disk_limit(size):
    """The disk takes no file beyond so many bytes: as a full one it refuses what is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- a loss that is not finite -----------------------------------------------------------------


def toy():
    """Fits numbers; batch b of an epoch holds numbers of its order."""

    def order(rng):
        return rng.permutation(SIZE * STEPS).reshape(STEPS, SIZE)

    def loss(params, model_state, constants, batch, key):
        own = params["main"]["w"]
        error = jnp.sum((own - batch["x"]) ** 2)
        # A root has no derivative at 0: the loss is finite there, its gradient is not.
        error += jnp.sum(jnp.sqrt(jnp.abs(own * batch["kink"])))
        return error + batch["bad"], (jnp.float32(SIZE), model_state, {})

    def batches(bad=None, kink=None):
        def epoch(rng):
            for rows in order(rng):
                yield {
                    "x": jnp.asarray(rows, jnp.float32),
                    "bad": jnp.float32(np.nan if bad in rows else 0),
                    "kink": jnp.float32(kink not in rows),
                }

        return epoch

    def model(epochs=10, **wrong):
        return Model(
            constants=None,
            init=lambda seed: ({"main": {"w": jnp.ones(())}}, ()),
            losses={"main": loss},
            optimizers={"main": optax.sgd(1e-2)},
            batches=batches(**wrong),
            encode_items=lambda *_: None,
            encode_users=lambda *_: None,
            steps_per_epoch=STEPS,
            examples_per_epoch=SIZE * STEPS,
            epochs=epochs,
            examples=lambda rng, at: {"number": order(rng)[at]},
        )

    return model


def where_is(number, seed, epoch):
    order = np.random.default_rng([seed, epoch]).permutation(SIZE * STEPS).reshape(STEPS, SIZE)
    return int(np.argwhere(order == number)[0, 0]), order


@pytest.mark.parametrize("wrong", ["bad", "kink"])
@pytest.mark.parametrize("number", [0, 7])
def test_training_stops_with_the_batch_and_before_it_is_saved(wrong, number):
    model = toy()(**{wrong: number})
    saved = []
    with pytest.raises(DivergedError) as caught:
        fit(
            model,
            make_step(model),
            init_state(model, 3),
            seed=3,
            due=lambda done: True,
            on_due=lambda state: saved.append(jax.tree.map(np.array, state)),
        )
    at, order = where_is(number, 3, 0)
    error = caught.value
    what = "the loss is nan" if wrong == "bad" else "the parameters are not finite any more"
    assert str(error) == f"{what} at step {at} (epoch 1)"
    assert error.step == at
    np.testing.assert_array_equal(error.examples["number"], order[at])
    assert number in error.examples["number"]
    if at:
        np.testing.assert_array_equal(error.before["number"], order[at - 1])
    assert [int(state.step) for state in saved] == list(range(1, at + 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))


def test_a_loss_is_looked_at_in_time_where_nothing_is_saved():
    model = toy()(bad=0, epochs=Model._field_defaults["in_flight"] + 2)
    finished = []
    with pytest.raises(DivergedError, match="the loss is nan at step"):
        fit(
            model,
            make_step(model),
            init_state(model, 0),
            seed=0,
            on_step=lambda number, metrics: finished.append(number),
        )
    assert finished == list(range(where_is(0, 0, 0)[0]))


def test_a_run_that_diverges_leaves_the_examples_and_the_last_good_checkpoint(
    data,
    tmp_path,
    monkeypatch,
):
    config = config_of(data, every=3)
    with config.unlocked():
        config.seeds = (0,)
    workdir, bad = tmp_path / "run", 8

    def spoilt(model):
        step = make_step(model)

        def spoil(state, *inputs):
            number = int(state.step)
            state, metrics = step(state, *inputs)
            return state, metrics | {"loss": metrics["loss"] * (np.nan if number == bad else 1)}

        return spoil

    monkeypatch.setattr(setup, "make_step", spoilt)
    for _ in range(2):  # the same command comes to the same end
        with pytest.raises(FloatingPointError) as caught:
            runner.run(config, workdir)
        message = str(caught.value)
        assert "\n" not in message
        assert re.match(
            rf"the loss is nan at step {bad} \(epoch 1\), seed 0; config \S+json", message
        )
        assert "users " in message
        assert str(workdir / "diverged_seed_0.json") in message
        kept = workdir / rundir.CHECKPOINTS / "seed_0"
        assert sorted(int(path.name) for path in kept.iterdir()) == [3, 6]
    found = json.loads((workdir / "diverged_seed_0.json").read_text())
    with np.load(workdir / "split.npz", allow_pickle=False) as split:
        user, item = split["warm_train"].T
    pairs = shuffled_pairs(user, item, 16, np.random.default_rng([0, 0]))
    for name, at in (("batch", bad), ("batch_before", bad - 1)):
        # The data set numbers users and items from 0 itself.
        assert found[name] == {"user": pairs.user[at].tolist(), "item": pairs.item[at].tolist()}
    assert (found["step"], found["seed"]) == (bad, 0)
    assert found["config"]["model"]["tau"] == config.model.tau
    monkeypatch.undo()
    runner.run(config, workdir)
    assert not list(workdir.glob("diverged*"))


# --- a full disk -------------------------------------------------------------------------------


def test_a_file_that_does_not_fit_stays_what_it_was(tmp_path):
    path = tmp_path / "f.json"
    write_atomic(path, b"old")
    with (
        disk_limit(1000),
        pytest.raises(OSError, match=r"File too large.*f\.json") as caught,
    ):
        write_atomic(path, bytes(2000))
    assert caught.value.errno == errno.EFBIG
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f.json", b"old")]


def test_a_row_that_does_not_fit_is_not_begun(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run_log.append_row(path, {"a": 1})
    before = path.read_bytes()
    with disk_limit(20), pytest.raises(OSError, match=r"metrics\.jsonl"):
        run_log.append_row(path, {"a": "x" * 100})
    assert path.read_bytes() == before
    run_log.append_row(path, {"a": 2})
    assert run_log.read_rows(path) == [{"a": 1}, {"a": 2}]


def test_events_that_do_not_fit_end_in_an_error(tmp_path):
    def write():
        with run_log.tensorboard(tmp_path / "tb") as log:
            for step in range(5000):
                log(step, {"loss": 1.0})

    with disk_limit(10_000), pytest.raises(OSError, match=r"File too large.*tb"):
        write()


def _save(checkpoints, step, size):
    checkpoints.save(a_state(step, size), {})
    checkpoints.wait()


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    size = 30_000
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(a_state(1, size), {})
    checkpoints.wait()
    with (
        disk_limit(10_000),
        pytest.raises(OSError, match=r"cannot be written .File too") as e,
    ):
        _save(checkpoints, 2, size)
    assert str(tmp_path / "c") in str(e.value)
    assert "\n" not in str(e.value)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]
    checkpoints.save(a_state(3, size), {})
    checkpoints.close()
    assert_state(Checkpoints(tmp_path / "c").restore(a_state(0, size))[0], 3, size)


def test_a_full_disk_ends_the_command_in_one_line(data, tmp_path):
    flags = {
        "config": "experiments/clothing.py",
        "workdir": tmp_path / "run",
        "config.data.root": data,
        "config.seeds": "(0,)",
        "config.train.batch_size": 16,
        "config.checkpoint.every_steps": 1,
    }
    command = [sys.executable, "-m", "experiments.main", *(f"--{k}={v}" for k, v in flags.items())]
    done = subprocess.run(
        # Configuration and split fit into 20 KiB, a checkpoint does not.
        ["bash", "-c", 'ulimit -f 20; exec "$@"', "_", *command],
        cwd=ROOT,
        # Nor would a compiled program, which is none of the run's files.
        env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"},
        capture_output=True,
        text=True,
    )
    # On a busy machine XLA may say there that compiling was slow.
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert re.match(r"error: \S+seed_0: the checkpoint cannot be written \(File too large\)", line)
    assert not list((tmp_path / "run" / rundir.CHECKPOINTS / "seed_0").iterdir())
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_file_and_the_remedy(number):
    error = OSError(number, os.strerror(number), "/somewhere/f.npz")
    assert main.of_system(error) == (
        f"/somewhere/f.npz: {os.strerror(number)}; make room, and the same command goes on"
    )
    assert main.of_system(OSError(errno.EIO, "what", "/f")) == f"/f: {os.strerror(errno.EIO)}"
    assert main.of_system(OSError("said by us")) == "said by us"


# --- folders and data --------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/proc/nowhere/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_named(folder, data):
    with pytest.raises(base.ConfigError, match=rf"--workdir={folder}") as error:
        runner.run(config_of(data), pathlib.Path(folder))
    assert "\n" not in str(error.value)


def test_a_folder_of_others_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(base.ConfigError, match=f"{tmp_path} may not be written; name another"):
        runner.run(config_of(tmp_path / "no data"), tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())


def mapped(path, rows=100):
    np.save(path, np.ones((rows, 4), np.float32))
    return np.load(path, mmap_mode="r")


def test_a_mapped_file_is_missed(tmp_path):
    path = tmp_path / "text_feat.npy"
    table = mapped(path)
    check_mapped(table)
    check_mapped(table[5:])
    check_mapped(np.ones(3))
    os.truncate(path, 1000)
    with pytest.raises(DataError, match=r"text_feat\.npy: has become shorter .* the same command"):
        check_mapped(table)
    path.unlink()
    with pytest.raises(DataError, match=r"text_feat\.npy: cannot be read any more .No such file"):
        check_mapped(table)


def test_features_cut_short_end_a_run_in_one_line_and_it_goes_on(data, tmp_path, monkeypatch):
    config = config_of(data, every=2)
    with config.unlocked():
        config.seeds = (0,)
        config.data.mmap = True
        config.model.encode = "active"
    path = data / "text_feat.npy"
    content = path.read_bytes()
    advance = Progress.advance

    def vanish(self, items, loss):
        advance(self, items, loss)
        os.truncate(path, 200)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", vanish)
        with pytest.raises(DataError, match=r"text_feat\.npy: .*and the same command goes on"):
            runner.run(config, tmp_path / "run")
    path.write_bytes(content)
    runner.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "results.json").exists()
