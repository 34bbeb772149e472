"""Silent mistakes in real logs: ids from 1, doubled rows, huge ids, features that say nothing."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from jaxcold.data import content, load
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sequences.split import drop_repeated_rows, ordered_rows
from jaxcold.types import DataError

ITEMS = 12


def write(folder, rows, features=None):
    lines = ["userID\titemID\trating\ttimestamp", *("\t".join(map(str, row)) for row in rows)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    table = np.random.default_rng(0).normal(size=(ITEMS, 3)) if features is None else features
    np.save(folder / "text_feat.npy", table)


def log(first_item=0):
    """Every user takes every item, at times of its own."""
    return [(u, i + first_item, 4.5, 100 * i + u) for u in range(10) for i in range(ITEMS)]


def complaint(function, folder, **options):
    with pytest.raises(DataError) as error:
        function("toy", folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


LOADERS = [load, load_sequences]


@pytest.mark.parametrize("function", LOADERS)
@pytest.mark.parametrize("allow", [False, True])
def test_item_ids_from_1_are_refused(tmp_path, function, allow):
    write(tmp_path, log(first_item=1))
    options = {"allow_unused": allow} if function is load else {}
    message = complaint(function, tmp_path, **options)
    assert "ids start at 1; subtract 1 from each or add a first row" in message
    assert "toy.inter" in message


def test_the_range_of_ids_is_checked_before_any_filter(tmp_path):
    """The largest id has a low rating and one row: the filter and the core would remove it."""
    rows = log(first_item=1)
    rows = [row for row in rows if row[1] != ITEMS] + [(0, ITEMS, 1.0, 7)]
    write(tmp_path, rows)
    assert "ids start at 1" in complaint(load_sequences, tmp_path, min_rating=3)


def test_user_ids_from_1_are_named_as_such(tmp_path):
    write(tmp_path, [(u + 1, i, r, t) for u, i, r, t in log()])
    assert "userID goes from 1 to 10: ids start at 1" in complaint(load, tmp_path)


@pytest.mark.parametrize("function", LOADERS)
@pytest.mark.parametrize("column", [0, 1])
def test_one_huge_id_is_refused_with_its_line(tmp_path, function, column):
    rows = [list(row) for row in log()]
    rows[4][column] = 2**31 - 1
    write(tmp_path, rows)
    for options in [{}, {"allow_unused": True}] if function is load else [{}]:
        message = complaint(function, tmp_path, **options)
        assert "line 6: " in message
        assert "2147483647" in message
        assert "allow_unused" not in message


@pytest.mark.parametrize("function", LOADERS)
def test_every_input_file_has_its_digest(tmp_path, function):
    write(tmp_path, log())
    expected = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("toy.inter", "text_feat.npy")
    }
    assert function("toy", tmp_path).sources == expected
    write(tmp_path, log(), np.ones((ITEMS, 3)))
    changed = function("toy", tmp_path).sources
    assert changed["toy.inter"] == expected["toy.inter"]
    assert changed["text_feat.npy"] != expected["text_feat.npy"]


def test_equal_rows_count_once():
    rows = pd.DataFrame({"user": 0, "item": [5, 6, 5, 6, 7], "time": [1, 2, 1, 2, 3]})
    assert drop_repeated_rows(rows)["item"].tolist() == [5, 6, 7]
    for duplicates in ("drop", "keep"):
        assert ordered_rows("toy", rows, duplicates)["item"].tolist() == [5, 6, 7]
    again = rows.assign(time=[1, 2, 3, 4, 5])  # the same items taken again are no doubled log
    assert ordered_rows("toy", again, "drop")["item"].tolist() == [5, 6, 5, 6, 7]


@pytest.mark.parametrize("function", LOADERS)
def test_features_beyond_float32_are_named(tmp_path, function):
    table = np.ones((ITEMS, 3))
    table[5, 2] = 1e300
    write(tmp_path, log(), table)
    message = complaint(function, tmp_path)
    assert "text_feat.npy: row 5 (counted from 0) holds 1e+300 in column 2" in message


@pytest.mark.parametrize("option", ["quantile", "val_fraction", "min_rating"])
def test_nan_in_an_option_is_refused_as_nan(tmp_path, option):
    write(tmp_path, log())
    assert f"data.{option}=nan" in complaint(load_sequences, tmp_path, **{option: float("nan")})


def test_distinct_rows_are_counted_over_all_modes(monkeypatch):
    monkeypatch.setattr(content, "_CHUNK", 4)
    text = np.array([[0.0, 1], [-0.0, 1], [0, 1], [0, -1]], np.float32)
    image = np.array([[1.0], [1], [2], [1]])
    assert content.distinct_rows({"text": text}) == 2
    assert content.distinct_rows({"text": text, "image": image}) == 3


def test_features_that_say_nothing_are_named():
    good = np.arange(6.0).reshape(3, 2)
    tables = {"zero": 0 * good, "same": 0 * good + 3, "half": good * [1, 0], "good": good}
    lines = content.describe_degenerate(tables)
    assert [line.split(":")[0] for line in lines] == [
        "content mode zero",
        "content mode same",
        "content mode half",
    ]
    assert "every feature is zero" in lines[0]
    assert "all rows are equal" in lines[1]
    assert "1 of 2 columns are constant (1, counted from 0)" in lines[2]


def test_a_split_that_declares_gigabytes_is_refused_unread(tmp_path):
    write(tmp_path, log())
    path = tmp_path / "split.npz"
    np.savez_compressed(path, warm_train=np.zeros((4_000_000, 2), np.int64))
    assert "split.npz: declares 64000" in complaint(load, tmp_path, split_file=path)


@pytest.mark.parametrize("option", ["per_user", "popularity", "sharpness", "nuisance"])
def test_nan_in_an_option_of_generated_data_is_refused(option):
    with pytest.raises(DataError, match=f"{option}=nan: must be a finite number"):
        load("synthetic", synthetic_options={option: float("nan")})
