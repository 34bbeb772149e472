"""Sequential data: the golden tables, the protocols, the windows, real data."""

import itertools
import json
import pathlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxcold.data.sequences import split as sequences
from jaxcold.data.sequences.load import load_sequences
from jaxcold.types import Csr, DataError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "letitgo"
TABLES = GOLDEN / "preprocessing"


def table(name):
    """A golden table; columns user, item, time where it has them."""
    short = {"user_id": "user", "item_id": "item", "timestamp": "time"}
    return pd.read_csv(TABLES / f"{name}.csv").rename(columns=short)


def params():
    return json.loads((TABLES / "params.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def toy():
    return sequences.temporal_split("toy", table("raw"), val_users=params()["val_users"])


def as_lists(csr):
    return [list(row) for row in np.split(csr.indices, csr.indptr[1:-1])]


def by_user(frame, column="item"):
    return {user: list(rows[column]) for user, rows in frame.groupby("user")}


def log(lengths, num_items=6, seed=0):
    """Rows of users 0, 1 ... with so many rows each; all times differ."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(lengths)), lengths)
    return pd.DataFrame(
        {
            "user": user,
            "item": rng.integers(num_items, size=len(user)),
            "time": rng.permutation(len(user)) + 1000,
        }
    )


def is_part(some, whole):
    """Whether the items stand in the sequence, in that order."""
    rest = iter(whole)
    return all(item in rest for item in some)


logs = st.builds(
    log,
    st.lists(st.integers(1, 12), min_size=4, max_size=12),
    st.integers(3, 12),
    st.integers(0, 2**32 - 1),
)


# --- the golden tables ------------------------------------------------------------------------


def test_repeats_boundary_and_core_are_the_golden_ones():
    clean = sequences.drop_consecutive_duplicates(table("raw"))
    pd.testing.assert_frame_equal(clean.reset_index(drop=True), table("deduped"))
    boundary = sequences.time_boundary(clean["time"].to_numpy(), params()["quantile"])
    assert boundary == params()["threshold"]
    kept = sequences.n_core(clean[clean["time"] <= boundary], params()["n_core"])
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), table("train_val_after_ncore"))


def test_items_are_numbered_as_the_golden_ones(toy):
    index = table("item_index")
    np.testing.assert_array_equal(toy.item_ids, index["original_item_id"])
    assert (toy.num_warm, toy.num_items) == ((~index["is_cold"]).sum(), len(index))


def test_sequences_are_the_golden_ones(toy):
    # The golden items count from 1.
    users = toy.user_ids[: toy.train.rows]
    ours = dict(zip(users, ([i + 1 for i in row] for row in as_lists(toy.train)), strict=True))
    assert ours == by_user(table("train"))
    assert list(users) == params()["train_users"]
    val = [[*h, t] for h, t in zip(as_lists(toy.val.history), toy.val.target, strict=True)]
    val = {u: [i + 1 for i in s] for u, s in zip(toy.user_ids[toy.val.user], val, strict=True)}
    assert val == by_user(table("val"))


def test_questions_are_the_golden_ones(toy):
    inputs, truth = by_user(table("test_inputs")), table("ground_truth").sort_values("user")
    users = toy.user_ids[toy.test.user]
    np.testing.assert_array_equal(users, truth["user"])
    np.testing.assert_array_equal(toy.test.target + 1, truth["item"])
    np.testing.assert_array_equal(toy.test.target >= toy.num_warm, truth["is_cold"])
    ours = [[i + 1 for i in row] for row in as_lists(toy.test.history)]
    assert ours == [inputs.get(user, []) for user in users]
    assert list(users[toy.test.history.counts == 0]) == params()["gt_users_without_any_input"]


def test_facts_are_the_golden_counts(toy):
    statistics, counts = toy.statistics, params()["counts"]
    assert statistics["interactions"] == counts["rows"]
    assert statistics["consecutive_duplicates_dropped"] == counts["dups"]
    assert statistics["items_below_core"] == counts["ncore_removed_items"]
    assert statistics["users_below_core"] == counts["users_removed_ncore"]
    assert statistics["cold_seen_in_validation"] == counts["val_only_in_cold"]
    by_core = statistics["cold_seen_before"] - statistics["cold_seen_in_validation"]
    assert by_core == counts["cold_seen_before"]
    assert statistics["validation_rows_of_cold_items"] == counts["val_dropped"]
    assert statistics["test_questions_without_history"] == counts["gt_without_input"]
    assert statistics["test_targets_cold"] == counts["gt_cold"]


def test_kept_repeats_stay():
    kept = sequences.temporal_split("toy", table("raw"), consecutive_duplicates="keep", core=1)
    assert kept.statistics["consecutive_duplicates_dropped"] == 0
    again = (row[i] == row[i + 1] for row in as_lists(kept.train) for i in range(len(row) - 1))
    assert any(again)


# --- properties of the steps ------------------------------------------------------------------


@given(logs)
def test_no_consecutive_repeat_is_left_and_nothing_else_goes(rows):
    clean = by_user(sequences.drop_consecutive_duplicates(rows))
    expected = {
        user: [item for item, _ in itertools.groupby(items)]
        for user, items in by_user(rows.sort_values("time")).items()
    }
    assert clean == expected


def test_rows_of_equal_time_keep_the_order_of_the_file():
    rows = pd.DataFrame({"user": [1, 0, 1, 1, 0], "item": [5, 6, 4, 5, 2], "time": 7})
    assert by_user(sequences.drop_consecutive_duplicates(rows)) == {0: [6, 2], 1: [5, 4, 5]}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9),
    st.integers(1, 3),
)
def test_the_core_holds_every_set_of_rows_that_satisfies_it(pairs, core):
    user, item = np.array(pairs).T
    rows = pd.DataFrame({"user": user, "item": item, "time": 0})
    kept = np.isin(np.arange(len(rows)), sequences.n_core(rows, core).index)

    def satisfies(chosen):
        counts = (np.bincount(ids[chosen], minlength=4) for ids in (user, item))
        return all(((count == 0) | (count >= core)).all() for count in counts)

    assert satisfies(kept)
    for subset in itertools.product([False, True], repeat=len(rows)):
        chosen = np.array(subset)
        if satisfies(chosen):
            assert kept[chosen].all()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_boundary_is_the_nearest_rank(times, quantile):
    boundary = sequences.time_boundary(np.array(times), quantile)
    place = (len(times) - 1) * quantile
    nearest = {sorted(times)[rank] for rank in range(len(times)) if abs(rank - place) <= 0.5}
    assert boundary in nearest


@settings(max_examples=40)
@given(logs, st.integers(1, 2))
def test_a_temporal_split_keeps_to_its_rules(rows, core):
    try:
        split = sequences.temporal_split("toy", rows, core=core, val_fraction=0.3, quantile=0.7)
    except DataError:
        assume(False)  # too little data for three parts
    boundary = split.statistics["boundary"]
    clean = sequences.drop_consecutive_duplicates(rows)
    early = by_user(clean[clean["time"] <= boundary])
    late = by_user(clean[clean["time"] > boundary])
    assert (split.train.counts >= 2).all()
    assert (split.train.indices < split.num_warm).all()
    trained = set(split.train.indices)
    assert split.num_warm - len(trained) == split.statistics["warm_items_untrained"]
    assert len(split.user_ids) == len(set(split.user_ids))
    assert len(split.item_ids) == len(set(split.item_ids)) == split.num_items
    assert (split.val.target < split.num_warm).all()
    assert (split.val.history.indices < split.num_warm).all()
    # No training row is later than the boundary, and every question of the test is.
    for user, items in zip(split.user_ids, as_lists(split.train), strict=False):
        assert is_part(split.item_ids[items], early[user])
    asked = zip(split.test.user, as_lists(split.test.history), split.test.target, strict=True)
    for user, history, target in asked:
        assert late[split.user_ids[user]][-1] == split.item_ids[target]
        assert is_part(split.item_ids[history], by_user(clean)[split.user_ids[user]])
    assert set(split.user_ids[split.test.user]) == set(late)
    # Every cold item is asked about or stands in a history, and no training user took it.
    shown = set(split.test.target) | set(split.test.history.indices)
    assert set(range(split.num_warm, split.num_items)) <= shown


def test_equal_seeds_give_equal_splits_and_others_do_not():
    rows = log([8] * 40, 30)
    one, two, other = (sequences.temporal_split("toy", rows, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.train.indices, two.train.indices)
    assert set(one.val.user) == set(two.val.user)
    users = [set(split.user_ids[split.val.user]) for split in (one, other)]
    assert users[0] != users[1]


def test_the_share_of_validation_users_is_taken_of_the_core():
    split = sequences.temporal_split("toy", log([12] * 10), val_fraction=0.3)
    assert (split.train.rows, len(split.val.user)) == (7, 3)


def test_random_cold_items_are_in_no_training_or_validation_sequence():
    rows = log([10] * 50, 40).assign(item=lambda frame: frame["item"] + 100)
    split = sequences.random_cold_split(
        "toy", rows, cold_fraction=0.2, val_fraction=0.1, max_users=40
    )
    assert (split.num_warm, split.num_items) == (32, 40)
    assert (len(split.val.user), len(split.test.user), split.train.rows) == (4, 4, 32)
    assert (split.train.indices < 32).all()
    assert (split.val.history.indices < 32).all()
    assert (split.test.history.indices >= 32).any()
    held_out = [set(split.user_ids[part.user]) for part in (split.val, split.test)]
    assert not held_out[0] & held_out[1]
    assert not (held_out[0] | held_out[1]) & set(split.user_ids[: split.train.rows])
    clean = by_user(sequences.drop_consecutive_duplicates(rows))
    for user, history, target in zip(
        split.test.user, as_lists(split.test.history), split.test.target, strict=True
    ):
        assert [*split.item_ids[[*history, target]]] == clean[split.user_ids[user]]


# --- windows ----------------------------------------------------------------------------------

sequence_rows = st.lists(st.lists(st.integers(0, 99), max_size=15), min_size=1, max_size=6)


def csr(rows):
    values = np.array([item for row in rows for item in row], np.int32)
    return Csr.from_pairs(np.repeat(np.arange(len(rows)), [len(row) for row in rows]), values, 6)


@given(sequence_rows, st.integers(1, 7))
def test_all_windows_ask_for_every_item_but_the_first_once(rows, length):
    got = as_lists(sequences.windows(csr(rows), length, "all"))
    expected = []
    for row in rows:
        cuts = [*range(len(row) - 1, 0, -length), 0]
        expected += [row[a : b + 1] for b, a in itertools.pairwise(cuts)][::-1]
    assert [*map(list, got)] == expected or (got == [[]] and not expected)
    assert all(2 <= len(window) <= length + 1 for window in expected)
    asked = [item for window in expected for item in window[1:]]
    assert asked == [item for row in rows for item in row[1:]]


@given(sequence_rows, st.integers(1, 7))
def test_the_last_window_is_the_end_of_each_sequence(rows, length):
    got = sequences.windows(csr(rows), length, "last")
    expected = [row[-length - 1 :] for row in rows if len(row) > 1]
    assert got.rows == len(expected)
    assert list(got.indices) == [item for row in expected for item in row]
    assert got.indptr.dtype == np.int64
    assert got.indices.dtype == np.int32


# --- real data --------------------------------------------------------------------------------


def test_amazon_beauty_by_a_drawn_split(data_root, tmp_path):
    root = data_root / "amazon-beauty"
    data = load_sequences("amazon-beauty", root, protocol="random_cold")
    assert (data.num_warm, data.num_items) == (12101 - 1815, 12101)
    # 22,363 users: a tenth each validate and test; a few of the others are left with one item.
    assert (len(data.val.user), len(data.test.user)) == (2236, 2236)
    assert data.train.rows + data.statistics["training_users_with_one_item"] <= 22363 - 2 * 2236
    raw = np.load(root / "text_feat.npy", mmap_mode="r")
    np.testing.assert_array_equal(data.content[[0, -1]], raw[data.item_ids[[0, -1]]])


def test_amazon_beauty_by_the_split_of_the_reference_run(data_root, golden):
    split = GOLDEN / "split_beauty.npz"
    data = load_sequences(
        "amazon-beauty", data_root / "amazon-beauty", protocol="random_cold", split_file=split
    )
    arrays = golden("letitgo/split_beauty")
    np.testing.assert_array_equal(data.item_ids[data.num_warm :], np.sort(arrays["cold_items"]))
    # Of 4,800 users five are left with fewer than two warm items, and of 600 one.
    assert (data.train.rows, len(data.val.user), len(data.test.user)) == (4795, 599, 600)
    cold = int((data.test.target >= data.num_warm).sum())
    assert (cold, 600 - cold) == (95, 505)
    assert data.content.shape == (12101, 384)


def test_ml_100k_by_time(data_root):
    data = load_sequences("ml-100k", data_root / "ml-100k")
    assert (data.statistics["interactions"], data.statistics["consecutive_duplicates_dropped"]) == (
        100_000,
        0,
    )
    frame = pd.read_csv(data_root / "ml-100k" / "ml-100k.inter", sep="\t")
    boundary = np.sort(frame["timestamp"])[int(np.floor(99_999 * 0.9 + 0.5))]
    after = frame[frame["timestamp"] > boundary]
    assert data.statistics["boundary"] == boundary
    assert len(data.test.user) == after["userID"].nunique()
    users = data.train.rows + len(data.val.user)
    early = frame[frame["timestamp"] <= boundary]
    assert users == early["userID"].nunique() - data.statistics["users_below_core"]
    assert len(data.val.user) == users - int(0.9 * users)
    assert data.content.shape == (data.num_items, 384)
    assert (
        load_sequences("ml-100k", data_root / "ml-100k", min_rating=3).statistics["interactions"]
        == (frame["rating"] > 3).sum()
    )
