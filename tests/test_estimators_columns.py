"""Raw columns of a catalogue: what each becomes, what is saved, and what new items are made of."""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from safetensors.numpy import load, save
from test_estimators_saved import edit, edit_meta, refuses

import jaxcold
from jaxcold.data.content import unit_rows
from jaxcold.estimators.columns import fit_columns
from jaxcold.types import DataError

LOG = pd.DataFrame(
    [(f"u{u}", (u + t) % 8, t) for u in range(12) for t in range(4)],
    columns=["user", "item", "time"],
)
WORDS = ["shoe", "hat", "hose", "chair", "bag"]
ITEMS = pd.DataFrame(
    {
        "item": range(10),
        "title": [f"{c} {t}" for c in ("red", "blue") for t in WORDS],
        "genre": ["a|b", "a", "b", "b|a", "c", "c", "a|c", None, "b", "a"],
        "year": [1990, 1991, None, 1993, 1990, 1995, 1996, 1990, 1998, 1999],
        "url": [f"https://shop/{i}" for i in range(10)],
        "same": ["x"] * 10,
    }
)
NEW = pd.DataFrame(
    {"item": [77, 78], "title": ["red shoes and a red hat", "?"], "genre": ["z", "b"]}
).assign(year=[1992.0, None])
SIZES = {"epochs": 1, "batch_size": 16, "val_fraction": 0, "progress": False}
KINDS = ["linear", "semco", "sasrec"]


def fit(kind, content=ITEMS, **changes):
    if kind == "linear":
        return jaxcold.Linear.fit(LOG, content, l2=1.0, **{"progress": False, **changes})
    if kind == "semco":
        return jaxcold.SEMCo.fit(LOG, content, hidden=4, out=3, **{**SIZES, **changes})
    small = {"blocks": 1, "dropout": 0.0, "max_length": 4, "dim": 4}
    return jaxcold.SASRec.fit(LOG, content, **{**SIZES, **small, **changes})


