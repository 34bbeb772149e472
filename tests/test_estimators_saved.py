"""Saved models that somebody changed are refused in one line, whatever was changed."""

import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load, save

import jaxcold
from jaxcold.estimators.sasrec import SASRec
from jaxcold.estimators.semco import SEMCo
from jaxcold.estimators.vectors import Vectors
from jaxcold.types import Csr, DataError

LOG = pd.DataFrame(
    [(f"u{u}", (u + t) % 8, t) for u in range(12) for t in range(4)],
    columns=["user", "item", "time"],
)
TEXT = pd.DataFrame(np.random.default_rng(0).normal(size=(10, 5)), columns=list("abcde"))
KINDS = ["semco", "sasrec", "vectors"]


@pytest.fixture(scope="module")
def models():
    sizes = {"epochs": 1, "batch_size": 16, "val_fraction": 0, "progress": False}
    ids = pd.Index([1, 2, 3])
    rows = np.eye(3, dtype=np.float32)
    seen = Csr(np.array([0, 1, 1, 3]), np.array([2, 0, 1], np.int32))
    return {
        "semco": SEMCo.fit(LOG, {"text": TEXT}, hidden=4, out=3, **sizes),
        "sasrec": SASRec.fit(LOG, TEXT, blocks=1, dropout=0.0, max_length=4, **sizes),
        "vectors": Vectors(ids, ids, rows, rows, seen, {}),
    }


def edit(folder, change, name="arrays.safetensors"):
    """Rewrites a file, and model.json so that size and hash agree."""
    path = folder / "model.json"
    meta = json.loads(path.read_text())
    file = folder / meta["files"][name]["file"]
    data = change(file.read_bytes())
    file.write_bytes(data)
    meta["files"][name] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(meta))


def edit_meta(folder, change):
    path = folder / "model.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def refuses(folder, message):
    with pytest.raises(DataError, match=message) as error:
        jaxcold.load(folder)
    assert "\n" not in str(error.value)


@pytest.fixture
def saved(models, tmp_path):
    def write(kind):
        models[kind].save(tmp_path / kind)
        return tmp_path / kind

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_reads_to_the_same_bits(models, saved, kind):
    loaded = jaxcold.load(saved(kind))
    np.testing.assert_array_equal(loaded.item, models[kind].item)
    if kind != "vectors":
        assert loaded.columns == models[kind].columns
        swapped = TEXT[list("edcba")]
        given = {"text": swapped} if kind == "semco" else swapped
        np.testing.assert_array_equal(loaded.embed(given), models[kind].embed(given))


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_is_checked(saved, kind):
    folder = saved(kind)
    meta = (folder / "model.json").read_bytes()
    file = folder / json.loads(meta)["files"]["arrays.safetensors"]["file"]
    original = file.read_bytes()
    for name, array in load(original).items():
        changes = {
            "absent": None,
            "cut": np.ascontiguousarray(array[..., :-1]),
            "dtype": array.astype(np.float16),
        }
        if array.dtype.kind == "f":
            changes["nan"] = np.full_like(array, np.nan)
        if name.endswith(("indptr", "indices")):
            changes["negative"] = array - 1
            changes["beyond"] = array + 1000
        for changed in changes.values():
            arrays = {**load(original), name: changed}
            arrays = {key: value for key, value in arrays.items() if value is not None}
            edit(folder, lambda _, arrays=arrays: save(arrays))
            refuses(folder, "does not hold a whole recommender")
            file.write_bytes(original)
            (folder / "model.json").write_bytes(meta)
    edit(folder, lambda data: save({**load(data), "more": np.zeros(1, np.float32)}))
    refuses(folder, "array 'more' is unknown")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ids", [[], {}, "x", {"items": [1], "users": [1]}, {"items": "abc", "users": "abc"}]
)
def test_ids_are_checked(saved, kind, ids):
    folder = saved(kind)
    edit(folder, lambda _: json.dumps(ids).encode(), "ids.json")
    refuses(folder, "does not hold a whole recommender")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["/dev/zero", "../x", "arrays-0/../../x", 3, None, "model.json"])
def test_a_file_outside_the_folder_is_never_read(saved, kind, file):
    folder = saved(kind)
    edit_meta(folder, lambda meta: meta["files"]["arrays.safetensors"].update(file=file))
    refuses(folder, "which is not a file of this folder")


@pytest.mark.parametrize("special", ["link", "pipe", "longer"])
def test_links_pipes_and_longer_files_are_refused_unread(saved, special):
    folder = saved("vectors")
    meta = json.loads((folder / "model.json").read_text())
    file = folder / meta["files"]["arrays.safetensors"]["file"]
    if special == "longer":
        os.truncate(file, 10**11)  # a sparse file: reading it would end the process
        refuses(folder, r"it has 100000000000 bytes, model.json says \d+")
        return
    file.unlink()
    if special == "link":
        file.symlink_to("/dev/zero")
    else:
        os.mkfifo(file)
    refuses(folder, "is a link" if special == "link" else "is not a regular file")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": 3}', "[]", "3", "null", '{"format": 3, "files": 3}', "\x00"],
)
def test_a_model_json_of_anything_is_one_line(saved, text):
    folder = saved("vectors")
    (folder / "model.json").write_text(text)
    refuses(folder, "is damaged or not of jaxcold|kind 'semco'|does not hold")


def test_other_versions_and_a_huge_model_json(saved):
    folder = saved("vectors")
    edit_meta(folder, lambda meta: meta.update(format=1))
    refuses(folder, "has format 1, this version of jaxcold reads 3")
    os.truncate(folder / "model.json", 10**11)
    refuses(folder, "more than a model.json has")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("semco", "modes", [{"name": "text", "width": 4, "columns": None}]),
        ("semco", "modes", 3),
        ("semco", "modes", [{"name": "text", "width": 5, "columns": ["a"]}]),
        ("sasrec", "modes", [{"name": "", "width": 6, "columns": None}]),
        ("sasrec", "modes", [{"name": "", "width": 5, "columns": ["a", "a", "b", "c", "d"]}]),
        ("sasrec", "history", [{"epoch": "1"}]),
        ("semco", "history", 3),
        ("sasrec", "options", {"dim": 5, "max_length": 4, "blocks": 10**9, "heads": 1}),
        ("sasrec", "options", {"dim": 5, "max_length": 10**9, "blocks": 1, "heads": 1}),
        ("sasrec", "options", 3),
        ("vectors", "options", None),
    ],
)
def test_a_model_json_that_does_not_fit_the_arrays(saved, kind, key, value):
    folder = saved(kind)
    edit_meta(folder, lambda meta: meta.update({key: value}))
    refuses(folder, "does not hold a whole recommender")
