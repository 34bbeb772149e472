"""Columns of text become features of a data set, by the built-in encoder and by a model."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_main import ROOT

from experiments.encode_text import _default_prefix, encode_cached, encode_text
from experiments.import_data import import_data
from jaxcold.data.text import fit_text
from jaxcold.types import DataError

ITEMS = pd.DataFrame(
    {"sku": ["b", "a", "c"], "title": ["red shoe", "blue hat", None], "size": [1, 2, 3]}
)


class Fake:
    """Counts what it is asked, and stops after so many batches."""

    def __init__(self, batches=10**9):
        self.asked, self.batches = [], batches

    def encode(self, texts, batch_size):
        assert len(texts) <= batch_size
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        self.asked += texts
        return np.array([[len(text), len(text.split())] for text in texts], np.float64)


@pytest.fixture
def items(tmp_path):
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    return tmp_path / "items.csv"


def test_the_rows_are_those_of_an_imported_data_set(items, tmp_path):
    clicks = pd.DataFrame({"user": [1, 1, 2, 2], "sku": ["a", "b", "b", "a"]})
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    ITEMS.drop(columns="size").to_csv(items, index=False)
    lines = import_data(tmp_path / "clicks.csv", items, tmp_path / "shop", item="sku")
    assert "no features: encode a column by experiments.encode_text into --out" in lines
    assert not list((tmp_path / "shop").glob("*.npy"))
    lines = encode_text(items, tmp_path / "shop", column="title", item="sku")
    assert lines == [f"{tmp_path}/shop/text_feat.npy: 2 items, 2 features of title"]
    got = np.load(tmp_path / "shop" / "text_feat.npy")
    np.testing.assert_array_equal(got, fit_text(ITEMS["title"])(["blue hat", "red shoe"]))


def test_without_an_import_ids_are_rows(items, tmp_path):
    ITEMS.assign(sku=[1, 0, 2]).to_csv(items, index=False)
    lines = encode_text(
        items,
        tmp_path / "out",
        column="title",
        item="sku",
        encoder=Fake(),
        cache=tmp_path,
        mode="a",
    )
    assert len(lines) == 2
    assert lines[1] == "1 items have no known word, and rows of zeros"
    got = np.load(tmp_path / "out" / "a_feat.npy")
    np.testing.assert_array_equal(got, np.float32([[8, 2], [8, 2], [0, 0]]))
    assert got.dtype == np.float32


def test_each_text_is_encoded_once_whatever_interrupts(tmp_path):
    texts = [f"{'word ' * (i % 7)}{i}" for i in range(2000)] + ["0", "7", "14"]
    stopped = Fake(batches=20)
    with pytest.raises(KeyboardInterrupt):
        encode_cached(stopped, texts, tmp_path, batch_size=64)
    assert len(stopped.asked) == 20 * 64
    goes_on = Fake()
    rows = encode_cached(goes_on, texts, tmp_path, batch_size=64)
    assert len(goes_on.asked) == 2000 - 1024  # the first file of the cache was written
    np.testing.assert_array_equal(rows, Fake().encode(texts, len(texts)))
    again = Fake()
    np.testing.assert_array_equal(encode_cached(again, [*texts, "new"], tmp_path)[:-1], rows)
    assert again.asked == ["new"]
    damaged = sorted(tmp_path.glob("*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    np.testing.assert_array_equal(encode_cached(Fake(), texts, tmp_path), rows)


def test_texts_have_the_prefix_that_the_model_expects(items, tmp_path):
    names = {"intfloat/e5-small-v2": "query: ", "/models/multilingual-e5-base": "query: "}
    names |= {"all-MiniLM-L6-v2": "", "some/type5-e55": ""}
    assert {name: _default_prefix(name) for name in names} == names
    ITEMS.assign(sku=range(3)).to_csv(items, index=False)
    for model, prefix, first in (
        ("e5", None, "query: "),
        ("e5", "", ""),
        ("x", "passage: ", "pass"),
    ):
        fake = Fake()
        encode_text(
            items,
            tmp_path / "out",
            column="title",
            item="sku",
            model=model,
            prefix=prefix,
            encoder=fake,
            cache=tmp_path / f"{model}{first}",
            overwrite=True,
        )
        assert fake.asked[0].startswith(f"{first}")
        assert fake.asked[0].endswith("red shoe") or fake.asked[0].endswith("blue hat")


def test_bad_input_ends_in_one_line_and_writes_nothing(items, tmp_path):
    out = tmp_path / "out"
    for changes, message in (
        ({"column": "name"}, "items.csv: has no column name; it has sku, title"),
        ({"column": "size"}, "column size: texts: row 0 .* is 1, not text"),
        ({"mode": "a/b"}, "--mode=a/b: must be a word"),
        ({"item": "title"}, "row 3: title is empty"),
        ({}, "has no row for sku 0; number the items 0, 1, ..."),
    ):
        with pytest.raises(DataError, match=message):
            encode_text(items, out, **{"column": "title", "item": "sku", **changes})
    ITEMS.assign(sku=[0, 1, 1]).to_csv(items, index=False)
    with pytest.raises(DataError, match="row 3: sku 1 is there already"):
        encode_text(items, out, column="title", item="sku")
    assert not out.exists()
    ITEMS.assign(sku=range(3)).to_csv(items, index=False)
    fake = Fake()
    fake.encode = lambda texts, batch_size: np.full((len(texts), 2), np.nan)
    with pytest.raises(DataError, match="name a model that gives one vector per text"):
        encode_text(items, out, column="title", item="sku", encoder=fake, cache=tmp_path / "c")
    assert not list(tmp_path.glob("c/**/*.npz"))
    encode_text(items, out, column="title", item="sku")
    with pytest.raises(DataError, match=r"text_feat.npy: is there already; pass --overwrite"):
        encode_text(items, out, column="title", item="sku")


def test_the_command(items, tmp_path):
    ITEMS.assign(sku=range(3)).to_csv(items, index=False)

    def run(*flags):
        command = [sys.executable, "-m", "experiments.encode_text", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(str(items), "--item=sku", "--column=title", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "3 items, 2 features of title" in done.stdout
    wrong = run(str(items), "--column=name", "--item=sku", f"--out={tmp_path}/b")
    assert wrong.returncode == 2
    assert wrong.stderr == f"error: {items}: has no column name; it has sku, title, size\n"
