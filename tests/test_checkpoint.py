"""Checkpoints: what is kept, what counts as damage, and what an error leaves on disk."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.step import TrainState
from jaxcold.types import DataError


def spoil(checkpoint, how):
    """Damage as a loss of power leaves it, or a bad block."""
    files = sorted(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)
    if how == "cut short":
        for path in files:
            os.truncate(path, path.stat().st_size // 2)
    elif how == "another bit":
        content = bytearray(files[-1].read_bytes())
        content[len(content) // 2] ^= 1
        files[-1].write_bytes(content)
    elif how == "no metadata":
        (checkpoint / "metadata" / "metadata").write_bytes(b"")
    elif how == "no state":
        shutil.rmtree(checkpoint / "state")
    elif how == "no index":
        for path in checkpoint.rglob("manifest.ocdbt"):
            path.write_bytes(b"")
    else:
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()


def a_state(step, size=3):
    rng = np.random.default_rng(step)
    params = {"w": rng.normal(size=size).astype(np.float32), "half": jnp.ones(2, jnp.bfloat16)}
    return TrainState(np.int32(step), params, (rng.normal(size=2).astype(np.float32),), None)


def assert_state(found, step, size=3):
    for got, wanted in zip(*map(jax.tree.leaves, (found, a_state(step, size))), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def saved(folder, steps, *, size=3, keep=1, best=None):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        metadata = {"step": step, "x": 0.1 + 0.2}
        checkpoints.save(a_state(step, size), metadata, best=(best or {}).get(step))
    checkpoints.close()
    return sorted(int(path.name) for path in folder.iterdir())


def test_a_checkpoint_keeps_the_state_and_the_newest_only(tmp_path):
    folder = tmp_path / "c"
    assert Checkpoints(folder).restore(a_state(0)) is None
    assert saved(folder, (3, 6, 9)) == [9]
    found, metadata = Checkpoints(folder).restore(a_state(0))
    assert metadata == {"step": 9, "x": 0.1 + 0.2}
    assert_state(found, 9)


def test_the_newest_stay_and_the_best_of_each(tmp_path):
    assert saved(tmp_path / "a", (1, 2, 3, 4, 5), keep=2) == [4, 5]
    # 4 may still be needed, and so may what was best then.
    best = {1: 1, 2: 1, 3: 1, 4: 1, 5: 5}
    assert saved(tmp_path / "b", (1, 2, 3, 4, 5), keep=2, best=best) == [1, 4, 5]
    found, metadata = Checkpoints(tmp_path / "b").restore(a_state(0), step=1)
    assert metadata["step"] == 1
    assert_state(found, 1)


@pytest.mark.parametrize(
    "how", ["cut short", "another bit", "no metadata", "no state", "no index", "empty"]
)
def test_a_damaged_checkpoint_makes_room_for_the_one_before(how, tmp_path):
    folder = tmp_path / "c"
    assert saved(folder, (3, 6), size=2000, keep=2) == [3, 6]
    (folder / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # was being written
    spoil(folder / "6", how)
    lines = []
    checkpoints = Checkpoints(folder, keep=2)
    found, metadata = checkpoints.restore(a_state(0, 2000), say=lines.append)
    assert_state(found, 3, 2000)
    assert metadata["step"] == 3
    (line,) = lines
    assert line.startswith(f"{folder / '6'}: the checkpoint cannot be read (")
    assert line.endswith("that of step 3 takes its place")
    assert [path.name for path in folder.iterdir()] == ["3"]
    checkpoints.save(a_state(6, 2000), {})  # comes again
    checkpoints.close()
    assert_state(Checkpoints(folder).restore(a_state(0, 2000))[0], 6, 2000)


def test_a_checkpoint_fits_any_number_of_devices(tmp_path):
    wanted = a_state(7, size=16)

    def over(count):
        mesh = jax.make_mesh((count,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        whole, rows = (NamedSharding(mesh, P(*axis)) for axis in ((), ("x",)))
        place = jax.tree.map(lambda x: whole, wanted)
        place.params["w"] = rows
        return jax.device_put(wanted, place)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(over(8), {})
    checkpoints.wait()
    for like in (wanted, over(2), over(4)):
        assert_state(checkpoints.restore(like)[0], 7, 16)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_best_checkpoint_outlives_a_new_process(tmp_path):
    """keep=2: 5 is the best; a process that opens the folder later keeps it as well."""
    best = {5: 5, 10: 5, 15: 5, 20: 5, 25: 25}
    assert saved(tmp_path, (5, 10, 15), keep=2, best=best) == [5, 10, 15]
    assert saved(tmp_path, (20,), keep=2, best=best) == [5, 15, 20]
    assert saved(tmp_path, (25, 30), keep=2, best=best) == [25, 30]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), MemoryError),
        (TypeError("restore() got an unexpected keyword argument"), TypeError),
        (AttributeError("no such method"), AttributeError),
        (OSError(24, "Too many open files"), OSError),
        (ValueError("RESOURCE_EXHAUSTED: Error opening file"), OSError),
        (ValueError("NOT_FOUND: Error opening file: no [os_error_code='EMFILE']"), OSError),
        (ValueError("the trees do not match"), DataError),
    ],
)
def test_an_error_that_proves_no_damage_deletes_nothing(error, expected, tmp_path, monkeypatch):
    assert saved(tmp_path, (3, 6), keep=2) == [3, 6]
    checkpoints = Checkpoints(tmp_path, keep=2)
    restore = ocp.CheckpointManager.restore

    def fail_for_the_newest(self, step, *args, **options):
        if step == 6:
            raise error
        return restore(self, step, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", fail_for_the_newest)
        with pytest.raises(expected):
            checkpoints.restore(a_state(0))
    assert steps_in(tmp_path) == [3, 6]
    assert_state(checkpoints.restore(a_state(0))[0], 6)


def test_a_state_of_another_model_deletes_nothing(tmp_path):
    assert saved(tmp_path, (3, 6), keep=2) == [3, 6]
    other = a_state(0)._replace(params={"v": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match=r"6: the checkpoint cannot be read .*; delete") as error:
        Checkpoints(tmp_path, keep=2).restore(other)
    assert "\n" not in str(error.value)
    assert steps_in(tmp_path) == [3, 6]


def test_a_programming_error_is_not_called_a_full_disk(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def changed(self, step, *, args):
        raise TypeError("save() got an unexpected keyword argument 'args'")

    monkeypatch.setattr(ocp.CheckpointManager, "save", changed)
    with pytest.raises(TypeError, match="unexpected keyword"):
        checkpoints.save(a_state(1), {})
