"""The estimator face: what an engineer with a catalogue and a click log relies on."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import jaxcold
from jaxcold.data import synthetic
from jaxcold.estimators import artifact
from jaxcold.estimators.semco import SEMCo
from jaxcold.models import semco
from jaxcold.train.step import init_state
from jaxcold.types import DataError

GROUPS, USERS, WARM, COLD = 4, 40, 48, 16


def frames(name=str):
    """Users of four tastes, items of four kinds; only the content of a cold item tells its kind.

    Nuisance directions of large variance are what raw content is mostly made of.
    """
    rng = np.random.default_rng(0)
    kind = np.arange(WARM + COLD) % GROUPS
    taste = np.arange(USERS) % GROUPS
    pairs = [
        (f"u{user}", name(item))
        for user in range(USERS)
        for item in rng.choice(np.flatnonzero(kind[:WARM] == taste[user]), 6, replace=False)
    ]
    log = pd.DataFrame(pairs, columns=["user", "item"])
    ids = [name(item) for item in range(WARM + COLD)]
    noise = 2 * rng.normal(size=(len(ids), 8))
    text = np.hstack([np.eye(GROUPS)[kind], noise]).astype(np.float32)
    image = rng.normal(size=(len(ids), 5)).astype(np.float32)
    content = {
        "text": pd.DataFrame(text, index=ids),
        "image": pd.DataFrame(image, index=ids),
    }
    return log, content, kind


def fit(log, content, **options):
    options = {"epochs": 30, "batch_size": 64, "learning_rate": 0.01, "hidden": 16, "out": 8} | {
        "val_fraction": 0,
        **options,
    }
    return SEMCo.fit(log, content, progress=False, **options)


def name(item):
    return f"item-{item:02d}"


@pytest.fixture(scope="module")
def model():
    log, content, _ = frames(name)
    return fit(log, content)


@pytest.fixture(scope="module")
def quick():
    """Whole-number ids, hardly trained."""
    log, content, _ = frames(lambda item: 1000 + int(item))
    return fit(log, content, epochs=1, alpha=1.0)


def same(a: SEMCo, b: SEMCo, content) -> None:
    np.testing.assert_array_equal(a.item, b.item)
    np.testing.assert_array_equal(a.embed(content), b.embed(content))
    pd.testing.assert_frame_equal(a.recommend(k=5), b.recommend(k=5))
    assert a.users.equals(b.users)
    assert a.items.equals(b.items)
    assert a.options == b.options


def test_cold_items_of_the_right_kind_come_first(model):
    kind = frames()[2]
    found = model.recommend(candidates="cold", k=COLD // GROUPS)
    assert set(found["item"]) <= set(model.cold_items)
    assert len(model.cold_items) == COLD
    asked = found["user"].str[1:].astype(int) % GROUPS
    got = kind[found["item"].str[5:].astype(int)]
    assert (asked.to_numpy() == got).mean() > 0.8  # chance: 1/4


def test_recommendations_are_ranked_lists_without_what_was_taken(model):
    log = frames(name)[0]
    found = model.recommend(["u3", "u1"], k=7)
    assert found["user"].tolist() == ["u3"] * 7 + ["u1"] * 7
    assert found["rank"].tolist() == [*range(1, 8)] * 2
    for user, rows in found.groupby("user"):
        assert rows["score"].is_monotonic_decreasing
        assert not set(rows["item"]) & set(log["item"][log["user"] == user])
    taken = set(log["item"][log["user"] == "u3"])
    every = model.recommend(["u3"], k=500, exclude_seen=False)
    assert set(every["item"]) == set(model.items)
    assert len(model.recommend(["u3"], k=500)) == len(model.items) - len(taken)
    some = ["item-60", "item-02", "item-50"]
    assert set(model.recommend(["u3"], candidates=some, exclude_seen=False)["item"]) == set(some)


def test_scores_are_cosines_of_the_representations(model):
    user, item = model.representations()
    found = model.recommend(["u5"], k=4, exclude_seen=False)
    cosine_of = item @ user[model.users.get_loc("u5")]
    np.testing.assert_allclose(found["score"], np.sort(cosine_of)[::-1][:4], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(user, axis=1), 1, atol=1e-5)


def test_an_unseen_user_with_the_same_history_gets_the_same_list(model):
    log = frames(name)[0]
    taken = log["item"][log["user"] == "u7"].tolist()
    known = model.recommend(["u7"], k=6)
    # Neither order nor repetition counts.
    fresh = model.recommend(histories={("visit", 1): [*taken[::-1], taken[0]]}, k=6)
    pd.testing.assert_frame_equal(known.drop(columns="user"), fresh.drop(columns="user"))
    assert fresh["user"].tolist() == [("visit", 1)] * 6
    assert model.recommend(histories=[taken, taken[:1]], k=1)["user"].tolist() == [0, 1]
    assert not len(model.recommend(histories={}))


def test_a_lone_item_gets_the_bits_that_it_has_in_the_catalogue(model):
    content = frames(name)[1]
    for row in (0, 17, WARM + COLD - 1):
        alone = {mode: frame.to_numpy()[row : row + 1] for mode, frame in content.items()}
        np.testing.assert_array_equal(model.embed(alone)[0], model.item[row])
    backwards = {mode: frame[::-1] for mode, frame in content.items()}
    np.testing.assert_array_equal(model.embed(backwards), model.item[::-1])


def test_added_items_are_cold_and_leave_the_old_recommender_alone(model):
    content = frames(name)[1]
    twin = {
        mode: frame.loc[["item-05"]].rename({"item-05": "new"}) for mode, frame in content.items()
    }
    more = model.add_items(["new"], twin)
    np.testing.assert_array_equal(more.item[-1], model.item[5])
    assert more.cold_items[-1] == "new"
    assert "new" not in model.items
    alike = more.recommend(histories={"": ["item-05"]}, k=1)
    assert alike["item"].tolist() == ["new"]
    pd.testing.assert_frame_equal(
        more.recommend(["u0"], candidates=model.items), model.recommend(["u0"])
    )


@pytest.mark.parametrize("kind", ["strings", "integers"])
def test_a_loaded_model_is_the_saved_one_to_the_last_bit(kind, model, quick, tmp_path):
    saved = model if kind == "strings" else quick
    saved.save(tmp_path / "deep" / "model")
    loaded = jaxcold.load(tmp_path / "deep" / "model")
    content = {mode: frame.to_numpy()[:3] for mode, frame in frames()[1].items()}
    same(saved, loaded, content)
    # Another one takes its place.
    more = model.add_items(["+"], {mode: table[:1] for mode, table in content.items()})
    more.save(tmp_path / "deep" / "model")
    same(more, jaxcold.load(tmp_path / "deep" / "model"), content)


def test_ids_of_every_script_and_size_survive(quick, tmp_path):
    names = ["", "a\0", "naïve 名", "\n", " x "]
    model = dataclasses.replace(
        quick, users=pd.Index(names), histories=quick.histories.take(np.arange(5))
    )
    model.save(tmp_path / "m")
    assert jaxcold.load(tmp_path / "m").users.tolist() == names
    wide = pd.Index([2**63 - 1, -5, *range(len(quick.items) - 2)])
    dataclasses.replace(quick, items=wide).save(tmp_path / "m")
    assert jaxcold.load(tmp_path / "m").items.tolist() == wide.tolist()


def test_a_killed_save_leaves_the_older_model_or_nothing(quick, model, tmp_path, monkeypatch):
    folder = tmp_path / "m"
    content = {mode: frame.to_numpy()[:2] for mode, frame in frames()[1].items()}
    real, steps = os.replace, {}

    class Killed(BaseException):
        """Not an Exception: as rude as a signal."""

    def replace(*args):
        steps["left"] -= 1
        if not steps["left"]:
            raise Killed
        real(*args)

    monkeypatch.setattr(os, "replace", replace)

    def killed(saved, step):
        steps["left"] = step
        with pytest.raises(Killed):
            saved.save(folder)
        steps["left"] = 0

    for step in (1, 2, 3):  # the arrays, the ids, model.json
        killed(quick, step)
        assert not list(tmp_path.iterdir())
    quick.save(folder)
    for step in (1, 2, 3):
        killed(model, step)
        same(quick, jaxcold.load(folder), content)
    model.save(folder)
    same(model, jaxcold.load(folder), content)
    assert len(list(folder.iterdir())) == 3  # what the attempts left is gone
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_from_training_serves_what_the_trained_model_represents(tmp_path):
    dataset = synthetic.make(users=60, items=50, per_user=12)
    # The statistics after training, and the structure, that differ from those of `fit`.
    options = {"batch_norm": "batch", "attention_layers": 2, "hidden": 8, "out": 4}
    built = semco.build(dataset, batch_size=64, epochs=1, alpha=1.0, tau=0.2, **options)
    params = init_state(built, 0).params
    SEMCo.from_training(dataset, built, params, (), options).save(tmp_path / "m")
    served = jaxcold.load(tmp_path / "m")
    item = built.encode_items(params, ())
    user = built.encode_users(params, (), item, dataset.split.train.by_user())
    np.testing.assert_array_equal(served.representations().item, item)
    np.testing.assert_allclose(served.representations().user, user, atol=1e-6)
    np.testing.assert_array_equal(served.embed(dataset.content.tables), item)
    assert served.cold_items.tolist() == dataset.split.cold_items.tolist()


def test_an_item_may_lack_a_mode_but_not_all(quick):
    log, content, _ = frames(lambda item: 1000 + int(item))
    gaps = content["image"].drop(index=1001)
    gaps.loc[1002] = np.nan
    model = fit(log, {"text": content["text"], "image": gaps}, epochs=1, alpha=1.0)
    assert model.items.equals(quick.items)
    row = {"text": content["text"].to_numpy()[1:2], "image": np.full((1, 5), np.nan)}
    np.testing.assert_array_equal(model.embed(row)[0], model.item[1])
    with pytest.raises(DataError, match="item 1002 is without content in any mode"):
        fit(log, {"image": gaps}, items=None)


def test_arrays_and_frames_and_any_order_of_the_log_give_one_model(quick):
    log, content, _ = frames(lambda item: 1000 + int(item))
    arrays = {mode: frame.to_numpy() for mode, frame in content.items()}
    repeated = pd.concat([log, log[:10]]).assign(when=3.0)
    other = fit(
        repeated, arrays, items=content["text"].index.to_numpy(np.int32), epochs=1, alpha=1.0
    )
    same(quick, other, {mode: x[:2] for mode, x in arrays.items()})


def test_importing_the_package_brings_in_nothing():
    code = (
        "import sys, jaxcold; heavy = {'jax', 'numpy', 'pandas', 'flax'} & {*sys.modules};"
        "assert not heavy, heavy; import jaxcold.sparse;"
        "assert not {'pandas', 'flax', 'optax'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"SEMCo", "load"} <= {*dir(jaxcold)}
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = jaxcold.Nothing


def fit_errors():
    """What is done to the arguments of `fit`, and what it says."""
    nan = float("nan")

    def log(**columns):
        return lambda a: a | {"interactions": a["interactions"].assign(**columns)}

    def text(change):
        return lambda a: a | {"content": {"text": change(a["content"]["text"])}}

    def put(frame, value):
        frame = frame.copy()
        frame.iloc[3, 2] = value
        return frame

    return {
        "columns": (
            lambda a: a | {"interactions": a["interactions"].rename(columns={"item": "sku"})},
            'columns "user" and "item"',
        ),
        "no rows": (lambda a: a | {"interactions": a["interactions"][:0]}, "has no rows"),
        "a gap": (log(user=["x"] * 239 + [None]), "row 239 .* has no user"),
        "float ids": (log(item=1000.0), "item ids are floating; .* astype"),
        "mixed ids": (log(user=[1] * 239 + ["x"]), "user ids are mixed-integer"),
        "no content": (log(item=[7, 8, 9, 10] * 60), "item 7, 8, 9 and 1 more are without content"),
        "other type": (log(item="1000"), r"item '1000' is without content \(content holds 1000"),
        "not modes": (lambda a: a | {"content": {}}, "dictionary of modes"),
        "lists": (
            text(lambda x: x.assign(title=[["x"]] * len(x))),
            r"column 'title': row 0 .* is \['x'\], not text",
        ),
        "infinite": (
            text(lambda x: put(x, np.inf)),
            r"item 1003 is not finite \(inf in col",
        ),
        "half a row": (text(lambda x: put(x, nan)), r"item 1003 is not finite \(nan in column 2"),
        "twice": (text(lambda x: pd.concat([x, x[:1]])), "item 1000 is given twice"),
        "no ids": (text(lambda x: x.to_numpy()), "say whose rows it holds by items="),
        "row count": (
            lambda a: text(lambda x: x.to_numpy())(a) | {"items": [1, 2]},
            "64 rows for 2 items",
        ),
        "one row": (text(lambda x: x.to_numpy()[0]), r"float32\[12\], not numbers"),
        "tau": (lambda a: a | {"alpha": 1.7}, "pass tau for alpha=1.7"),
        "epochs": (lambda a: a | {"epochs": 0}, "epochs is at least 1"),
        "hidden": (lambda a: a | {"hidden": 0}, "hidden is at least 1"),
    }


@pytest.mark.parametrize("case", fit_errors())
def test_bad_arguments_of_fit_are_one_clear_line(case):
    change, message = fit_errors()[case]
    log, content, _ = frames(lambda item: 1000 + int(item))
    arguments = change({"interactions": log, "content": content})
    with pytest.raises(ValueError, match=message) as error:
        SEMCo.fit(**arguments, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.recommend(["u1", "nobody"]), "user 'nobody' is not in the training log"),
        (lambda m: m.recommend("u1"), "list of ids, not 'u1'"),
        (lambda m: m.recommend(["u1"], histories=[[1000]]), "users or histories"),
        (lambda m: m.recommend(histories=[[1000], [5, 6, 1001]]), "item 5, 6 are unknown"),
        (lambda m: m.recommend(histories={"x": 5}), r"histories\['x'\]: is a list of ids, not 5"),
        (lambda m: m.recommend(histories={"a": [1000], "b": []}), "user 'b' is without history"),
        (lambda m: m.recommend(candidates=[1000, 3]), "candidates: item 3 is unknown"),
        (lambda m: m.recommend(candidates="new"), '"warm", "cold", a list of item ids'),
        (lambda m: m.recommend(k=0), "k is at least 1, not 0"),
        (lambda m: m.embed({"text": np.ones((1, 12))}), "mode 'image' is absent"),
        (lambda m: m.embed({"txt": np.ones((1, 12))}), "mode 'txt' is unknown; known: text, image"),
        (
            lambda m: m.embed({"text": np.ones((1, 12)), "image": np.ones((1, 6))}),
            r"\['image'\] has 6 columns; the model was trained on 5",
        ),
        (
            lambda m: m.embed({"text": np.ones((2, 12)), "image": np.ones((1, 5))}),
            r"\['image'\] has 1 rows for 2 items",
        ),
        (
            lambda m: m.add_items([1000], {"text": np.ones((1, 12)), "image": np.ones((1, 5))}),
            "item 1000 is known already",
        ),
        (
            lambda m: m.add_items([1], {k: v[:2] for k, v in frames(int)[1].items()}),
            "item 0 is in content but not in ids",
        ),
    ],
)
def test_bad_questions_are_one_clear_line(quick, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(quick)
    assert "\n" not in str(error.value)


def spoil(folder, kind):
    meta = json.loads((folder / "model.json").read_text())
    arrays = folder / meta["files"]["arrays.safetensors"]["file"]
    if kind == "absent":
        (folder / "model.json").unlink()
    elif kind == "cut":
        (folder / "model.json").write_bytes((folder / "model.json").read_bytes()[:100])
    elif kind == "bit":
        data = bytearray(arrays.read_bytes())
        data[len(data) // 2] ^= 1
        arrays.write_bytes(data)
    elif kind == "no arrays":
        arrays.unlink()
    else:
        change = {"version": {"format": 99}, "modes": {"modes": [{"width": 3}]}}[kind]
        (folder / "model.json").write_text(json.dumps(meta | change))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "model.json: not found; name a folder"),
        ("cut", "model.json: is damaged or not of jaxcold"),
        ("bit", r"arrays-\w+.safetensors: is damaged .* copy the whole folder"),
        ("no arrays", r"arrays-\w+.safetensors: cannot be read"),
        ("version", "has format 99, this version of jaxcold reads 3; load it with jaxcold 0"),
        ("modes", "does not hold a whole recommender"),
    ],
)
def test_damaged_folders_are_one_clear_line(quick, tmp_path, kind, message):
    quick.save(tmp_path / "m")
    spoil(tmp_path / "m", kind)
    with pytest.raises(DataError, match=message) as error:
        jaxcold.load(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_saving_never_touches_a_folder_of_other_files(quick, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        quick.save(tmp_path)
    with pytest.raises(DataError, match="is a file; name a folder"):
        quick.save(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    quick.save(tmp_path / "empty")
    assert {path.name.split("-")[0] for path in (tmp_path / "empty").iterdir()} == {
        artifact.META,
        "arrays",
        "ids",
    }


def test_objects_are_never_unpickled(quick, tmp_path):
    with open(tmp_path / "evil.npz", "wb") as file:
        np.savez(file, **{"items/embedding": np.array([print], object)})
    files = {"arrays.safetensors": (tmp_path / "evil.npz").read_bytes(), "ids.json": b"{}"}
    artifact.write(tmp_path / "m", {"modes": [], "options": {}}, files)
    with pytest.raises(DataError, match=r"does not hold a whole recommender .*[Hh]eader"):
        jaxcold.load(tmp_path / "m")