@pytest.fixture(scope="module")
def models():
    return {kind: fit(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(request, models):
    return models[request.param]


def test_every_column_is_decided_and_said_once(capsys):
    model = fit("linear", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == model.described_columns
    assert lines == [
        "content: title: text, 17 terms in 10 numbers; no items without a word",
        "content: genre: category, 3 values; 1 gap",
        "content: year: number, standardised; 1 gap",
        "content: url: ignore, it holds web addresses",
        "content: same: ignore, it holds one value",
    ]
    assert model.widths == {"title": 10, "genre": 3, "numbers": 2}


def test_the_user_decides_otherwise():
    kinds = {"title": "category", "year": "text", "genre": "ignore"}
    model = fit("linear", columns=kinds)
    assert model.widths == {"title": 10, "year": 7}
    numbers = ITEMS[["item", "year"]].assign(size=range(10))
    features = fit("linear", numbers.fillna(0), standardize=False)
    assert features.widths == {"": 2}  # as they are
    assert fit("linear", numbers, columns={"size": "category"}).widths == {"size": 10, "numbers": 2}
    text_numbers = ITEMS.assign(year=ITEMS["year"].astype(str).replace("nan", ""))
    told = fit("linear", text_numbers, columns={"year": "number"})
    np.testing.assert_array_equal(told.item, fit("linear").item)
    dates = ITEMS.assign(year=pd.to_datetime("2020-01-01") + pd.to_timedelta(range(10), "D"))
    assert fit("linear", dates).described_columns[2] == (
        "content: year: number, standardised; no gaps"
    )


def test_the_modes_are_what_they_say():
    frame = ITEMS.set_index("item")
    raw = fit_columns("", frame, {}, joined=False)
    tables = {mode: encoded.table for mode, encoded in raw.encode("", frame).items()}
    genre = np.array([[c in g.split("|") for c in "abc"] for g in ITEMS["genre"].fillna("")], float)
    genre[7] = np.nan  # lacks the mode
    np.testing.assert_array_equal(tables["genre"], genre)
    year = ITEMS["year"]
    scaled = ((year - year.mean()) / year.std(ddof=0)).fillna(0)
    numbers = np.stack([scaled, np.ones(10)], 1)
    numbers[2] = np.nan  # the only number is a gap
    np.testing.assert_allclose(tables["numbers"], numbers, atol=1e-6)
    two = frame.assign(more=range(10))
    gap = fit_columns("", two, {}, joined=False).encode("", two)["numbers"].table[2]
    np.testing.assert_allclose(gap, [0, -2.5 / np.std(range(10)), 1], atol=1e-6)
    assert tables["title"].shape == (10, 10)
    joined = fit_columns("", frame, {}, joined=True).encode("", frame)[""].table
    parts = [unit_rows(np.nan_to_num(table)) for table in tables.values()]
    np.testing.assert_allclose(joined, np.concatenate(parts, axis=1), atol=1e-6)


def test_new_items_are_given_by_the_same_columns(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = model.embed(NEW)
        alone = np.concatenate([model.embed(NEW[:1]), model.embed(NEW[1:])])
    np.testing.assert_array_equal(rows, alone)
    added = model.add_items(NEW["item"], NEW.iloc[::-1])  # in another order
    np.testing.assert_array_equal(added.item[-2:], rows)
    assert added.cold_items.tolist()[-2:] == [77, 78]
    same = model.similar_items(content=ITEMS[8:9], k=1)  # cold, so its vector is its content's
    assert same[["item", "similar"]].to_numpy().tolist() == [[8, 8]]
    moved = model.update_items([8], ITEMS[9:].assign(item=8))
    np.testing.assert_array_equal(moved.item[8], model.item[9])
    with_more = NEW.assign(other="column", same="x")
    np.testing.assert_array_equal(model.embed(with_more), rows)


def test_an_item_of_which_nothing_is_known_is_named(model):
    nothing = pd.DataFrame({"item": [5], "title": ["?"], "genre": [None], "year": [np.nan]})
    with pytest.warns(UserWarning, match="item 5 is without a word, category or number"):
        assert np.isfinite(model.embed(nothing)).all()
    with pytest.raises(DataError, match="item 5 is without content in any mode"):
        fit("linear", pd.concat([ITEMS.drop(5), nothing]))


def test_a_saved_model_encodes_to_the_same_bits(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = jaxcold.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.embed(NEW), model.embed(NEW))
    assert loaded.described_columns == model.described_columns
    loaded.save(tmp_path / "again")
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("model", "again")
    ]
    assert files[0] == files[1]


def test_the_parts_of_a_score_sum_to_it():
    log = LOG.assign(weight=1.0 + LOG["time"])
    weighted = jaxcold.Linear.fit(log, ITEMS, l2=1.0, weight="weight", progress=False)
    linear = fit("linear")
    for model in (linear, weighted):
        lists = model.recommend(["u3"], 20)
        for item, score in zip(lists["item"], lists["score"], strict=True):
            parts = model.explain("u3", item)
            np.testing.assert_allclose(parts["part"].sum(), score, atol=1e-6)
            assert sorted(parts["item"]) == [3, 4, 5, 6]
            assert parts["part"].is_monotonic_decreasing
    parts = linear.explain("ann", 9, history=[1, 2])
    (score,) = linear.recommend({"ann": [1, 2]}, candidates=[9])["score"]
    np.testing.assert_allclose(parts["part"].sum(), score, atol=1e-6)
    with pytest.raises(DataError, match="item 77 is unknown"):
        weighted.explain("u3", 77)
    with pytest.raises(DataError, match="user 'ann' is without history: nothing to explain"):
        weighted.explain("ann", 9, history=[])


def test_a_sequence_has_no_parts(models):
    with pytest.raises(ValueError, match="a model of sequences has no parts"):
        models["sasrec"].explain("u3", 9)


@pytest.mark.parametrize("convert", [pa.Table.from_pandas, lambda x: x.set_index("item")])
def test_arrow_tables_and_frames_with_an_index(models, convert):
    model = fit("linear", convert(ITEMS))
    np.testing.assert_array_equal(model.item, models["linear"].item)
    np.testing.assert_array_equal(model.embed(convert(NEW)), models["linear"].embed(NEW))


def test_raw_columns_beside_arrays():
    image = pd.DataFrame(np.eye(10, 4, dtype=np.float32) + 0.1)
    model = fit("semco", {"image": image, "text": ITEMS[["item", "title", "year"]]})
    assert model.widths == {"image": 4, "text/title": 10, "text/numbers": 2}
    assert model.embed({"text": ITEMS[:2], "image": image[:2]}).shape == (2, 3)
    with pytest.raises(DataError, match=r"content\['text'\] is absent; give a frame with title, y"):
        model.embed({"image": image})


def test_training_goes_on_with_raw_columns(models):
    for kind in ("semco", "sasrec"):
        items = pd.concat([ITEMS, NEW])
        more = models[kind].partial_fit(LOG.assign(item=7), items, progress=False)
        assert more.items.tolist() == [*range(10), 77, 78]


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (ITEMS, {"columns": {"titel": "text"}}, "no column 'titel'; did you mean 'title'"),
        (ITEMS, {"columns": {"title": "txt"}}, "'title' is one of text, category, number, ignore"),
        (ITEMS, {"columns": {"title": "number"}}, "'title': row 0 .* is 'red shoe', not a finite"),
        (ITEMS.replace(1990, np.inf), {}, "column 'year': row 0 .* is inf, not a finite number"),
        (ITEMS.assign(genre=[["a"]] * 10), {}, r"column 'genre': row 0 .*is \['a'\], not text; m"),
        (ITEMS[["item", "url"]], {}, "no column is content; name one"),
        (ITEMS.rename(columns={"title": "numbers"}), {}, "two modes would be named alike"),
        (ITEMS.set_axis([*[*ITEMS][:2], "title", *[*ITEMS][3:]], axis=1), {}, "title.*twice"),
        (ITEMS.assign(title="?!"), {"columns": {"title": "text"}}, "'title' holds no word"),
        (np.ones((10, 2)), {"columns": {"title": "text"}, "items": range(10)}, "no column 'title'"),
    ],
)
def test_bad_columns_are_named(content, changes, message):
    with pytest.raises((DataError, ValueError), match=message):
        fit("linear", content, **changes)


def test_bad_new_items_are_named(models):
    model = models["linear"]
    with pytest.raises(DataError, match="column 'genre' is absent; the model was fitted on the co"):
        model.embed(NEW.drop(columns="genre"))
    with pytest.raises(DataError, match="content is a frame with the columns title, genre, year"):
        model.embed(np.ones((1, 15)))
    with pytest.raises(DataError, match="content is absent; give a frame with title, genre, year"):
        model.embed({"title": NEW})
    with pytest.raises(DataError, match=r"column 'year': row 0 .* is 'x', not a finite number"):
        model.embed(NEW.assign(year="x"))


@pytest.fixture
def folder(models, tmp_path):
    models["linear"].save(tmp_path / "model")
    return tmp_path / "model"


def test_every_array_of_raw_columns_is_checked(folder):
    meta = (folder / "model.json").read_bytes()
    file = folder / json.loads(meta)["files"]["arrays.safetensors"]["file"]
    original = file.read_bytes()
    arrays = load(original)
    names = [name for name in arrays if name.startswith("raw/")]
    assert len(names) == 5
    for name in names:
        array = arrays[name]
        changes = [None, array.astype(np.int16), array[None], array[:0]]
        changes += [array[..., :-1].copy()] * (not name.endswith("terms"))
        changes += [np.full_like(array, np.nan)] if array.dtype.kind == "f" else []
        changes += [np.full_like(array, 255), np.full_like(array, 10)] * name.endswith("terms")
        for changed in changes:
            given = {**arrays, name: changed}
            given = {key: np.asarray(x) for key, x in given.items() if x is not None}
            edit(folder, lambda _, given=given: save(given))
            refuses(folder, "does not hold a whole recommender")
            file.write_bytes(original)
            (folder / "model.json").write_bytes(meta)


def column(**changes):
    def change(meta):
        meta["raw"][0]["columns"][1].update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(raw=3),
        lambda meta: meta.update(raw=[3]),
        lambda meta: meta.update(raw=[]),
        lambda meta: meta.update(raw=meta["raw"] * 2),
        lambda meta: meta["raw"][0].update(mode=3),
        lambda meta: meta["raw"][0].update(joined=1),
        lambda meta: meta["raw"][0].update(joined=True),
        lambda meta: meta["raw"][0].update(columns={}),
        lambda meta: meta["raw"][0]["columns"].pop(0),
        lambda meta: meta["raw"][0]["columns"].append(meta["raw"][0]["columns"][1]),
        column(name=None),
        column(name="title"),
        column(kind="number"),
        column(kind="pickle"),
        column(kind=["text"]),
        column(note=3),
        column(values=["a", "b"]),
        column(values=["a", "a", "b"]),
        column(values="abc"),
        column(values=[1, 2, 3]),
    ],
)
def test_a_model_json_whose_columns_do_not_fit(folder, change):
    edit_meta(folder, change)
    refuses(folder, "does not hold a whole recommender")
