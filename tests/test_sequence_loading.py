"""Published layouts of sequences, split files, and what is said about bad input."""

import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

from jaxcold.data.sequences import split as sequences
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sequences.split_file import write_sequence_split
from jaxcold.data.sources import letitgo
from jaxcold.types import DataError

TABLES = pathlib.Path(__file__).parent / "golden" / "letitgo" / "preprocessing"


def table(name):
    """A golden table; columns user, item, time where it has them."""
    short = {"user_id": "user", "item_id": "item", "timestamp": "time"}
    return pd.read_csv(TABLES / f"{name}.csv").rename(columns=short)


VAL_USERS = [107, 110, 113]  # of the golden split
BOUNDARY = 1600175583


@pytest.fixture(scope="module")
def toy():
    return sequences.temporal_split("toy", table("raw"), val_users=VAL_USERS)


def as_lists(csr):
    return [list(row) for row in np.split(csr.indices, csr.indptr[1:-1])]


# --- layouts ----------------------------------------------------------------------------------


@pytest.fixture
def inter(tmp_path):
    """A valid ``toy.inter`` with content of width 2, row i = (i, 2 i)."""
    rows = table("raw")
    rows["user"] -= 100
    rows["item"] -= 1000
    lines = [f"{u}\t{i}\t{1 + i % 5}\t{t}" for u, i, t in rows.to_numpy()]
    (tmp_path / "toy.inter").write_text("userID\titemID\trating\ttimestamp\n" + "\n".join(lines))
    ids = np.arange(rows["item"].max() + 1, dtype=np.float32)
    np.save(tmp_path / "text_feat.npy", np.stack([ids, 2 * ids], axis=1))
    return tmp_path


def test_an_inter_file_gives_the_sequences_of_its_rows(inter, toy):
    data = load_sequences("toy", inter)
    assert data.statistics["cold_seen_before"] >= 2
    assert data.statistics["boundary"] == BOUNDARY
    np.testing.assert_array_equal(data.content[:, 0], data.item_ids)
    assert load_sequences("toy", inter, mode="none").content is None


def test_ratings_filter_rows(inter):
    data = load_sequences("toy", inter, min_rating=2, n_core=1)
    assert data.statistics["interactions"] == ((table("raw")["item"] - 1000) % 5 > 1).sum()
    assert (data.item_ids % 5 > 1).all()


