"""Malformed data sets: each stops with one line that names the place and the remedy."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcold.data import Interactions, load, make_split, read_split, write_split
from jaxcold.data.readers import read_features
from jaxcold.types import DataError

USERS, ITEMS = 20, 30


def interactions():
    rng = np.random.default_rng(0)
    taken = rng.random((USERS, ITEMS)) < 0.4
    taken[np.arange(USERS), np.arange(USERS)] = True
    taken[0] = True
    user, item = (ids.astype(np.int32) for ids in np.nonzero(taken))
    return Interactions(user, item, USERS, ITEMS)


@pytest.fixture
def folder(tmp_path):
    """A valid data set in the MMRec layout; user 0 took items 0, 1, 2 ... in lines 2, 3, 4 ..."""
    data = interactions()
    rows = [f"{user}\t{item}\t1\t{7 * item}" for user, item in data.pairs()]
    lines = ["userID\titemID\trating\ttimestamp", *rows]
    (tmp_path / "toy.inter").write_text("\n".join(lines) + "\n")
    for mode in ("text", "image"):
        np.save(tmp_path / f"{mode}_feat.npy", np.ones((ITEMS, 4), np.float32))
    return tmp_path


def complaint(*args, **kwargs):
    """The message, once it is shown to be one line of a decent length."""
    with pytest.raises(DataError) as error:
        load(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    assert ";" in message or ":" in message
    return message


def test_the_data_set_that_the_cases_spoil_is_good(folder):
    assert len(load("toy", folder).interactions.user) == len(interactions().user)


# --- the table -------------------------------------------------------------------------------

LINE = "\n0\t2\t1\t14\n"  # line 4

TABLES = {
    "empty file": (lambda text: "", ["is empty", "begin the file with the header"]),
    "blank first line": (lambda text: "\n" + text, ["line 1 is blank", "begin the file"]),
    "header only": (lambda text: text.split("\n")[0], ["no rows", "one line per interaction"]),
    "no header": (
        lambda text: text.split("\n", 1)[1],
        ["line 1", "no column userID", "begin the file with userID<tab>itemID"],
    ),
    "commas": (lambda text: text.replace("\t", ","), ["line 1", "by commas", "by tabs"]),
    "commas below the header": (
        lambda text: text.replace(LINE, LINE.replace("\t", ",")),
        ["line 4", "1 fields", "by commas", "write 4 fields separated by tabs"],
    ),
    "spaces in every row": (
        lambda text: text.replace("\t", " ").replace(" ", "\t", 3),
        ["line 2", "separated by spaces", "separated by tabs"],
    ),
    "column missing": (
        lambda text: text.replace("itemID", "item"),
        ["line 1", "no column itemID", "begin the file with userID<tab>itemID"],
    ),
    "column twice": (
        lambda text: text.replace("rating", "userID"),
        ["line 1", "userID is there twice", "remove one"],
    ),
    "field missing": (
        lambda text: text.replace(LINE, "\n0\t2\t1\n"),
        ["line 4", "3 fields where the header has 4", "write 4 fields"],
    ),
    "field too many": (
        lambda text: text.replace(LINE, "\n0\t2\t1\t14\t3\n"),
        ["line 4", "5 fields", "write 4 fields"],
    ),
    "field too many in every row": (
        lambda text: text.replace("\n", "\t9\n").replace("stamp\t9", "stamp"),
        ["line 2", "5 fields", "write 4 fields"],
    ),
    "empty field": (
        lambda text: text.replace(LINE, "\n0\t\t1\t14\n"),
        ["line 4", "itemID ''", "whole numbers"],
    ),
    "fraction": (
        lambda text: text.replace(LINE, "\n0\t2.5\t1\t14\n"),
        ["line 4", "itemID '2.5'", "whole numbers"],
    ),
    "text": (
        lambda text: text.replace(LINE, "\nu0\t2\t1\t14\n"),
        ["line 4", "userID 'u0'", "whole numbers"],
    ),
    "not a number": (
        lambda text: text.replace(LINE, "\n0\tnan\t1\t14\n"),
        ["line 4", "itemID 'nan'", "whole numbers"],
    ),
    "time is a date": (
        lambda text: text.replace(LINE, "\n0\t2\t1\t2014-01-01\n"),
        ["line 4", "timestamp '2014-01-01'", "whole numbers"],
    ),
    "negative": (
        lambda text: text.replace(LINE, "\n0\t-2\t1\t14\n"),
        ["line 4", "itemID -2", "number itemID from 0"],
    ),
    "negative after a blank line": (
        lambda text: text.replace(LINE, "\n\n0\t-2\t1\t14\n"),
        ["line 5", "itemID -2", "number itemID from 0"],
    ),
    "beyond 32 bits": (
        lambda text: text.replace(LINE, "\n0\t2147483648\t1\t14\n"),
        ["line 4", "itemID 2147483648", "number itemID from 0"],
    ),
    "beyond 64 bits": (
        lambda text: text.replace(LINE, f"\n0\t{2**64}\t1\t14\n"),
        ["line 4", "does not fit 64 bits", "smaller number"],
    ),
    "pair twice": (
        lambda text: text.replace(LINE, "\n0\t1\t1\t14\n"),
        ["line 4", "userID 0 with itemID 1", "line 3 already", "data.duplicates=drop"],
    ),
    "user without interaction": (
        lambda text: text + f"{USERS + 1}\t0\t1\t3\n",
        [f"userID {USERS} has no interaction", "without gaps", "data.allow_unused=True"],
    ),
    "item without interaction": (
        lambda text: text + f"0\t{ITEMS + 2}\t1\t3\n",
        [f"itemID {ITEMS + 2} has no row in the features", f"have {ITEMS}", "line "],
    ),
    "item beyond the features": (
        lambda text: text + f"0\t{ITEMS}\t1\t3\n",
        [f"itemID {ITEMS} has no row in the features", f"have {ITEMS}", "add its row"],
    ),
    "too few to split": (
        lambda text: "\n".join([*text.split("\n")[:1], "0\t0\t1\t1", "0\t1\t1\t2"]),
        ["leave", "empty", "split_file"],
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table(folder, case):
    spoil, expected = TABLES[case]
    path = folder / "toy.inter"
    before = path.read_text()
    after = spoil(before)
    assert after != before
    path.write_text(after)
    if case == "too few to split":
        for mode in ("text", "image"):
            np.save(folder / f"{mode}_feat.npy", np.ones((2, 4), np.float32))
        place = "split"
    else:
        place = str(folder)
    message = complaint("toy", folder)
    for words in (place, *expected):
        assert words in message


def test_a_table_that_is_no_text(folder):
    path = folder / "toy.inter"
    path.write_bytes(path.read_bytes().replace(b"0\t2\t", b"0\t\xff\t", 1))
    message = complaint("toy", folder)
    assert str(path) in message
    assert "not UTF-8" in message
    assert "plain text" in message


def test_a_folder_without_the_files(tmp_path):
    message = complaint("toy", tmp_path, modes=("text",), published="https://data.example/toy")
    assert f"{tmp_path}: toy.inter, text_feat.npy not found" in message
    assert "published at https://data.example/toy" in message
    assert "put the files into that folder" in message
    assert "$JAXCOLD_DATA" in message


# --- features --------------------------------------------------------------------------------


def saved(array, **kwargs):
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


def spoilt(row, column, value):
    table = np.ones((ITEMS, 4), np.float32)
    table[row, column] = value
    return saved(table)


def promising(shape):
    """A header that announces more than the file holds."""
    good = saved(np.ones((ITEMS, 4), np.float32))
    return good.replace(b"(30, 4)", shape.ljust(7))


FEATURES = {
    "rows missing": (saved(np.ones((ITEMS - 1, 4))), ["29 rows for 30 items", "add or remove"]),
    "rows left over": (saved(np.ones((ITEMS + 1, 4))), ["31 rows for 30 items", "allow_unused"]),
    "one axis": (saved(np.ones(ITEMS)), ["shape [30]", "both axes"]),
    "three axes": (saved(np.ones((ITEMS, 2, 2))), ["shape [30, 2, 2]", "both axes"]),
    "no columns": (saved(np.ones((ITEMS, 0))), ["shape [30, 0]", "both axes"]),
    "integers": (saved(np.ones((ITEMS, 4), np.int64)), ["holds int64", "float32"]),
    "complex": (saved(np.ones((ITEMS, 4), complex)), ["holds complex128", "float32"]),
    "pickled objects": (
        saved(np.full((ITEMS, 4), None), allow_pickle=True),
        ["no plain .npy array", "numpy.save"],
    ),
    "a pickle": (b"\x80\x04K\x01.", ["no plain .npy array", "numpy.save"]),
    "empty file": (b"", ["cut short, empty", "numpy.save"]),
    "cut short": (saved(np.ones((ITEMS, 4)))[:-8], ["cut short", "numpy.save"]),
    "cut in the header": (saved(np.ones((ITEMS, 4)))[:40], ["cut short", "numpy.save"]),
    "promises too much": (promising(b"(30,99999999999)"), ["cut short", "numpy.save"]),
    "NaN": (spoilt(3, 2, np.nan), ["row 3", "nan in column 2", "finite", "missing_modes=True"]),
    "infinity": (spoilt(3, 2, np.inf), ["row 3", "inf in column 2", "finite"]),
    "whole row NaN": (spoilt(3, slice(None), np.nan), ["row 3", "missing_modes=True"]),
}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("case", FEATURES)
def test_a_bad_feature_file(folder, case, mmap):
    content, expected = FEATURES[case]
    path = folder / "text_feat.npy"
    path.write_bytes(content)
    message = complaint("toy", folder, mmap=mmap)
    for words in (str(path), *expected):
        assert words in message


def test_an_archive_that_poses_as_a_table(folder):
    np.savez(folder / "text_feat", table=np.ones((ITEMS, 4)))
    (folder / "text_feat.npz").rename(folder / "text_feat.npy")
    message = complaint("toy", folder)
    assert "text_feat.npy: is cut short, empty or no plain .npy array" in message


def test_a_row_that_is_partly_nan_is_no_missing_mode(folder):
    (folder / "text_feat.npy").write_bytes(spoilt(3, 2, np.nan))
    message = complaint("toy", folder, missing_modes=True)
    assert "row 3" in message
    assert "NaN in the whole row" in message


def test_a_row_of_nan_on_disk_cannot_be_made_zero(folder):
    (folder / "text_feat.npy").write_bytes(spoilt(3, slice(None), np.nan))
    load("toy", folder, missing_modes=True)
    message = complaint("toy", folder, missing_modes=True, mmap=True)
    assert "zeros in the whole row" in message


def test_an_item_without_any_content(folder):
    for mode in ("text", "image"):
        (folder / f"{mode}_feat.npy").write_bytes(spoilt(11, slice(None), 0))
    message = complaint("toy", folder, missing_modes=True)
    assert "item 11 has no content in any mode" in message
    assert "give it a row in one" in message


def test_modes_of_different_length(folder):
    np.save(folder / "text_feat.npy", np.ones((ITEMS + 1, 4)))
    message = complaint("toy", folder, allow_unused=True)
    assert "[30, 31] rows" in message
    assert "one row per item" in message


def test_no_content_at_all(folder):
    for mode in ("text", "image"):
        (folder / f"{mode}_feat.npy").unlink()
    message = complaint("toy", folder)
    assert f"{folder}: no content" in message
    assert "put the feature files there" in message


# --- the split file --------------------------------------------------------------------------


def rewrite(path, change):
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def move(arrays, row, origin, target):
    arrays[target] = np.concatenate([arrays[target], arrays[origin][[row]]])
    arrays[origin] = np.delete(arrays[origin], row, axis=0)


def put(name, value):
    return lambda arrays: arrays.__setitem__(name, value(arrays))


def drop_training_of_a_user(arrays):
    user = arrays["warm_val"][0, 0]
    rows = np.flatnonzero(arrays["warm_train"][:, 0] == user)
    for row in rows[::-1]:
        move(arrays, row, "warm_train", "warm_val")


def drop_training_of_an_item(arrays):
    item = arrays["warm_val"][0, 1]
    rows = np.flatnonzero(arrays["warm_train"][:, 1] == item)
    for row in rows[::-1]:
        move(arrays, row, "warm_train", "warm_val")


SPLITS = {
    "array missing": (lambda a: a.pop("cold_val"), ["no array cold_val", "write the split again"]),
    "floats": (
        put("warm_val", lambda a: a["warm_val"] * 1.0),
        ["warm_val is float64", "not integers [n, 2]", "write the split again"],
    ),
    "three columns": (
        put("warm_val", lambda a: np.ones((4, 3), int)),
        ["warm_val has 3 columns", "write the split again"],
    ),
    "items in a column": (
        put("warm_items", lambda a: a["warm_items"][:, None]),
        ["warm_items is int32[24, 1]", "not integers [n]", "write the split again"],
    ),
    "objects": (put("warm_items", lambda a: np.array([None])), ["not a readable", "write the"]),
    "part empty": (
        put("cold_val", lambda a: a["cold_val"][:0]),
        ["cold_val", "is empty", "make the split again"],
    ),
    "no such item": (
        put("cold_val_items", lambda a: np.array([ITEMS])),
        ["cold_val_items row 0", f"item {ITEMS}", "make the split again"],
    ),
    "negative item": (
        put("cold_val_items", lambda a: np.array([-1])),
        ["cold_val_items row 0", "item -1", "make the split again"],
    ),
    "warm and cold": (
        put("cold_val_items", lambda a: np.append(a["cold_val_items"], a["warm_items"][0])),
        ["cold_val_items row 3", "in warm_items already", "keep one"],
    ),
    "cold twice": (
        put("cold_test_items", lambda a: a["cold_test_items"][[0, 1, 2, 1]]),
        ["cold_test_items row 3", "in cold_test_items already", "keep one"],
    ),
    "unknown pair": (
        put("warm_train", lambda a: np.append(a["warm_train"], [[USERS, 0]], axis=0)),
        ["warm_train row", f"user {USERS} and item 0 are not a pair", "make the split again"],
    ),
    "pair twice": (
        put("cold_val", lambda a: a["cold_val"][[0, 1, 0]]),
        ["cold_val row 2", "are in cold_val already", "keep one"],
    ),
    "pair in two parts": (
        put("warm_test", lambda a: np.append(a["warm_test"], a["warm_train"][:1], axis=0)),
        ["warm_test row", "are in warm_train already", "keep one"],
    ),
    "pair left out": (
        put("warm_train", lambda a: a["warm_train"][1:]),
        ["1 interactions are in no set", "make the split again"],
    ),
    "cold pair in training": (
        lambda a: move(a, 0, "cold_val", "warm_train"),
        ["warm_train row", "is not in warm_items", "move the row"],
    ),
    "user never trained": (
        drop_training_of_a_user,
        ["warm_val row", "does not occur in warm_train", "move the row there"],
    ),
    "item never trained": (
        drop_training_of_an_item,
        ["warm_items row", "does not occur in warm_train", "move one of its rows there"],
    ),
}


@pytest.mark.parametrize("case", SPLITS)
def test_a_bad_split_file(folder, case):
    change, expected = SPLITS[case]
    path = folder / "split.npz"
    write_split(path, make_split(interactions(), 0))
    rewrite(path, lambda arrays: None)
    read_split(path, interactions())
    rewrite(path, change)
    message = complaint("toy", folder, split_file=path)
    for words in (str(path), *expected):
        assert words in message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04K\x01."])
def test_a_split_file_that_is_no_archive(folder, content):
    path = folder / "split.npz"
    path.write_bytes(content)
    message = complaint("toy", folder, split_file=path)
    assert f"{path}: is not a readable .npz" in message
    assert "write the split again" in message


def test_a_split_file_cut_short(folder):
    path = folder / "split.npz"
    write_split(path, make_split(interactions(), 0))
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a readable .npz" in complaint("toy", folder, split_file=path)


def test_a_split_file_with_a_spoilt_member(folder):
    path = folder / "split.npz"
    write_split(path, make_split(interactions(), 0))
    content = bytearray(path.read_bytes())
    content[100:120] = bytes(20)
    path.write_bytes(content)
    assert "is not a readable .npz" in complaint("toy", folder, split_file=path)


def test_a_split_file_that_is_not_there(folder):
    message = complaint("toy", folder, split_file=folder / "none.npz")
    assert "none.npz: no such split file" in message
    assert "unset split_file" in message


def test_the_split_of_other_data(folder):
    data = interactions()
    mirrored = data._replace(item=(ITEMS - 1 - data.item).astype(np.int32))
    write_split(folder / "split.npz", make_split(mirrored, 0))
    message = complaint("toy", folder, split_file=folder / "split.npz")
    assert "not a pair of the interactions" in message
    assert "make the split again from this data set" in message


# --- the authors' layout ---------------------------------------------------------------------

AUTHORS = {
    "file missing": (
        lambda path: path.unlink(),
        ["cold_item: warm_val.csv not found", "put the files into that folder"],
    ),
    "semicolons": (
        lambda path: path.write_text(path.read_text().replace(",", ";")),
        ["warm_val.csv: line 1", "by semicolons", "by commas"],
    ),
    "no header": (
        lambda path: path.write_text(path.read_text().split("\n", 1)[1]),
        ["warm_val.csv: line 1", "no column user", "begin the file with user,item"],
    ),
    "cold item": (
        lambda path: path.write_text(
            path.read_text()
            + path.with_name("cold_item_test.csv").read_text().strip().split("\n")[-1]
        ),
        ["item", "in warm_items already", "keep one"],
    ),
    "training pair": (
        lambda path: path.write_text(
            path.read_text() + path.with_name("warm_train.csv").read_text().split("\n")[1]
        ),
        ["warm_val.csv: line", "are in warm_train already", "keep one"],
    ),
    "gap": (
        lambda path: path.write_text(path.read_text() + f"{USERS + 3},0\n"),
        [f"user {USERS} has no interaction", "without gaps", "allow_unused=True"],
    ),
    "negative": (
        lambda path: path.write_text(path.read_text().replace("\n", "\n-1,0\n", 1)),
        ["warm_val.csv: line 2", "user -1", "number user from 0"],
    ),
}


@pytest.mark.parametrize("case", AUTHORS)
def test_a_bad_folder_of_the_authors_layout(tmp_path, case):
    spoil, expected = AUTHORS[case]
    split = make_split(interactions(), 0)
    folder = tmp_path / "cold_item"
    folder.mkdir()
    for part, rows in split.pairs.items():
        name = part.replace("cold_", "cold_item_")
        text = "".join(f"{user},{item}\n" for user, item in rows)
        (folder / f"{name}.csv").write_text("user,item\n" + text)
    (tmp_path / "feats").mkdir()
    np.save(tmp_path / "feats" / "text.npy", np.ones((ITEMS, 4), np.float32))
    load("toy", tmp_path)
    spoil(folder / "warm_val.csv")
    message = complaint("toy", tmp_path)
    for words in (str(folder), *expected):
        assert words in message


# --- settings --------------------------------------------------------------------------------

SETTINGS = {
    "content": ({"content": "web"}, ["data.content='web'", "'files' or 'raw'"]),
    "raw of another": ({"content": "raw"}, ["data.content='raw'", "set data.content='files'"]),
    "reader": ({"reader": "csv"}, ["data.reader='csv'", "'mmrec' or 'authors'"]),
    "duplicates": ({"duplicates": "keep"}, ["data.duplicates='keep'", "'error' or 'drop'"]),
    "mode": ({"modes": ("sound",)}, ["sound_feat.npy not found", "put the files"]),
    "mode twice": ({"modes": ("text", "text")}, ["data.modes", "name each mode once"]),
    "no mode": ({"modes": ()}, ["data.modes=[]", "name each mode once, of image, text"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_bad_setting(folder, case):
    chosen, expected = SETTINGS[case]
    message = complaint("toy", folder, **chosen)
    for words in expected:
        assert words in message


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 127), st.binary(min_size=1, max_size=4))
def test_a_spoilt_feature_header_never_gets_past_the_check(tmp_path_factory, at, junk):
    """Whatever a damaged header makes NumPy raise, the caller sees one kind of error."""
    path = tmp_path_factory.mktemp("junk") / "text_feat.npy"
    content = bytearray(saved(np.ones((ITEMS, 4), np.float32)))
    content[at : at + len(junk)] = junk
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        table = read_features({"text": path}, ITEMS).tables["text"]
        assert len(table) == ITEMS
        assert np.isfinite(table).all()
