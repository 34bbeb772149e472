"""The sequential estimator: what an engineer with a log of clicks in time relies on."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import jaxcold
from jaxcold.data.sequences import evaluation
from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.estimators import artifact
from jaxcold.estimators import sasrec as sequential
from jaxcold.estimators import training as estimator
from jaxcold.estimators.sasrec import SASRec
from jaxcold.models import sasrec, sequence_encoder
from jaxcold.types import Csr, DataError

WARM, COLD, USERS = 24, 4, 150
OPTIONS = {"dim": 8, "max_length": 6, "blocks": 1, "dropout": 0.0}


def name(item):
    return f"item-{item:02d}"


def frames():
    """Users walk around a circle of items; the content of an item is its place.

    Nobody takes the cold items, which stand between the others: item 6 between 5 and 7, and so on.
    """
    rng = np.random.default_rng(0)
    count = WARM + COLD
    angle = np.arange(count)[:, None] / count * 2 * np.pi * np.arange(1, 5)
    ids = [name(item) for item in range(count)]
    content = pd.DataFrame(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), index=ids)
    rows = []
    for user in range(USERS):
        start, length = rng.integers(count), rng.integers(4, 12)
        walk = [(start + i) % count for i in range(length)]
        rows += [(f"u{user}", name(i), 10 * t) for t, i in enumerate(walk) if i % 7 != 6]
    return pd.DataFrame(rows, columns=["user", "item", "time"]), content


COLD_ITEMS = [name(item) for item in (6, 13, 20, 27)]


@pytest.fixture(scope="module")
def one_program():
    """All fits of this file have the same options and batches: one compiled step serves them."""
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        real = estimator.make_step
        patch.setattr(estimator, "make_step", lambda *args: kept.setdefault(0, real(*args)))
        yield


def fit(epochs, **changes):
    log, content = frames()
    options = {**OPTIONS, "max_length": 4, "batch_size": USERS, "learning_rate": 0.03, **changes}
    return SASRec.fit(log, content, epochs=epochs, **{"progress": False, **options})


@pytest.fixture(scope="module")
def model(one_program):
    return fit(60)


def dataset():
    """Three warm items more than `dim` and two cold ones; float64 content."""
    history = Csr(np.array([0, 3, 4, 4]), np.array([1, 11, 4, 12], np.int32))
    asked = EvalSequences(np.arange(3, dtype=np.int32), history, np.array([3, 11, 2], np.int32))
    walks = [[0, 1, 2, 3], [3, 4, 5, 6, 7], [8, 9, 10, 0]]
    return SequenceDataset(
        name="tiny",
        num_warm=11,
        num_items=13,
        train=Csr(np.array([0, 4, 9, 13]), np.concatenate(walks).astype(np.int32)),
        val=EvalSequences(
            asked.user[:1], Csr(np.array([0, 2]), np.array([1, 2])), asked.target[:1]
        ),
        test=asked,
        content=np.random.default_rng(0).normal(size=(13, 8)),
        user_ids=np.arange(3),
        item_ids=np.arange(100, 113),
        statistics={},
    )


def untrained(**changes):
    data, options = dataset(), {**OPTIONS, **changes}
    built = sasrec.build(data, batch_size=2, epochs=1, **options)
    params, _ = built.init(0)
    return data, built, params, SASRec.from_training(data, params, options)


@pytest.fixture(scope="module")
def quick():
    """Whole-number ids from 100, never trained."""
    return untrained()[-1]


@pytest.fixture(scope="module")
def without_content():
    return untrained(item_table="random")[-1]


def same(a: SASRec, b: SASRec) -> None:
    np.testing.assert_array_equal(a.item, b.item)
    np.testing.assert_array_equal(a.warm, b.warm)
    assert a.items.equals(b.items)
    assert (a.options, a.widths) == (b.options, b.widths)
    asked = {"x": a.items[:3], ("y", 1): a.items[-7:]}
    pd.testing.assert_frame_equal(a.recommend(asked), b.recommend(asked))
    if a.widths:
        rows = np.random.default_rng(0).normal(size=(5, *a.widths.values()))
        np.testing.assert_array_equal(a.embed(rows), b.embed(rows))


def test_the_next_item_is_recommended_cold_ones_included(model):
    asked = {item: [name((item - back) % 28) for back in (3, 2, 1)] for item in range(28)}
    asked = {item: [i for i in walk if i not in COLD_ITEMS] for item, walk in asked.items()}
    warm = model.recommend(asked, 1, candidates="warm")
    right = [i if i % 7 != 6 else (i + 1) % 28 for i in warm["user"]]
    assert (warm["item"] == [name(i) for i in right]).mean() > 0.9  # chance: 1/22
    cold = model.recommend({i: asked[i] for i in (6, 13, 20, 27)}, 1, candidates="cold")
    assert cold["item"].tolist() == COLD_ITEMS
    # Among all items, too: the cold one or the one after it.
    both = model.recommend({i: asked[i] for i in (6, 13, 20, 27)}, 2)
    assert both["item"].isin(COLD_ITEMS).sum() >= 3


def test_items_are_warm_as_trained_or_cold_by_content(model):
    content = frames()[1].loc[model.items]
    assert sorted(model.cold_items) == COLD_ITEMS
    reduced = model.embed(content)
    np.testing.assert_array_equal(model.item[~model.warm], reduced[~model.warm])
    moved = np.linalg.norm(model.item - reduced, axis=1)[model.warm]
    assert 0 < moved.min() <= moved.max() < 0.5 + 1e-5
    assert model.options["val_ndcg@10"] > 0.7
    assert 1 <= model.options["epoch"] <= 60


def test_lists_are_ranked_without_what_was_seen(model):
    asked = {"b": [name(3), name(4)], "a": [name(i) for i in range(12)]}
    found = model.recommend(asked, 7)
    assert found["user"].tolist() == ["b"] * 7 + ["a"] * 7
    assert found["rank"].tolist() == [*range(1, 8)] * 2
    for user, rows in found.groupby("user"):
        assert rows["score"].is_monotonic_decreasing
        assert not set(rows["item"]) & set(asked[user])
    # Items too early to be read were seen too.
    assert len(model.recommend(asked, 500)) == 26 + 16
    every = model.recommend({"a": asked["a"]}, 500, exclude_seen=False)
    assert set(every["item"]) == set(model.items)


def test_candidates_are_all_warm_cold_or_named(model):
    asked = {0: [name(3)]}
    assert set(model.recommend(asked, 50, candidates="cold")["item"]) == {*COLD_ITEMS}
    assert not set(model.recommend(asked, 50, candidates="warm")["item"]) & {*COLD_ITEMS}
    some = [name(20), name(2), name(6)]
    assert set(model.recommend(asked, candidates=some)["item"]) == {*some}


def test_a_list_depends_on_its_own_history_alone(quick):
    rng = np.random.default_rng(1)
    asked = {user: rng.choice(quick.items, rng.integers(1, 9)) for user in range(300)}
    whole = quick.recommend(asked, 5).set_index("user")
    other = quick.recommend(dict(reversed(asked.items())), 5).set_index("user")
    assert other.index[0] == 299
    pd.testing.assert_frame_equal(whole, other.loc[whole.index.unique()])
    for user in (0, 31, 150, 299):
        alone = quick.recommend({user: asked[user]}, 5).set_index("user")
        pd.testing.assert_frame_equal(alone, whole.loc[[user]])


def test_whoever_is_asked_for_the_programs_are_the_same(quick):
    quick.recommend({0: [100], 1: [*range(100, 109)]})
    before = sequence_encoder._encode._cache_size()
    for length in range(1, 10):
        quick.recommend({user: range(100, 100 + length) for user in range(length)})
    quick.add_items([1], np.ones((1, 8))).recommend({0: [1]})
    assert sequence_encoder._encode._cache_size() == before


def test_only_the_latest_items_are_read_and_repeats_count_once(quick):
    def listed(*history, **options):
        return quick.recommend({"": history}, 4, exclude_seen=False, **options)

    plain = listed(100, 101, 102, 103, 104, 105)
    pd.testing.assert_frame_equal(listed(109, 100, 101, 102, 103, 104, 105), plain)
    assert not listed(101, 100, 102, 103, 104, 105).equals(plain)
    pd.testing.assert_frame_equal(listed(103, 104, 104, 104), listed(103, 104))
    assert not listed(103, 104, 103, 104).equals(listed(103, 104))
    pd.testing.assert_frame_equal(listed(103, 5, 103, "x", 104, unknown="drop"), listed(103, 104))


def test_nobody_without_history_gets_rows(quick):
    found = quick.recommend({"a": [], "b": [100], "c": [5]}, 2, unknown="drop")
    assert found["user"].tolist() == ["b", "b"]
    for nobody in ({}, {"a": []}):
        found = quick.recommend(nobody, unknown="drop")
        assert found.columns.tolist() == ["user", "item", "rank", "score"]
        assert not len(found)


@pytest.mark.parametrize("item_table", ["random", "content", "frozen", "delta"])
def test_from_training_serves_what_the_model_represents(item_table):
    data, built, params, served = untrained(item_table=item_table)
    item = built.encode_items(params, ())
    known = 11 if item_table == "random" else 13
    assert served.items.tolist() == [*range(100, 100 + known)]
    np.testing.assert_array_equal(served.item, item[:known])
    assert served.options["heads"] == 1  # what was not said is known too
    # A table of ids has no cold vectors: cold items are left out of the histories.
    ids, histories = [101, 111, 104], data.test.history
    if item_table == "random":
        ids, histories = [101, 104], evaluation.without_cold(histories, data.num_warm)
    user = built.encode_users(params, (), item, histories)[0]
    found = served.recommend({0: ids}, known, exclude_seen=False)
    scores = served.item @ user
    np.testing.assert_allclose(found["score"], np.sort(scores)[::-1], atol=1e-5)
    assert found["item"][0] == 100 + np.argmax(scores)


def test_a_table_of_ids_knows_warm_items_alone(without_content):
    assert not len(without_content.cold_items)
    everything = without_content.recommend({0: [100]}, 50)
    assert set(everything["item"]) == {*range(101, 111)}
    pd.testing.assert_frame_equal(
        without_content.recommend({0: [100]}, 50, candidates="warm"), everything
    )
    with pytest.raises(DataError, match="histories: item 111 is unknown"):
        without_content.recommend({0: [100, 111]})


def test_added_items_are_cold_and_leave_the_old_recommender_alone(quick):
    raw = dataset().content
    more = quick.add_items([7, 5], raw[[4, 2]])
    assert more.cold_items.tolist() == [111, 112, 7, 5]
    np.testing.assert_allclose(more.item[-2:], quick.embed(raw)[[4, 2]], atol=1e-6)
    frame = pd.DataFrame(raw[[2, 4]].astype(np.float32), index=[5, 7])
    np.testing.assert_allclose(quick.add_items([7, 5], frame).item, more.item, atol=1e-6)
    assert len(quick.items) == 13
    asked = {0: [104, 102]}
    pd.testing.assert_frame_equal(
        more.recommend(asked, candidates=quick.items), quick.recommend(asked)
    )
    assert set(more.recommend(asked, 50)["item"]) >= {5, 7}
    assert len(more.recommend({0: [7]}, 50, candidates="cold")) == 3


def test_embedding_is_the_reduction_of_training(quick):
    raw = dataset().content
    want, _ = sasrec.contents(dataset(), 8, "always")
    np.testing.assert_allclose(quick.embed(raw), want, atol=1e-6)
    np.testing.assert_allclose(quick.embed(pd.DataFrame(raw[3:5])), want[3:5], atol=1e-6)
    never = untrained(reduce="never")[-1]
    want, _ = sasrec.contents(dataset(), 8, "never")
    np.testing.assert_allclose(never.embed(3 * raw), want, atol=1e-6)


@pytest.mark.parametrize("kind", ["trained", "integers", "ids alone", "as it is", "grown"])
def test_a_loaded_model_is_the_saved_one_to_the_last_bit(
    kind, model, quick, without_content, tmp_path
):
    saved = {
        "trained": lambda: model,
        "integers": lambda: quick,
        "ids alone": lambda: without_content,
        "as it is": lambda: untrained(reduce="never")[-1],
        "grown": lambda: quick.add_items([1], np.ones((1, 8))),
    }[kind]()
    quick.save(tmp_path / "deep" / "m")
    saved.save(tmp_path / "deep" / "m")  # in its place
    same(saved, SASRec.load(tmp_path / "deep" / "m"))
    assert len([*(tmp_path / "deep" / "m").iterdir()]) == 3
    assert json.loads((tmp_path / "deep" / "m" / artifact.META).read_text())["model"] == "sasrec"


def test_a_folder_of_other_files_is_left_alone(quick, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        quick.save(tmp_path)


def spoil(folder, kind):
    arrays = next(folder.glob("arrays-*"))
    meta = json.loads((folder / artifact.META).read_text())
    if kind == "bit":
        data = bytearray(arrays.read_bytes())
        data[len(data) // 2] ^= 1
        arrays.write_bytes(data)
    elif kind == "no arrays":
        arrays.unlink()
    elif kind == "no folder":
        (folder / artifact.META).unlink()
    else:
        {
            "kind": lambda: meta.update(model="semco"),
            "no options": lambda: meta.pop("options"),
            "other width": lambda: meta["options"].update(dim=4),
            "other length": lambda: meta["options"].update(max_length=5),
            "more blocks": lambda: meta["options"].update(blocks=2),
        }[kind]()
        (folder / artifact.META).write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bit", r"arrays-\w+.safetensors: is damaged .* copy the whole folder"),
        ("no arrays", r"arrays-\w+.safetensors: cannot be read"),
        ("no folder", "not found; name a folder with a saved model"),
        ("kind", "holds a model of kind 'semco', not 'sasrec'; read it with jaxcold.load"),
        ("no options", "does not hold a whole recommender .model.json has no options"),
        ("other width", "whole recommender .items/embedding does not have dim=4 columns"),
        ("other length", r"whole recommender \(encoder/position has shape \[6, 8\], not \[5, 8\]"),
        ("more blocks", "whole recommender .options: blocks or heads do not fit the arrays"),
    ],
)
def test_damaged_folders_are_one_clear_line(quick, tmp_path, kind, message):
    quick.save(tmp_path / "m")
    spoil(tmp_path / "m", kind)
    with pytest.raises(DataError, match=message) as error:
        SASRec.load(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_objects_are_never_unpickled(tmp_path):
    with open(tmp_path / "evil.npz", "wb") as file:
        np.savez(file, **{"items/embedding": np.array([print], object)})
    evil = (tmp_path / "evil.npz").read_bytes()
    files = {"arrays.safetensors": evil, "ids.json": b'{"items": [1]}'}
    artifact.write(tmp_path / "m", {"model": "sasrec", "width": 1, "options": {}}, files)
    with pytest.raises(DataError, match=r"does not hold a whole recommender .*[Hh]eader"):
        SASRec.load(tmp_path / "m")


class Built(Exception):  # noqa: N818
    """Stops a fit where training would begin."""


@pytest.fixture
def prepared(monkeypatch):
    """What `fit` would train on: the data set, and the options of the model."""
    seen = {}

    def build(dataset, **options):
        seen.update(dataset=dataset, options=options)
        raise Built

    monkeypatch.setattr(sequential.sasrec, "build", build)

    def call(log, content, **options):
        with pytest.raises(Built):
            SASRec.fit(log, content, **options)
        return seen["dataset"], seen["options"]

    return call


def walks(data, which):
    """Histories by external user id, in external item ids."""
    rows = data.train if which == "train" else data.val.history
    users = np.arange(rows.rows) if which == "train" else data.val.user
    found = {}
    for number, user in enumerate(data.user_ids[users]):
        items = rows.indices[rows.indptr[number] : rows.indptr[number + 1]]
        found[user] = data.item_ids[items].tolist()
    if which == "val":
        for user, target in zip(found, data.val.target, strict=True):
            found[user].append(data.item_ids[target])
    return found


def test_rows_are_sorted_by_time_and_repeats_dropped(prepared):
    # Ten users alike, apart from the order of their rows; c and d have one time.
    one = pd.DataFrame({"item": [*"cdbbab"], "time": [5, 5, 4, 3, 1, 2]})
    log = pd.concat([one.assign(user=user) for user in range(10)], ignore_index=True)
    log = log.sample(frac=1, random_state=0).sort_values("time", kind="stable")
    order = log["item"][log["time"] == 5].groupby(log["user"]).agg("".join)
    content = pd.DataFrame(np.eye(5), index=[*"edcba"])
    data, options = prepared(log, content)
    train, val = walks(data, "train"), walks(data, "val")
    assert len(train) == 9
    assert len(val) == 1
    for user, walk in {**train, **val}.items():
        assert walk == [*"ab", *order[user]]
    assert data.item_ids[data.num_warm :].tolist() == ["e"]
    np.testing.assert_array_equal(data.content, content.loc[data.item_ids])
    assert options["item_table"] == "delta"
    # Dates, other columns and another index change nothing.
    dates = pd.to_datetime(log["time"], unit="D", utc=True)
    again, _ = prepared(log.assign(time=dates, price=1.0).reset_index(), content)
    assert walks(again, "train") == train


def test_a_share_of_the_users_is_held_out(prepared):
    log, content = frames()
    chosen = []
    for seed in (0, 0, 1):
        data, _ = prepared(log, content, seed=seed, val_fraction=0.2)
        assert not {*walks(data, "train")} & {*walks(data, "val")}
        assert len(data.val.target) == 0.2 * USERS
        chosen.append({*walks(data, "val")})
    assert chosen[0] == chosen[1] != chosen[2]


def test_users_with_one_item_are_left_out_and_so_are_their_items(prepared):
    log = pd.DataFrame([(u, "ab"[t], t) for u in range(8) for t in range(2)])
    log = pd.concat([log, pd.DataFrame([(8, "c", 0), (9, "d", 0), (9, "d", 1)])])
    log.columns = ["user", "item", "time"]
    data, _ = prepared(log, pd.DataFrame(np.eye(4), index=[*"abcd"]))
    assert data.item_ids.tolist() == [*"abcd"]
    assert data.num_warm == 2
    assert data.train.rows + len(data.val.target) == 8


def test_without_content_the_table_is_of_ids(prepared):
    log, content = frames()
    for arguments in ((log, None), (log, content)):
        data, options = prepared(*arguments, item_table="random")
        assert data.content is None
        assert options["item_table"] == "random"
    assert prepared(log, None)[1]["item_table"] == "random"


def test_the_best_epoch_is_kept_and_patience_ends_training(one_program, monkeypatch, capsys):
    real, script = estimator.evaluate_model, []

    def evaluate_model(*args):
        value = script.pop(0)
        return {
            name: metrics._replace(per_user={"ndcg@10": np.full(1, value)})
            for name, metrics in real(*args).items()
        }

    monkeypatch.setattr(estimator, "evaluate_model", evaluate_model)
    script[:] = [0.05, 0.1, 0.3, 0.3, 0.2, 0.9]  # content-KNN first
    stopped = fit(10, patience=2)
    assert script == [0.9]
    assert (stopped.options["epoch"], stopped.options["val_ndcg@10"]) == (2, 0.3)
    script[:] = [0.05, 0.1, 0.3]
    assert not capsys.readouterr().out
    short = fit(2, patience=2, progress=True)
    assert "SASRec: 100 %" in capsys.readouterr().out
    assert short.options == stopped.options | {"epochs": 2}
    same(stopped, dataclasses.replace(short, options=stopped.options))  # equal seeds, equal models


def fit_errors():
    """What is done to the arguments of `fit`, and what it says."""

    def log(**columns):
        return lambda a: a | {"interactions": a["interactions"].assign(**columns)}

    def content(change):
        return lambda a: a | {"content": change(a["content"])}

    def put(frame, value):
        frame = frame.copy()
        frame.iloc[3, 2] = value
        return frame

    def rows(frame):
        return lambda a: a | {"interactions": frame}

    few = pd.DataFrame({"user": [1, 1, 2], "item": [name(0), name(1), name(0)], "time": [0, 1, 2]})
    return {
        "columns": (rows(few.drop(columns="time")), '"user", "item" and "time"'),
        "no rows": (rows(few[:0]), "interactions has no rows"),
        "text times": (log(time="1/2/2020"), 'column "time" holds .* pandas.to_datetime'),
        "a gap": (lambda a: a | {"interactions": few.assign(time=[1, None, 2])}, "row 1 .* no tim"),
        "float ids": (log(user=1.5), "user ids are floating; .* astype"),
        "no content": (log(item="x"), r"item 'x' is without content \(content holds 'item-00'"),
        "one user": (rows(few), "1 users took two items or more"),
        "array": (content(lambda x: x.to_numpy()), "say whose rows it holds by items="),
        "twice": (content(lambda x: pd.concat([x, x[:1]])), "item 'item-00' is given twice"),
        "lists": (
            content(lambda x: x.assign(title=[["x"]] * len(x))),
            r"column 'title': row 0 .* is \['x'\], not text",
        ),
        "nan": (content(lambda x: put(x, np.nan)), r"item 'item-03' is not finite \(nan in col"),
        "dim": (lambda a: a | {"dim": 9}, "set dim to at most 8"),
        "table": (lambda a: a | {"item_table": "learned"}, "item_table is 'random' or"),
        "bound": (lambda a: a | {"max_delta_norm": 1.0}, "max_delta_norm is at least 0 and below"),
        "reference": (lambda a: a | {"reference": True}, "reference=True repeats defects"),
        "epochs": (lambda a: a | {"epochs": 0}, "epochs is at least 1, not 0"),
        "patience": (lambda a: a | {"patience": 0}, "patience is at least 1, not 0"),
        "batch": (lambda a: a | {"batch_size": 0}, "batch_size is at least 1, not 0"),
        "share": (lambda a: a | {"val_fraction": 1}, "val_fraction is from 0 and below 1, not 1"),
    }


@pytest.mark.parametrize("case", fit_errors())
def test_bad_arguments_of_fit_are_one_clear_line(case):
    change, message = fit_errors()[case]
    log, content = frames()
    arguments = change({"interactions": log, "content": content, "dim": 8})
    with pytest.raises(ValueError, match=message) as error:
        SASRec.fit(**arguments, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.recommend({0: [100, 7, 7, 8]}), 'item 7, 8 are unknown; .*unknown="drop"'),
        (lambda m: m.recommend({0: [100]}, unknown="skip"), 'unknown is "error" or "drop"'),
        (lambda m: m.recommend("100"), "users: is a list of ids, not '100'"),
        (lambda m: m.recommend({"x": 100}), r"histories\['x'\]: is a list of ids, not 100"),
        (lambda m: m.recommend({0: [100]}, 0), "k is at least 1, not 0"),
        (lambda m: m.recommend({0: [100]}, candidates="new"), "lists by user, not 'new'"),
        (lambda m: m.recommend({0: [100]}, candidates=[100, 3]), "candidates: item 3 is unknown"),
        (lambda m: m.embed(np.ones((1, 5))), "5 columns; the model was trained on 8"),
        (lambda m: m.embed(np.ones(8)), r"content is float64\[8\], not numbers"),
        (lambda m: m.embed(np.full((1, 8), np.nan)), "item 0 is without content in any mode"),
        (lambda m: m.add_items([1, 100], np.ones((2, 8))), "item 100 is known already"),
        (lambda m: m.add_items([1, 1], np.ones((2, 8))), "item 1 is given twice"),
        (lambda m: m.add_items(["a"], np.ones((1, 8))), "item ids are mixed"),
        (lambda m: m.add_items([1, 2], np.ones((1, 8))), "content has 1 rows for 2 items"),
        (lambda m: m.add_items([1], np.ones((1, 9))), "9 columns; the model was trained on 8"),
        (lambda m: m.add_items([1], np.full((1, 8), np.inf)), "item 1 is not finite"),
        (
            lambda m: m.add_items([1, 2], pd.DataFrame(np.ones((1, 8)), index=[2])),
            "item 1 is without content in any mode",
        ),
        (
            lambda m: m.add_items([1], pd.DataFrame(np.ones((2, 8)), index=[1, 2])),
            "item 2 is in content but not in ids",
        ),
        (
            lambda m: SASRec.from_training(dataset(), {}, {"reference": True}),
            "reference=True repeats defects",
        ),
    ],
)
def test_bad_questions_are_one_clear_line(quick, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(quick)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.add_items([1], np.ones((1, 8))), "knows ids alone"),
        (lambda m: m.embed(np.ones((1, 8))), "knows ids alone"),
        (lambda m: m.recommend({0: [100]}, candidates="cold"), "has no vectors for cold items"),
    ],
)
def test_a_table_of_ids_refuses_content(without_content, call, message):
    with pytest.raises(ValueError, match=message):
        call(without_content)


def test_a_recommender_does_not_change(quick):
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick.item = None


def test_load_tells_the_kinds_of_models_apart(tmp_path):
    _, _, _, served = untrained()
    served.save(tmp_path / "model")
    loaded = jaxcold.load(tmp_path / "model")
    assert isinstance(loaded, jaxcold.SASRec)
    np.testing.assert_array_equal(loaded.item, served.item)
    with pytest.raises(DataError, match=r"holds a model of kind 'sasrec', not 'semco'; read it"):
        jaxcold.SEMCo.load(tmp_path / "model")