def test_a_written_split_is_read_back_whole(inter, tmp_path):
    data = load_sequences("toy", inter, split_seed=3)
    write_sequence_split(tmp_path / "split.npz", data)
    write_sequence_split(tmp_path / "again.npz", data)
    assert (tmp_path / "split.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    back = load_sequences("toy", inter, split_file=tmp_path / "split.npz")
    assert (back.num_warm, back.num_items, back.statistics) == (
        data.num_warm,
        data.num_items,
        data.statistics,
    )
    for mine, theirs in zip(
        (*data.train, *data.val.history, *data.test.history, data.val.target, data.content),
        (*back.train, *back.val.history, *back.test.history, back.val.target, back.content),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


@pytest.fixture
def prepared(tmp_path, toy):
    """The golden tables in the authors' layout."""
    folder = tmp_path / "processed"
    folder.mkdir()
    names = ("train", "val", "test_inputs", "ground_truth")
    for name, file in zip(names, letitgo._PREPARED["parquet"], strict=True):
        pd.read_csv(TABLES / f"{name}.csv").to_parquet(folder / file)
    (tmp_path / "item_embeddings").mkdir()
    content = np.random.default_rng(0).normal(size=(toy.num_items, 3)).astype(np.float32)
    np.save(tmp_path / "item_embeddings" / "embeddings_warm.npy", content[: toy.num_warm])
    np.save(tmp_path / "item_embeddings" / "embeddings_cold.npy", content[toy.num_warm :])
    return tmp_path


def test_the_prepared_tables_give_the_split_they_were_made_by(prepared, toy):
    data = load_sequences("toy", prepared)
    assert (data.num_warm, data.num_items) == (toy.num_warm, toy.num_items)
    for mine, theirs in zip(
        (*data.train, *data.val.history, data.val.target, *data.test.history, data.test.target),
        (*toy.train, *toy.val.history, toy.val.target, *toy.test.history, toy.test.target),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(data.user_ids, toy.user_ids)
    warm = np.load(prepared / "item_embeddings" / "embeddings_warm.npy")
    np.testing.assert_array_equal(data.content[: len(warm)], warm)


def test_the_prepared_tables_of_amazon_m2_are_csv(prepared, toy):
    names = zip(*letitgo._PREPARED.values(), strict=True)
    for old, new in names:
        rows = pd.read_parquet(prepared / "processed" / old)
        rows.to_csv(prepared / "processed" / new)  # with the index, as published
    data = load_sequences("toy", prepared, mode="none")
    np.testing.assert_array_equal(data.train.indices, toy.train.indices)
    np.testing.assert_array_equal(data.test.target, toy.test.target)
    # Row 104 of the training sessions and row 104 of the test sessions are two users.
    assert "train:104" in data.user_ids
    assert "test:104" in data.user_ids


def write_content(folder, items):
    items = sorted(set(items), reverse=True)
    (folder / "item_ids.txt").write_text("\n".join(items) + "\n")
    np.save(folder / "e5_feat.npy", np.arange(2.0 * len(items)).reshape(-1, 2))
    return items


def test_beauty_ratings_above_three(tmp_path, toy):
    rows = table("raw").astype({"user": str, "item": str})
    lines = [f"U{u},{i},5.0,{t}" for u, i, t in rows.to_numpy()]
    low = [f"U{u},low{n},3.0,{t}" for n, (u, _, t) in enumerate(rows.to_numpy())]
    (tmp_path / "ratings_Beauty.csv").write_text("\n".join(lines + low) + "\n")
    items = write_content(tmp_path, rows["item"])
    data = load_sequences("beauty", tmp_path)
    assert data.statistics["interactions"] == len(rows)
    assert data.statistics["boundary"] == BOUNDARY
    assert not any(item.startswith("low") for item in data.item_ids)
    first = items.index(data.item_ids[0])
    np.testing.assert_array_equal(data.content[0], [2 * first, 2 * first + 1])
    # The reviews with a core, as the paper's authors hold them, say the same.
    reviews = pd.DataFrame(
        {
            "reviewerID": "U" + rows["user"],
            "asin": rows["item"],
            "overall": 5,
            "unixReviewTime": rows["time"],
        }
    )
    reviews.to_parquet(tmp_path / "reviews_Beauty_5.parquet")
    same = load_sequences("beauty", tmp_path)
    np.testing.assert_array_equal(same.train.indices, data.train.indices)


def test_a_header_of_ratings_is_no_row(tmp_path):
    (tmp_path / "ratings_Beauty.csv").write_text("user,item,rating,timestamp\nA,X,4.0,7\n")
    rows = letitgo.read_beauty(tmp_path)
    assert rows.to_numpy().tolist() == [["A", "X", 7]]


def test_zvuk_plays_longer_than_a_minute(tmp_path):
    rows = table("raw")
    plays = pd.DataFrame(
        {
            "user_id": rows["user"],
            "track_id": rows["item"],
            "datetime": pd.to_datetime(rows["time"], unit="s").astype("datetime64[ms]"),
            "play_duration": np.float32(61),
        }
    )
    short = plays.assign(play_duration=np.float32(60), track_id=7)
    pd.concat([plays, short]).to_parquet(tmp_path / "zvuk-interactions.parquet")
    data = load_sequences("zvuk", tmp_path, mode="none")
    assert data.statistics["interactions"] == len(rows)
    assert data.statistics["boundary"] == BOUNDARY * 1000
    fewer = load_sequences("zvuk", tmp_path, mode="none", max_users=20, n_core=1)
    assert fewer.statistics["interactions"] < len(rows)


SESSIONS = ["['a' 'a' 'b']", "['a' 'b'\n 'c']", "['c' 'b']", "['b' 'c']", "['d']"]


@pytest.fixture
def m2(tmp_path):
    """Five French training sessions, two test sessions, and some of another locale."""
    train = pd.DataFrame({"prev_items": SESSIONS, "next_item": list("cabba"), "locale": "FR"})
    other = pd.DataFrame({"prev_items": ["['x' 'y']"], "next_item": "z", "locale": "DE"})
    pd.concat([other, train]).to_csv(tmp_path / "sessions_train.csv", index=False)
    test = pd.DataFrame({"prev_items": ["['x']", "['a' 'a' 'e']", "['b']"]})
    test["locale"] = ["DE", "FR", "FR"]
    test.to_csv(tmp_path / "sessions_test_task2_phase1.csv", index=False)
    (tmp_path / "ground_truth" / "phase1").mkdir(parents=True)
    truth = pd.DataFrame({"next_item": list("zef"), "locale": ["DE", "FR", "FR"]})
    truth.to_csv(tmp_path / "ground_truth" / "phase1" / "gt_task2.csv", index=False)
    write_content(tmp_path, "abcdef")
    return tmp_path


def test_amazon_m2_brings_its_test_sessions(m2):
    data = load_sequences("m2", m2, val_fraction=0.2)
    assert (data.train.rows, len(data.val.user)) == (4, 1)
    named = {
        user: "".join(data.item_ids[row])
        for user, row in zip(data.user_ids, as_lists(data.train), strict=False)
    }
    everyone = {f"train:{n}": s for n, s in enumerate(["abc", "abca", "cb", "bcb", "da"], 1)}
    assert named.items() <= everyone.items()
    # The answer e repeats its history and stays; the repeated a in the history goes.
    assert list(data.user_ids[data.test.user]) == ["test:1", "test:2"]
    assert ["".join(data.item_ids[row]) for row in as_lists(data.test.history)] == ["ae", "b"]
    assert list(data.item_ids[data.test.target]) == ["e", "f"]
    assert (data.test.target >= data.num_warm).all()
    as_code = load_sequences("m2", m2, val_fraction=0.2, consecutive_duplicates="drop_in_train")
    assert as_code.test.history.counts.tolist() == [3, 1]


# --- bad input --------------------------------------------------------------------------------


def complaint(*args, **kwargs):
    """The message, once it is shown to be one line of a decent length."""
    with pytest.raises(DataError) as error:
        load_sequences(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    assert ";" in message or ":" in message
    return message


OPTIONS = {
    "layout": ({"layout": "movielens"}, ["data.layout='movielens'", "amazon_m2"]),
    "protocol": ({"protocol": "random"}, ["data.protocol='random'", "random_cold"]),
    "quantile": ({"quantile": 1.0}, ["data.quantile=1.0", "between 0 and 1"]),
    "val_fraction": ({"val_fraction": 0}, ["data.val_fraction=0", "between 0 and 1"]),
    "cold_fraction": (
        {"protocol": "random_cold", "cold_fraction": 2},
        ["data.cold_fraction=2", "between 0 and 1"],
    ),
    "core": ({"n_core": 0}, ["data.n_core=0", "from 1"]),
    "core too large": ({"n_core": 50}, ["50-core", "lower data.n_core"]),
    "no validation": ({"val_fraction": 0.99}, ["leave none to train", "data.val_fraction=0.99"]),
    "consecutive duplicates": (
        {"consecutive_duplicates": "merge"},
        ["data.consecutive_duplicates='merge'", "'keep'"],
    ),
    "seed": ({"split_seed": -1}, ["data.split_seed=-1", "at least 0"]),
    "users": ({"max_users": 0}, ["data.max_users=0", "at least 1"]),
    "rating": ({"min_rating": 9}, ["no interactions are left", "loosen"]),
    "mode": ({"mode": "image"}, ["data.mode='image'", "no image_feat.npy", "text"]),
    "no file": ({"split_file": "nowhere.npz"}, ["nowhere.npz", "unset data.split_file"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_named(inter, case):
    kwargs, parts = OPTIONS[case]
    message = complaint("toy", inter, **kwargs)
    for part in parts:
        assert part in message


def test_a_log_without_time_has_no_order(inter):
    path = inter / "toy.inter"
    lines = path.read_text().splitlines()
    rows = [row.rsplit("\t", 1)[0] + "\t0" for row in lines[1:]]
    path.write_text("\n".join([lines[0], *rows]))
    assert "gives no order" in complaint("toy", inter, protocol="random_cold")


def test_positions_are_no_clock(inter):
    rows = [f"{u}\t{i}\t1\t{i}" for u in range(9) for i in range(5)]
    (inter / "toy.inter").write_text("\n".join(["userID\titemID\trating\ttimestamp", *rows]))
    message = complaint("toy", inter)
    assert "no clock" in message
    assert "data.protocol='random_cold'" in message


def test_ties_of_all_times_leave_nothing_to_test(inter):
    rows = [f"{u}\t{i}\t1\t{int(i > 0)}" for u in range(9) for i in range(5)]
    (inter / "toy.inter").write_text("\n".join(["userID\titemID\trating\ttimestamp", *rows]))
    assert "no interaction is later" in complaint("toy", inter)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("itemID", "seven", "line 2: itemID 'seven' is not an integer"),
        ("timestamp", "", "line 2: timestamp '' is not an integer"),
        ("userID", "-4", "line 2: userID -4 is outside"),
    ],
)
def test_a_bad_row_of_an_inter_file_is_named(inter, field, value, part):
    path = inter / "toy.inter"
    header, first, *rest = path.read_text().splitlines()
    fields = first.split("\t")
    fields[header.split("\t").index(field)] = value
    path.write_text("\n".join([header, "\t".join(fields), *rest]))
    assert part in complaint("toy", inter)


def test_a_rating_that_is_no_number_is_named(inter):
    path = inter / "toy.inter"
    header, first, *rest = path.read_text().splitlines()
    user, item, _, time = first.split("\t")
    path.write_text("\n".join([header, f"{user}\t{item}\tgood\t{time}", *rest]))
    assert "line 2: rating 'good' is not a number" in complaint("toy", inter, min_rating=1)
    assert load_sequences("toy", inter).num_items  # nobody asked for ratings


def test_absent_content_says_what_to_put_where(inter, tmp_path):
    (inter / "text_feat.npy").unlink()
    assert "MODE_feat.npy" in complaint("toy", inter)
    np.save(inter / "a_feat.npy", np.ones((40, 2)))
    np.save(inter / "b_feat.npy", np.ones((40, 2)))
    assert "modes a, b; choose one by data.mode" in complaint("toy", inter)


def cold_split(**changes):
    arrays = {
        "cold_items": np.array([0, 3]),
        "train_users": np.arange(12),
        "val_users": np.arange(12, 18),
        "test_users": np.arange(18, 25),
    }
    return arrays | changes


COLD_SPLITS = {
    "user twice": ({"val_users": np.array([12, 3])}, "val_users[1]: user 3 is in train_users"),
    "unknown item": ({"cold_items": np.array([0, 99])}, "cold_items[1]: item 99 has no"),
    "unknown user": ({"test_users": np.array([50])}, "test_users[0]: user 50 has no"),
    "repeated": ({"cold_items": np.array([3, 3])}, "cold_items[1]: 3 is there twice"),
    "empty": ({"val_users": np.array([], int)}, "val_users is empty"),
    "text": ({"test_users": np.array(["18"])}, "test_users[0]: user 18 has no"),
    "floats": ({"test_users": np.array([18.0])}, "test_users is float64[1]"),
}


@pytest.mark.parametrize("case", COLD_SPLITS)
def test_a_bad_cold_split_is_named(inter, case):
    changes, part = COLD_SPLITS[case]
    np.savez(inter / "split.npz", **cold_split(**changes))
    options = {"protocol": "random_cold", "split_file": inter / "split.npz"}
    assert part in complaint("toy", inter, **options)


def test_a_good_cold_split_is_taken_and_needs_its_protocol(inter):
    np.savez(inter / "split.npz", **cold_split())
    options = {"protocol": "random_cold", "split_file": inter / "split.npz"}
    data = load_sequences("toy", inter, **options)
    assert list(data.item_ids[data.num_warm :]) == [0, 3]
    assert "data.protocol='random_cold'" in complaint("toy", inter, split_file=inter / "split.npz")
    arrays = cold_split()
    del arrays["val_users"]
    np.savez(inter / "split.npz", **arrays)
    assert "has no array val_users" in complaint("toy", inter, **options)
    (inter / "split.npz").write_bytes(b"nothing")
    assert "not a readable .npz" in complaint("toy", inter, **options)


WRITTEN = {
    "foreign pair": ("test_target", lambda a: (a + 1) % 3, "never took item"),
    "item too large": ("train_indices", lambda a: a + 90, "train_indices[0] is"),
    "rows too long": ("val_history_indptr", lambda a: a + 1, "val_history_indptr does not divide"),
    "questions": ("val_user", lambda a: a[:-1], "val has"),
    "user twice": ("user_ids", lambda a: a * 0, "user_ids[1]: 0 is there twice"),
    "no warm item": ("num_warm", lambda a: a * 0, "num_warm is 0"),
    "type": ("train_indptr", lambda a: a * 1.0, "train_indptr is float64"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_spoilt_written_split_is_named(inter, case):
    array, spoil, part = WRITTEN[case]
    path = inter / "split.npz"
    write_sequence_split(path, load_sequences("toy", inter))
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {array: spoil(arrays[array])})
    assert part in complaint("toy", inter, split_file=path)


def test_prepared_tables_that_contradict_each_other_are_named(prepared):
    path = prepared / "processed" / "ground_truth.parquet"
    truth = pd.read_parquet(path)
    truth.assign(is_cold=~truth["is_cold"]).to_parquet(path)
    assert "row 0 (counted from 0): item_id" in complaint("toy", prepared)
    pd.concat([truth, truth[:1]]).to_parquet(path)
    assert "has an answer already" in complaint("toy", prepared)
    truth[1:].to_parquet(path)
    # User 102 has no row but the answer; the next who has is missed.
    truth[truth["user_id"] != 104].to_parquet(path)
    assert "user_id 104: ground_truth.parquet has no answer" in complaint("toy", prepared)
    truth.drop(columns="is_cold").to_parquet(path)
    assert "no column is_cold" in complaint("toy", prepared)
    path.write_bytes(b"PAR1")
    assert "is no readable parquet file" in complaint("toy", prepared)
    truth.to_parquet(path)
    val = prepared / "processed" / "val_interactions.parquet"
    rows = pd.read_parquet(val)
    rows.assign(item_id=17).to_parquet(val)
    assert "row 0 (counted from 0): item_id 17: no training row has it" in complaint(
        "toy", prepared
    )
    rows[:0].to_parquet(val)
    assert "data.layout='amazon_m2'" in complaint("toy", prepared)
    rows.astype({"item_id": float}).to_parquet(val)
    assert "item_id holds float64" in complaint("toy", prepared)


def test_the_published_validation_table_of_amazon_m2_is_empty(prepared):
    for old, new in zip(*letitgo._PREPARED.values(), strict=True):
        rows = pd.read_parquet(prepared / "processed" / old)
        if new == "val_data.csv":
            rows = rows[:0]
        rows.to_csv(prepared / "processed" / new)
    assert "val_data.csv: has no rows, a known defect" in complaint("toy", prepared)


def test_prepared_embeddings_match_the_items(prepared):
    path = prepared / "item_embeddings" / "embeddings_warm.npy"
    warm = np.load(path)
    np.save(path, warm[1:])
    assert "embeddings_warm.npy: has 15 rows for 16 items" in complaint("toy", prepared)
    np.save(path, warm[:, 1:])
    assert "embeddings_warm.npy has 2 columns" in complaint("toy", prepared)
    path.unlink()
    assert "embeddings_warm.npy not found" in complaint("toy", prepared)
    assert "bring their own split" in complaint("toy", prepared, split_file="split.npz")
    assert "brings its own test users" in complaint("toy", prepared, protocol="random_cold")
    assert "has no ratings" in complaint("toy", prepared, min_rating=3)


def test_without_pyarrow_the_remedy_is_named(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in complaint("toy", prepared)


def test_bad_ratings_are_named(tmp_path):
    path = tmp_path / "ratings_Beauty.csv"
    path.write_text("A,X,5.0,7\nB,Y,many,8\n")
    assert "line 2: rating 'many' is not a number" in complaint("beauty", tmp_path)
    path.write_text("A,X,5.0,7\nB,Y,5.0\n")
    assert "line 2: timestamp '' is not a number" in complaint("beauty", tmp_path)
    path.write_text("user,item,rating,timestamp\nA,X,5.0,7.5\n")
    assert "line 2: timestamp '7.5' is not a whole number" in complaint("beauty", tmp_path)
    path.write_text("A,,5.0,7\n")
    assert "line 1: the item is blank" in complaint("beauty", tmp_path)
    path.write_text("")
    assert "ratings_Beauty.csv" in complaint("beauty", tmp_path)
    path.unlink()
    assert "not found" in complaint("beauty", tmp_path, layout="beauty")


def test_bad_sessions_are_named(m2):
    path = m2 / "sessions_train.csv"
    text = path.read_text()
    path.write_text(text.replace("['c' 'b']", "['c' ... 'b']"))
    message = complaint("m2", m2, val_fraction=0.2)
    assert "session 3 (counted from 0)" in message
    assert "no list" in message
    path.write_text(text.replace("['c' 'b']", "__import__('os')"))
    assert "no list" in complaint("m2", m2, val_fraction=0.2)
    path.write_text(text.replace("FR", "UK"))
    assert "no session of locale FR, only DE, UK" in complaint("m2", m2)
    path.write_text(text)
    truth = m2 / "ground_truth" / "phase1" / "gt_task2.csv"
    truth.write_text("next_item,locale\nz,DE\ne,FR\n")
    assert "take both files from the same phase" in complaint("m2", m2)
    truth.unlink()
    assert "gt_task2.csv not found" in complaint("m2", m2)


def test_a_list_of_items_fits_the_features(m2):
    path = m2 / "item_ids.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["other", *lines[1:]]))
    assert "item f is missing" in complaint("m2", m2, val_fraction=0.2)
    path.write_text("\n".join([lines[1], *lines[1:]]))
    assert "line 2: id 'e' is there twice" in complaint("m2", m2, val_fraction=0.2)
    path.write_text("\n".join(lines[1:]))
    assert "5 ids for 6 rows" in complaint("m2", m2, val_fraction=0.2)
    path.unlink()
    assert "write the item id of each row" in complaint("m2", m2, val_fraction=0.2)
