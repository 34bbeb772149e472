"""Reading, splitting and asking: what a data set is once it is loaded."""

import json

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from jaxcold.data import Interactions, load, make_split, read_split, readers, write_split
from jaxcold.data.pairs import evaluation
from jaxcold.data.pairs.dataset import SETS, ColdSplit
from jaxcold.types import DataError


def random_interactions(seed, users=30, items=40, share=0.3):
    """Every user and item occurs; pairs are distinct and shuffled."""
    rng = np.random.default_rng(seed)
    taken = rng.random((users, items)) < share
    taken[np.arange(users), rng.integers(items, size=users)] = True
    taken[rng.integers(users, size=items), np.arange(items)] = True
    pairs = rng.permutation(np.argwhere(taken)).astype(np.int32)
    time = rng.integers(1, 10**6, size=len(pairs))
    return Interactions(pairs[:, 0], pairs[:, 1], users, items, time)


def as_set(pairs):
    return {tuple(pair) for pair in np.asarray(pairs).tolist()}


def write_mmrec(folder, interactions, name="toy", features=None):
    """The MMRec layout, with the columns as users download them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(interactions.user, interactions.item, interactions.time, strict=True)
    lines = ["userID\titemID\trating\ttimestamp\tx_label"]
    lines += [f"{user}\t{item}\t4.5\t{time}\t0" for user, item, time in rows]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
    for mode, table in (features or {}).items():
        np.save(folder / f"{mode}_feat.npy", table)


@pytest.fixture
def toy(tmp_path):
    """A folder in the MMRec layout, its interactions and its features."""
    interactions = random_interactions(0)
    rng = np.random.default_rng(1)
    features = {
        "text": rng.normal(size=(40, 6)).astype(np.float32),
        "image": rng.normal(size=(40, 3)).astype(np.float16),
    }
    write_mmrec(tmp_path / "toy", interactions, features=features)
    return tmp_path / "toy", interactions, features


# --- the split -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.3]))
def test_a_split_divides_the_pairs_and_keeps_cold_items_out_of_training(data_seed, seed, share):
    """Also of sparse data, where users and items with one pair must not be held out."""
    interactions = random_interactions(data_seed, share=share)
    try:
        split = make_split(interactions, seed)
    except DataError:  # so sparse that no held-out pair is left
        reject()

    parts = [as_set(split.pairs[name]) for name in SETS]
    assert sum(map(len, parts)) == len(interactions.user)
    assert set.union(*parts) == as_set(interactions.pairs())
    sets = [
        set(s.tolist()) for s in (split.warm_items, split.cold_val_items, split.cold_test_items)
    ]
    assert set.union(*sets) == set(range(40))
    assert [len(s) for s in sets] == [32, 4, 4]
    for name, allowed in zip(SETS, (sets[0], sets[0], sets[0], sets[1], sets[2]), strict=True):
        assert set(split.pairs[name][:, 1].tolist()) <= allowed
    train = split.pairs["warm_train"]
    assert set(train[:, 1].tolist()) == sets[0]
    for part in ("warm_val", "warm_test"):
        assert set(split.pairs[part][:, 0].tolist()) <= set(train[:, 0].tolist())


def test_the_split_has_the_papers_proportions():
    interactions = random_interactions(3, users=200, items=300)
    split = make_split(interactions, 0)
    assert len(split.cold_items) == 60
    warm = sum(len(split.pairs[name]) for name in SETS[:3])
    # With 40 rows per warm item hardly a held-out row has to move to training.
    assert len(split.pairs["warm_val"]) == pytest.approx(0.1 * warm, abs=3)
    assert len(split.pairs["warm_test"]) == pytest.approx(0.1 * warm, abs=3)


def test_the_seed_alone_decides_the_split():
    interactions = random_interactions(0)
    first, again, other = (make_split(interactions, seed) for seed in (5, 5, 6))
    for name in SETS:
        np.testing.assert_array_equal(first.pairs[name], again.pairs[name])
    assert set(first.cold_items) != set(other.cold_items)


def test_training_rows_keep_their_times():
    interactions = random_interactions(2)
    when = dict(zip(map(tuple, interactions.pairs().tolist()), interactions.time, strict=True))
    train = make_split(interactions, 1).train
    assert [when[tuple(pair)] for pair in train.pairs().tolist()] == train.time.tolist()


def test_items_that_nobody_took_are_in_no_set():
    interactions = random_interactions(0)._replace(num_items=45)
    split = make_split(interactions, 0)
    assert max(split.warm_items.max(), split.cold_items.max()) < 40


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_split_survives_its_file(tmp_path_factory, seed):
    interactions = random_interactions(seed)
    split = make_split(interactions, seed)
    path = tmp_path_factory.mktemp("split") / "split.npz"
    write_split(path, split)
    back = read_split(path, interactions)
    for name in SETS:
        np.testing.assert_array_equal(back.pairs[name], split.pairs[name])
    for name in ("warm_items", "cold_val_items", "cold_test_items"):
        np.testing.assert_array_equal(getattr(back, name), getattr(split, name))
    np.testing.assert_array_equal(back.train.time, split.train.time)
    assert [entry.name for entry in path.parent.iterdir()] == ["split.npz"]


def test_equal_splits_are_equal_files(tmp_path):
    split = make_split(random_interactions(0), 0)
    for name in ("a", "b"):
        write_split(tmp_path / name, split)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- the slices ------------------------------------------------------------------------------


def test_slices_state_who_competes_and_what_is_hidden():
    train = Interactions(
        np.array([0, 0, 1, 2], np.int32), np.array([2, 0, 1, 0], np.int32), num_users=3, num_items=6
    )
    split = ColdSplit(
        train=train,
        warm_items=np.array([0, 1, 2], np.int32),
        cold_val_items=np.array([4], np.int32),
        cold_test_items=np.array([3, 5], np.int32),
        pairs={
            "warm_train": train.pairs(),
            "warm_val": np.array([[2, 1]], np.int32),
            "warm_test": np.array([[2, 2], [0, 1]], np.int32),
            "cold_val": np.array([[1, 4]], np.int32),
            "cold_test": np.array([[2, 5], [0, 5], [2, 3]], np.int32),
        },
    )
    slices = evaluation.slices(split)
    assert sorted(slices) == [
        f"{part}/{kind}" for part in ("test", "val") for kind in ("cold", "cold_own", "warm")
    ]

    warm = slices["test/warm"]
    assert warm.users.tolist() == [0, 2]
    assert warm.positives.indices.tolist() == [1, 2]
    assert warm.exclude.indptr.tolist() == [0, 2, 3]
    assert warm.exclude.indices.tolist() == [2, 0, 0]
    assert warm.candidates.tolist() == warm.items.tolist() == [0, 1, 2]

    cold = slices["test/cold"]
    assert cold.users.tolist() == [0, 2]
    assert cold.positives.indptr.tolist() == [0, 1, 3]
    assert cold.positives.indices.tolist() == [5, 3, 5]
    assert cold.candidates.tolist() == [3, 4, 5]
    assert cold.items.tolist() == [3, 5]
    assert cold.exclude.counts.tolist() == [0, 0]

    # Every slice has the training histories of all users, and they are encoded once.
    histories = warm.histories
    assert histories.indptr.tolist() == [0, 2, 3, 4]
    assert histories.indices.tolist() == [2, 0, 1, 0]
    assert all(eval_slice.histories is histories for eval_slice in slices.values())
    assert all(eval_slice.list_without_history for eval_slice in slices.values())

    own = slices["test/cold_own"]
    assert own.candidates.tolist() == [3, 5]
    assert slices["val/cold_own"].candidates.tolist() == [4]
    assert slices["val/cold"].items.tolist() == [4]


# --- reading ---------------------------------------------------------------------------------


def test_the_mmrec_layout_reads_as_written(toy):
    folder, interactions, features = toy
    dataset = load("toy", folder)
    read = dataset.interactions
    np.testing.assert_array_equal(read.pairs(), interactions.pairs())
    np.testing.assert_array_equal(read.time, interactions.time)
    assert (read.num_users, read.num_items) == (30, 40)
    assert list(dataset.content.tables) == ["image", "text"]
    for mode, table in features.items():
        assert dataset.content.tables[mode].dtype == table.dtype
        np.testing.assert_array_equal(dataset.content.tables[mode], table)
        assert dataset.content.present[mode].all()


def test_modes_are_chosen_and_ordered_by_name(toy):
    folder, _, _ = toy
    assert list(load("toy", folder, modes=("text",)).content.tables) == ["text"]
    assert list(load("toy", folder, modes=["text", "image"]).content.tables) == ["text", "image"]


@pytest.mark.parametrize("mmap", [False, True])
def test_every_row_is_checked_when_tables_are_read_in_chunks(toy, monkeypatch, mmap):
    folder, _, features = toy
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 7 * 6 * 4)  # seven rows
    content = load("toy", folder, modes=("text",), mmap=mmap).content
    np.testing.assert_array_equal(content.tables["text"], features["text"])
    for row in (0, 6, 7, 39):
        table = features["text"].copy()
        table[row, 1] = np.nan
        np.save(folder / "text_feat.npy", table)
        with pytest.raises(DataError, match=rf"row {row} .* column 1"):
            load("toy", folder, modes=("text",), mmap=mmap)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("mmap", [False, True])
def test_any_float_width_is_kept_in_memory_or_on_disk(toy, dtype, mmap):
    folder, _, features = toy
    np.save(folder / "text_feat.npy", features["text"].astype(dtype))
    table = load("toy", folder, mmap=mmap, modes=("text",)).content.tables["text"]
    assert table.dtype == dtype
    assert isinstance(table, np.memmap) == mmap
    np.testing.assert_array_equal(table, features["text"].astype(dtype))


def test_rows_of_zeros_are_values_unless_modes_may_be_missing(toy):
    folder, _, features = toy
    text, image = features["text"], features["image"]
    text[[0, 7]] = 0
    image[3] = np.nan
    np.save(folder / "text_feat.npy", text)
    assert load("toy", folder, modes=("text",)).content.present["text"].all()

    np.save(folder / "image_feat.npy", image)
    content = load("toy", folder, missing_modes=True).content
    assert np.flatnonzero(~content.present["text"]).tolist() == [0, 7]
    assert np.flatnonzero(~content.present["image"]).tolist() == [3]
    assert (content.tables["image"][3] == 0).all()


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_do_no_harm(toy):
    folder, interactions, _ = toy
    path = folder / "toy.inter"
    text = path.read_text().replace("\n", "\r\n").replace("\r\n", "\r\n\r\n", 2)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\r\n\r\n", "\r\n", 1).encode() + b"\r\n")
    np.testing.assert_array_equal(load("toy", folder).interactions.pairs(), interactions.pairs())


def test_equal_timestamps_say_nothing_about_order(toy):
    folder, interactions, features = toy
    constant = interactions._replace(time=np.zeros(len(interactions.user), np.int64))
    write_mmrec(folder, constant, features=features)
    assert load("toy", folder).interactions.time is None


def test_repeated_pairs_can_be_dropped_on_request(toy):
    folder, interactions, _ = toy
    path = folder / "toy.inter"
    user, item = interactions.user[0], interactions.item[0]
    path.write_text(path.read_text() + f"{user}\t{item}\t1\t5\t0\n")
    with pytest.raises(DataError, match=r"duplicates=drop"):
        load("toy", folder)
    read = load("toy", folder, duplicates="drop").interactions
    np.testing.assert_array_equal(read.pairs(), interactions.pairs())
    np.testing.assert_array_equal(read.time, interactions.time)


def test_unused_items_are_a_catalogue_when_allowed(toy):
    folder, _, _ = toy
    for mode, width in (("text", 6), ("image", 3)):
        np.save(folder / f"{mode}_feat.npy", np.ones((44, width), np.float32))
    with pytest.raises(DataError, match=r"allow_unused=True"):
        load("toy", folder)
    dataset = load("toy", folder, allow_unused=True)
    assert dataset.interactions.num_items == len(dataset.item_ids) == 44


def write_authors(folder, split, features):
    (folder / "cold_item").mkdir(parents=True)
    (folder / "feats").mkdir()
    names = ("warm_train", "warm_val", "warm_test", "cold_item_val", "cold_item_test")
    for part, name in zip(SETS, names, strict=True):
        rows = [f"{user},{item}" for user, item in split.pairs[part]]
        (folder / "cold_item" / f"{name}.csv").write_text("\n".join(["user,item", *rows]) + "\n")
    # Loading it would fail: it is not a pickle, and it is not ours to open.
    (folder / "cold_item" / "info_dict.pkl").write_bytes(b"never read")
    for mode, table in features.items():
        np.save(folder / "feats" / f"{mode}.npy", table)


def test_the_authors_layout_brings_its_own_split(tmp_path):
    interactions = random_interactions(0)
    split = make_split(interactions, 9)
    write_authors(tmp_path, split, {"text_feat": np.ones((40, 2), np.float32)})
    dataset = load("anything", tmp_path)
    assert as_set(dataset.interactions.pairs()) == as_set(interactions.pairs())
    assert list(dataset.content.tables) == ["text"]
    for name in SETS:
        np.testing.assert_array_equal(dataset.split.pairs[name], split.pairs[name])
    np.testing.assert_array_equal(dataset.split.warm_items, split.warm_items)
    np.testing.assert_array_equal(dataset.split.cold_items, split.cold_items)


def test_a_split_file_takes_the_place_of_the_seed(toy, tmp_path):
    folder, interactions, _ = toy
    split = make_split(interactions, 77)
    write_split(tmp_path / "mine.npz", split)
    read = load("toy", folder, split_file=tmp_path / "mine.npz", split_seed=1).split
    np.testing.assert_array_equal(read.cold_test_items, split.cold_test_items)


def test_the_folder_comes_from_the_environment_then_from_the_cache(toy, monkeypatch, tmp_path):
    folder, _, _ = toy
    monkeypatch.setenv("JAXCOLD_DATA", str(folder.parent))
    assert load("toy").interactions.num_users == 30
    monkeypatch.delenv("JAXCOLD_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cache/jaxcold/toy: toy.inter not found"):
        load("toy")
    (tmp_path / "cache" / "jaxcold").mkdir(parents=True)
    folder.rename(tmp_path / "cache" / "jaxcold" / "toy")
    assert load("toy").interactions.num_users == 30


def test_plain_settings_are_enough(toy):
    folder, _, _ = toy
    settings = json.loads('{"split_file": null, "modes": ["text"], "mmap": true, "split_seed": 3}')
    assert load(name="toy", root=str(folder), **settings).name == "toy"


# --- the real thing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "users", "items", "pairs", "ordered"),
    [
        ("citeulike-a", 5551, 16980, 204986, False),
        ("ml-100k", 943, 1682, 100000, True),
        ("amazon-beauty", 22363, 12101, 198502, True),
    ],
)
def test_real_data_reads_as_published(data_root, name, users, items, pairs, ordered):
    dataset = load(name, data_root / name, modes=("text",), mmap=True)
    read = dataset.interactions
    assert (read.num_users, read.num_items, len(read.user)) == (users, items, pairs)
    assert (read.time is not None) == ordered
    cold = len(dataset.split.cold_items)
    assert cold == round(0.2 * items)
    warm = sum(len(dataset.split.pairs[name]) for name in SETS[:3])
    assert len(dataset.split.pairs["warm_val"]) == pytest.approx(0.1 * warm, rel=0.01)


def test_a_written_split_of_citeulike_is_accepted_by_another_run(data_root, tmp_path):
    first = load("citeulike-a", data_root / "citeulike-a", split_seed=3, mmap=True)
    write_split(tmp_path / "split.npz", first.split)
    again = load("citeulike-a", data_root / "citeulike-a", split_file=tmp_path / "split.npz")
    np.testing.assert_array_equal(again.split.pairs["cold_test"], first.split.pairs["cold_test"])
