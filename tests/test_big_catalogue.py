"""A catalogue that stays on disk: what is read, what waits in memory, and the same results."""

import sys
import tempfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import big_catalogue
from jaxcold.data import content as vectors
from jaxcold.data.pairs import batches
from jaxcold.data.pairs.batches import prefetch, shuffled_pairs
from jaxcold.data.pairs.dataset import Interactions
from jaxcold.models import pair_batches
from jaxcold.train.loop import fit
from jaxcold.train.step import TrainState, init_state, make_step
from jaxcold.types import Csr

SIZES = big_catalogue.Sizes(
    items=20_000, users=600, interactions=3_000, dim=24, hidden=8, out=6, batch=512
)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


class Counted(np.memmap):
    """A mapped table that knows how many rows each reading took."""

    def __array_finalize__(self, source):
        super().__array_finalize__(source)
        self.reads = getattr(source, "reads", [])

    def __getitem__(self, index):
        rows = super().__getitem__(index)
        self.reads.append(len(rows))
        return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return big_catalogue.generate(tmp_path_factory.mktemp("big"), SIZES)


@pytest.fixture
def counted(dataset):
    """The data set, and the list to which every reading of its features adds."""
    table = dataset.content.tables["text"].view(Counted)
    content = dataset.content._replace(tables={"text": table})
    return replace(dataset, content=content), table.reads


def test_drawn_pairs_are_distinct_skewed_and_all_there(dataset):
    train = dataset.split.train
    assert train.user.dtype == train.item.dtype == np.int32
    keys = np.unique(train.user.astype(np.int64) * SIZES.items + train.item)
    assert len(keys) == len(train.user) == SIZES.interactions
    assert train.user.min() >= 0
    assert train.user.max() < SIZES.users
    degree = np.sort(np.bincount(train.user, minlength=SIZES.users))[::-1]
    assert degree[: SIZES.users // 10].sum() > 0.2 * degree.sum()
    np.testing.assert_array_equal(dataset.split.warm_items, np.unique(train.item))
    assert len(dataset.split.cold_items) >= SIZES.items // 5
    again = big_catalogue.draw_interactions(SIZES, np.random.default_rng(big_catalogue.SEED))
    np.testing.assert_array_equal(train.item, again.item)
    with pytest.raises(ValueError, match=r"--interactions=900000 gives a user"):
        big_catalogue.draw_interactions(SIZES._replace(interactions=900_000), np.random)


def test_streaming_trains_as_features_on_the_device_do(dataset):
    found = []
    for stream in (True, False):
        model = big_catalogue.build(dataset, SIZES, stream=stream)
        model = model._replace(epochs=1)
        start = init_state(model, 0)
        first = jax.tree.map(np.array, start.params)
        state = fit(model, make_step(model), start, seed=0)
        assert int(state.step) == 6
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, first)
        assert max(jax.tree.leaves(moved)) > 1e-3
        found.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *found)


def test_only_active_rows_are_read(counted, monkeypatch):
    monkeypatch.setattr(vectors, "_CHUNK", 100 * SIZES.dim)
    dataset, reads = counted
    model = big_catalogue.build(dataset, SIZES)
    del reads[:]
    made = list(model.batches(np.random.default_rng(5)))
    train = dataset.split.train
    local = np.searchsorted(dataset.split.warm_items, train.item)
    histories = Csr.from_pairs(train.user, local, SIZES.users)
    pairs = shuffled_pairs(train.user, local, SIZES.batch, np.random.default_rng(5))
    wanted = [
        np.union1d(item, histories.take(np.unique(user)).indices)
        for user, item in zip(pairs.user, pairs.item, strict=True)
    ]
    assert sum(reads) == sum(map(len, wanted))
    assert max(reads) <= 100
    for batch, ids in zip(made, wanted, strict=True):
        rows = dataset.content.tables["text"][dataset.split.warm_items[ids]]
        found = np.asarray(batch.features[0])
        np.testing.assert_array_equal(found[: len(ids)], vectors.unit_rows(rows))
        assert not found[len(ids) :].any()


