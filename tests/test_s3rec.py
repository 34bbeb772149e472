"""The text files published with S3-Rec: read, recognised, and checked by hash."""

import hashlib

import numpy as np
import pytest

from experiments import beauty, sports, toys
from experiments import config as configs
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sources import s3rec
from jaxcold.types import DataError

LINES = ["1 1 2 3 4", "2 5 4 3", "3 2 1 5 1 4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small file under the name of the published one, and its hash in the place of that one's."""
    text = "\n".join(LINES) + "\n"
    (tmp_path / "Toys_and_Games.txt").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    files = {**s3rec.FILES, "amazon-toys": ("Toys_and_Games.txt", digest)}
    monkeypatch.setattr(s3rec, "FILES", files)
    return tmp_path


def test_a_line_is_a_user_and_items_from_one(folder):
    rows = s3rec.read("amazon-toys", folder)
    assert rows["user"].tolist() == [0] * 4 + [1] * 3 + [2] * 5
    assert rows["item"].tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 4, 0, 3]
    assert rows["time"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]


def test_the_loader_recognises_the_file(folder):
    split = load_sequences("amazon-toys", folder, protocol="leave_one_out")
    assert split.content is None  # none is published
    assert split.statistics["interactions"] == 12
    assert split.item_ids[split.test.target].tolist() == [3, 2, 3]
    assert set(split.sources) == {"Toys_and_Games.txt"}
    np.save(folder / "text_feat.npy", np.eye(5, dtype=np.float32))
    split = load_sequences("amazon-toys", folder, protocol="leave_one_out")
    np.testing.assert_array_equal(split.content, np.eye(5)[split.item_ids])
    with pytest.raises(DataError, match="no clock for a boundary in time"):
        load_sequences("amazon-toys", folder)
    # A table in the common layout comes first.
    rows = [f"{u}\t{i}\t1\t{i}" for u in range(4) for i in range(5)]
    header = "userID\titemID\trating\ttimestamp"
    (folder / "amazon-toys.inter").write_text("\n".join([header, *rows]) + "\n")
    split = load_sequences("amazon-toys", folder, protocol="leave_one_out")
    assert set(split.sources) == {"amazon-toys.inter", "text_feat.npy"}


def test_another_file_is_refused(folder):
    (folder / "Toys_and_Games.txt").write_text("1 1 2 3\n")
    with pytest.raises(DataError, match=r"Toys_and_Games\.txt"):
        load_sequences("amazon-toys", folder, protocol="leave_one_out")


def test_a_name_without_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="amazon-books is none of amazon-beauty, amazon-sports"):
        load_sequences("amazon-books", tmp_path, layout="s3rec", protocol="leave_one_out")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("4 0 2", "line 4: is not a user and items, ids from 1"),
        ("4", "line 4: is not a user and items"),
        ("", "line 4: is not a user and items"),
        ("4 x 2", "line 4: is not whole numbers"),
        (f"4 {2**31} 2", "line 4: is not a user and items"),
        (f"4 {10**30} 2", "line 4: is not whole numbers"),
    ],
)
def test_a_bad_line_is_named(line, said, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("\n".join([*LINES, line]) + "\n")
    with pytest.raises(DataError, match=said) as error:
        s3rec.parse(path)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "rows.txt").write_text("")
    with pytest.raises(DataError, match=r"rows\.txt: is empty; delete the file"):
        s3rec.parse(tmp_path / "rows.txt")


@pytest.mark.parametrize("module", [sports, toys])
def test_the_configs_take_the_benchmark_recipe(module):
    resolved = configs.resolve(module.get_config())
    assert resolved.data.protocol == "leave_one_out"
    assert (resolved.data.n_core, resolved.data.cold_fraction) == (1, 0.0)
    assert resolved.data.consecutive_duplicates == "keep"
    ours = configs.resolve(beauty.get_config("sasrec"))
    assert (ours.data.n_core, ours.data.cold_fraction) == (3, 0.15)
    ours = beauty.get_config("sasrec")
    ours.data.protocol = "leave_one_out"
    ours = configs.resolve(ours)
    for field in ("model", "train"):
        assert ours[field].to_dict() == resolved[field].to_dict()
    gated = configs.resolve(module.get_config("esasrec"))
    assert gated.model.layers == "ligr"
    assert gated.model.dim == resolved.model.dim
