"""Leave-one-out: the split against brute force, cold items in it, what is said about bad logs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experiments import beauty, runner
from experiments import config as configs
from jaxcold.data.sequences import evaluation
from jaxcold.data.sequences.leave_one_out import leave_one_out_split
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sequences.split_file import write_sequence_split
from jaxcold.types import DataError

HEADER = "userID\titemID\trating\ttimestamp"


def frame(rows):
    """Rows (user, item, time); ids are not contiguous."""
    return pd.DataFrame(rows, columns=["user", "item", "time"])


def as_lists(csr):
    return [row.tolist() for row in np.split(csr.indices, csr.indptr[1:-1])]


def by_hand(rows, cold=frozenset()):
    """User -> what trains; user -> (history, target) of validation; the same of the test."""
    histories = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):  # stable
        histories.setdefault(user, []).append(item)
    train, val, test = {}, {}, {}
    for user, items in histories.items():
        asked = len(items) >= 3
        train[user] = [item for item in (items[:-2] if asked else items) if item not in cold]
        if asked:
            test[user] = (items[:-1], items[-1])
            past = [item for item in items[:-2] if item not in cold]
            if items[-2] not in cold and past:
                val[user] = (past, items[-2])
    return {u: items for u, items in train.items() if len(items) >= 2}, val, test


def as_ids(split):
    """The same three of a split, in external ids."""
    users, items = split.user_ids, split.item_ids
    train = {users[r]: items[row].tolist() for r, row in enumerate(as_lists(split.train))}

    def asked(sequences):
        rows = zip(sequences.user, as_lists(sequences.history), sequences.target, strict=True)
        return {users[u]: (items[history].tolist(), items[t]) for u, history, t in rows}

    assert len(set(split.val.user)) == len(split.val.user)
    assert len(set(split.test.user)) == len(split.test.user)
    return train, asked(split.val), asked(split.test)


logs = st.lists(
    st.tuples(st.integers(0, 6), st.integers(10, 16), st.integers(0, 4)),
    min_size=3,
    max_size=40,
    unique=True,
)


@settings(max_examples=60)
@given(logs, st.sampled_from([0.0, 0.2, 0.5]), st.integers(0, 99))
def test_the_split_is_that_by_hand(rows, cold_fraction, seed):
    try:
        split = leave_one_out_split("toy", frame(rows), cold_fraction=cold_fraction, seed=seed)
    except DataError:
        assume(False)  # too little data
    cold = set(split.item_ids[split.num_warm :].tolist())
    items = {item for _, item, _ in rows}
    assert len(cold) == round(cold_fraction * len(items))
    assert set(split.item_ids.tolist()) == items
    assert as_ids(split) == by_hand(rows, cold)
    assert (split.train.indices < split.num_warm).all()
    assert (split.val.history.indices < split.num_warm).all()
    assert (split.val.target < split.num_warm).all()


@settings(max_examples=40)
@given(logs)
def test_no_later_row_enters_what_is_read(rows):
    # Every row is an item of its own: a leak would show by its id.
    rows = [(user, place, time) for place, (user, _, time) in enumerate(rows)]
    try:
        split = leave_one_out_split("toy", frame(rows))
    except DataError:
        assume(False)
    trained = set(split.item_ids[split.train.indices].tolist())
    place = {item: (time, item) for _, item, time in rows}  # ties have the order of the file
    _, val, test = as_ids(split)
    for user, (history, target) in test.items():
        assert {target, history[-1]}.isdisjoint(trained)
        assert sorted([*history, target], key=place.__getitem__) == [*history, target]
        if user in val:
            assert (val[user][0], val[user][1]) == (history[:-1], history[-1])


def test_ties_repeats_and_short_users():
    rows = frame(
        [
            # Equal times: the order of the file. The target was taken before.
            (1, 8, 5),
            (1, 9, 5),
            (1, 7, 5),
            (1, 8, 6),
            # An item that follows itself stays.
            (2, 7, 1),
            (2, 7, 2),
            (2, 9, 3),
            (2, 6, 4),
            (3, 9, 1),  # two rows: both train
            (3, 8, 2),
            (4, 8, 2),  # one row: nothing to learn, nothing to ask
        ]
    )
    split = leave_one_out_split("toy", rows)
    train, val, test = as_ids(split)
    assert train == {1: [8, 9], 2: [7, 7], 3: [9, 8]}
    assert val == {1: ([8, 9], 7), 2: ([7, 7], 9)}
    assert test == {1: ([8, 9, 7], 8), 2: ([7, 7, 9], 6)}
    assert split.num_warm == split.num_items == 4
    facts = split.statistics
    assert facts["users_that_only_train"] == 2
    assert facts["training_users_with_one_item"] == 1
    assert facts["test_targets_seen_before"] == 1
    assert facts["warm_items_untrained"] == 1  # item 6 is a target alone
    assert facts["consecutive_duplicates_dropped"] == facts["rows_below_core"] == 0
    dropped = leave_one_out_split("toy", rows, consecutive_duplicates="drop")
    assert as_ids(dropped)[2] == {1: ([8, 9, 7], 8), 2: ([7, 9], 6)}
    # Of the 2-core item 6 and user 4 are no part.
    core = leave_one_out_split("toy", rows, core=2)
    assert as_ids(core)[2] == {1: ([8, 9, 7], 8), 2: ([7, 7], 9)}


def test_cold_items_are_drawn_from_the_seed():
    rows = frame([(u, (u + 3 * i) % 20, i) for u in range(30) for i in range(6)])
    one, two, other = (
        leave_one_out_split("toy", rows, cold_fraction=0.25, seed=seed) for seed in (1, 1, 2)
    )
    assert (one.num_warm, one.num_items) == (15, 20)
    np.testing.assert_array_equal(one.item_ids, two.item_ids)
    np.testing.assert_array_equal(one.train.indices, two.train.indices)
    assert set(one.item_ids[15:]) != set(other.item_ids[15:])
    # Slices of warm and cold targets share the users out.
    slices = evaluation.slices(one)
    parts = [set(slices[f"test/open/{name}"].users) for name in ("total", "warm", "cold")]
    assert parts[0] == parts[1] | parts[2]
    assert not parts[1] & parts[2]
    assert parts[2]


def test_without_cold_items_one_mode_is_left():
    rows = frame([(u, (u + i) % 7, i) for u in range(9) for i in range(5)])
    split = leave_one_out_split("toy", rows)
    for cold_vectors in (True, False):
        slices = evaluation.slices(split, cold_vectors=cold_vectors)
        assert set(slices) == {"val/total", "test/open/total", "test/open/warm"}
    assert len(slices["test/open/total"].users) == 9
    np.testing.assert_array_equal(slices["test/open/total"].candidates, np.arange(7))
    # What is read for a test target is training and the validation item.
    np.testing.assert_array_equal(slices["test/open/total"].histories.counts, 4)


@pytest.fixture
def folder(tmp_path):
    """A log whose times count the steps of each user; each item follows itself once."""
    rows = [f"{u}\t{(u + i // 2) % 9}\t1\t{i}" for u in range(12) for i in range(2 + u)]
    (tmp_path / "toy.inter").write_text("\n".join([HEADER, *rows]) + "\n")
    np.save(tmp_path / "text_feat.npy", np.eye(9, dtype=np.float32))
    return tmp_path


def test_the_loader_filters_nothing(folder):
    split = load_sequences("toy", folder, protocol="leave_one_out")
    facts = split.statistics
    assert facts["interactions"] == sum(2 + u for u in range(12))
    assert facts["rows_below_core"] == facts["consecutive_duplicates_dropped"] == 0
    assert split.num_warm == split.num_items == 9
    assert (len(split.val.user), len(split.test.user), split.train.rows) == (11, 11, 11)
    np.testing.assert_array_equal(split.content, np.eye(9)[split.item_ids])


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"n_core": 4}, "rows_below_core", 2 + 3),
        ({"consecutive_duplicates": "drop"}, "consecutive_duplicates_dropped", 42),
    ],
)
def test_filters_can_be_asked_for(folder, options, field, expected):
    split = load_sequences("toy", folder, protocol="leave_one_out", **options)
    assert split.statistics[field] == expected


def test_a_saved_split_is_the_split(folder, tmp_path):
    options = {"protocol": "leave_one_out", "cold_fraction": 0.2}
    split = load_sequences("toy", folder, **options)
    write_sequence_split(tmp_path / "split.npz", split)
    again = load_sequences("toy", folder, split_file=tmp_path / "split.npz", **options)
    assert as_ids(again) == as_ids(split)
    assert again.num_warm == split.num_warm == 7
    assert again.statistics == split.statistics


BAD = {
    "fraction": ({"cold_fraction": 1.0}, "data.cold_fraction=1.0: must be at least 0 and below 1"),
    "negative": ({"cold_fraction": -0.1}, "data.cold_fraction=-0.1: must be at least 0"),
    "no cold item": ({"cold_fraction": 0.01}, "leave none cold or none warm"),
    "core": ({"n_core": 0}, "data.n_core=0: must be an integer from 1"),
    "empty core": ({"n_core": 50}, "the 50-core of the 90 interactions is empty; lower"),
    "duplicates": ({"consecutive_duplicates": "merge"}, "data.consecutive_duplicates='merge'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_option_is_named(folder, case):
    options, said = BAD[case]
    with pytest.raises(DataError, match=said) as error:
        load_sequences("toy", folder, protocol="leave_one_out", **options)
    assert "\n" not in str(error.value)


def test_short_users_alone_are_refused(folder):
    rows = [f"{u}\t{u + i}\t1\t{i}" for u in range(5) for i in range(2)]
    (folder / "toy.inter").write_text("\n".join([HEADER, *rows]) + "\n")
    with pytest.raises(DataError, match="no user has 3 interactions, one each to train"):
        load_sequences("toy", folder, protocol="leave_one_out")


def test_amazon_beauty_is_the_benchmark(data_root):
    split = load_sequences(
        "amazon-beauty", data_root / "amazon-beauty", protocol="leave_one_out", mode="none"
    )
    assert split.num_warm == split.num_items == 12_101
    assert split.train.rows == len(split.val.user) == len(split.test.user) == 22_363
    assert split.statistics["interactions"] == 198_502
    assert len(split.train.indices) == 198_502 - 2 * 22_363
    assert split.statistics["test_targets_seen_before"] == 0


# --- the entry point --------------------------------------------------------------------------

MODELS = ("sasrec", "esasrec", "sasrec_delta", "esasrec_delta", "content_knn")


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    """Walks around a circle of items, and content that tells where on it an item is."""
    root = tmp_path_factory.mktemp("circle")
    rows = [f"{u}\t{(u + i) % 20}\t1\t{i}" for u in range(60) for i in range(6)]
    (root / "amazon-beauty.inter").write_text("\n".join([HEADER, *rows]) + "\n")
    angle = np.arange(20)[:, None] * np.arange(1, 4) * np.pi / 10
    table = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.save(root / "text_feat.npy", table.astype(np.float32))
    return root


def config_of(root, model, **data):
    config = beauty.get_config(model)
    with config.unlocked():
        config.seeds = (0,)
        config.data.update(root=str(root), protocol="leave_one_out", **data)
        if model != "content_knn":
            config.model.update(dim=6, max_length=6)
            config.train.update(epochs=2, batch_size=16, learning_rate=1e-2)
        config.eval.cutoffs = (1, 5, 10)
        config.eval.figure = False
    return configs.resolve(config)


@pytest.mark.parametrize("model", MODELS)
def test_a_run_reports_all_cutoffs(model, circle, tmp_path):
    metrics = runner.run(config_of(circle, model), tmp_path / "run")["metrics"]
    for name in ("ndcg", "recall", "hr", "mrr"):
        values = [metrics[f"test/open/total/{name}@{k}"]["mean"] for k in (1, 5, 10)]
        assert values == sorted(values)
        assert 0 <= values[0] <= values[-1] <= 1
    # One target a user: the recall is the hit rate.
    for k in (1, 5, 10):
        entries = (metrics[f"test/open/total/{name}@{k}"]["mean"] for name in ("recall", "hr"))
        assert len(set(entries)) == 1
    assert not any(name.startswith("test/closed") for name in metrics)


def test_cold_targets_have_their_own_rows_and_the_split_is_taken_again(circle, tmp_path):
    config = config_of(circle, "sasrec_delta", cold_fraction=0.2)
    metrics = runner.run(config, tmp_path / "run")["metrics"]
    assert {"test/open/cold/ndcg@10", "test/open/warm/ndcg@10"} <= metrics.keys()
    again = config_of(
        circle,
        "sasrec_delta",
        cold_fraction=0.2,
        split_seed=7,
        split_file=str(tmp_path / "run" / "split.npz"),
    )
    repeated = runner.run(again, tmp_path / "again")["metrics"]
    for name, entry in metrics.items():
        np.testing.assert_equal(repeated[name]["mean"], entry["mean"])


def test_the_protocol_identifies_a_run():
    """What a run leaves unset is what its protocol says, as if a flag had set it."""
    unset = configs.identity(configs.plain(config_of("data", "sasrec")))
    given = config_of("data", "sasrec", cold_fraction=0.0, n_core=1, consecutive_duplicates="keep")
    assert configs.identity(configs.plain(given)) == unset
    assert unset["data.cold_fraction"] == 0.0
    config = beauty.get_config("sasrec")
    config.data.protocol = "random_cold"
    other = configs.identity(configs.plain(configs.resolve(config)))
    assert (other["data.n_core"], other["data.cold_fraction"]) == (3, 0.15)
    assert other["data.consecutive_duplicates"] == "drop"
    assert {"data.protocol", "model.max_length", "model.loss"} <= {
        field for field in unset if unset[field] != other[field]
    }