def test_a_step_with_unusual_users_gets_more_room_alone(dataset, monkeypatch):
    # One user has most of the pairs and is met by one batch in a few.
    rng = np.random.default_rng(0)
    user = np.r_[np.zeros(60, np.int32), np.arange(1, 600, dtype=np.int32)]
    items = rng.permutation(dataset.split.warm_items)
    train = Interactions(user, items[: len(user)], SIZES.users, SIZES.items)
    split = replace(dataset.split, train=train, warm_items=np.unique(train.item))
    data, sizes = replace(dataset, split=split), SIZES._replace(batch=8)
    monkeypatch.setattr(pair_batches, "SAMPLE", 1)
    model = big_catalogue.build(data, sizes)
    made = list(model.batches(np.random.default_rng(1)))
    rooms = [(len(batch.epoch.slots), len(batch.epoch.active)) for batch in made]
    users = np.asarray(made[0].epoch.user)
    met = (users == 0).any(axis=1)
    assert 0 < met.sum() < len(met)
    assert [room > min(rooms) for room in rooms] == met.tolist()
    assert len(set(rooms)) <= 3  # a few shapes, each compiled once
    entries = [train.by_user().counts[np.unique(batch)].sum() for batch in users]
    assert all(slots >= need for (slots, _), need in zip(rooms, entries, strict=True))


def test_few_batches_are_in_memory_at_once(dataset):
    """Made and not yet asked for, and asked for and not yet trained on."""
    made = taken = most = 0

    def source():
        nonlocal made, most
        for value in range(50):
            made += 1
            most = max(most, made - taken)
            yield value

    found = []
    for value in prefetch(source()):
        taken += 1
        found.append(value)
    assert found == list(range(50))
    assert most <= 4  # two wait, one is made, and one may be on its way to the count above

    model = big_catalogue.build(dataset, SIZES._replace(batch=100))
    begun = settled = 0

    def step(state, constants, batch, key):
        nonlocal begun, most
        begun += 1
        most = max(most, begun - settled)
        return state, {"loss": jnp.ones(())}

    def on_step(number, logs):
        nonlocal settled
        settled += 1

    most = 0
    model = model._replace(epochs=1)
    fit(model, step, TrainState(jnp.int32(0), {}, {}, None), seed=0, on_step=on_step)
    assert settled == model.steps_per_epoch == 30
    assert most == model.in_flight + 1 == 3


def test_the_first_batches_of_an_order_are_those_of_all():
    user, item = np.arange(23, dtype=np.int32), np.arange(23, dtype=np.int32)[::-1]
    for most in (1, 5, 9):
        few = shuffled_pairs(user, item, 5, np.random.default_rng(1), most)
        every = shuffled_pairs(user, item, 5, np.random.default_rng(1))
        for a, b in zip(few, every, strict=True):
            np.testing.assert_array_equal(a, b[:most])
    assert every.weight.sum() == 23
    np.testing.assert_array_equal(every.user[-1, 2:], every.user[-1, 2])
    order = np.random.default_rng(1).permutation(23)
    np.testing.assert_array_equal(every.user.reshape(-1)[:23], order)


def test_items_grouped_by_shard_keep_their_order():
    found = batches.group_by_shard(np.array([0, 2, 3, 8, 11]), 4, 3, 4)
    np.testing.assert_array_equal(found, [[0, 2, 3, -1], [-1] * 4, [8, 11, -1, -1]])


@LINUX
def test_rows_that_were_read_do_not_stay_in_memory(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.ones((1 << 15, 1 << 10), np.float16))  # 64 MiB
    table = np.load(path, mmap_mode="r")
    ids = np.random.default_rng(0).permutation(len(table))
    before = big_catalogue.resident()["mapped"]
    for part in np.split(ids, 64):
        assert vectors.take(table, part).all()
        assert big_catalogue.resident()["mapped"] - before < 1 << 25


@LINUX
def test_the_benchmark_measures_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    measured = big_catalogue.measure(SIZES, steps=3)
    assert not list(tmp_path.iterdir())
    assert len(measured.steps) == 1
    assert len(measured.active) == 3
    assert SIZES.batch < measured.active.max() <= measured.warm < SIZES.items
    assert 0 < measured.anonymous < measured.peak
    assert 0 < measured.mapped < measured.peak
    assert measured.waited >= 0
    report = "\n".join(big_catalogue.format_report(measured))
    assert "peak resident memory" in report
    assert "goal < 6,000" in report
