"""What every recommender does, whatever its method: one contract for SEMCo and SASRec."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse

import jaxcold
from jaxcold.estimators.frames import to_pandas
from jaxcold.estimators.sasrec import SASRec
from jaxcold.estimators.semco import SEMCo
from jaxcold.types import DataError

LOG = pd.DataFrame(
    [(f"u{u}", (u + t) % 8, t) for u in range(12) for t in range(4)],
    columns=["user", "item", "time"],
)
TEXT = pd.DataFrame(np.random.default_rng(0).normal(size=(10, 5)), columns=list("abcde"))
SIZES = {"epochs": 1, "batch_size": 16, "val_fraction": 0, "progress": False}
SEMCO = SIZES | {"hidden": 4, "out": 3}
SASREC = SIZES | {"blocks": 1, "dropout": 0.0, "max_length": 4}


def fit(kind, log=LOG, text=TEXT, **changes):
    if kind == "semco":
        return SEMCo.fit(log, text, **{**SEMCO, **changes})
    return SASRec.fit(log, text, **{**SASREC, **changes})


@pytest.fixture(scope="module")
def models():
    return {kind: fit(kind) for kind in ("semco", "sasrec")}


@pytest.fixture(params=["semco", "sasrec"])
def model(request, models):
    return models[request.param]


def history(model, user):
    rows = model.histories
    at = model.users.get_loc(user)
    return model.items[rows.indices[rows.indptr[at] : rows.indptr[at + 1]]].tolist()


def test_users_of_the_log_are_asked_by_id_or_by_history(model):
    known = model.recommend(["u3", "u1"], k=3)
    assert known["user"].tolist() == ["u3"] * 3 + ["u1"] * 3
    by_history = model.recommend({"u3": [3, 4, 5, 6], "u1": [1, 2, 3, 4]}, k=3)
    pd.testing.assert_frame_equal(known, by_history)
    np.testing.assert_array_equal(
        model.user_vectors(["u3"]), model.user_vectors(histories=[[3, 4, 5, 6]])
    )
    assert model.recommend(k=1)["user"].tolist() == model.users.tolist()
    with pytest.raises(DataError, match="user 'nobody' is not in the training log"):
        model.recommend(["nobody"])


def test_removed_items_are_gone_from_lists_and_histories(model):
    less = model.remove_items([4, 9])
    assert less.items.tolist() == [i for i in model.items if i not in (4, 9)]
    assert history(less, "u2") == [2, 3, 5]
    assert less.cold_items.tolist() == [8]
    np.testing.assert_array_equal(less.item[less.items.get_loc(5)], model.item[model.items == 5][0])
    assert not {4, 9} & {*less.recommend(k=20, exclude_seen=False)["item"]}
    with pytest.raises(DataError, match="ids: item 77 is unknown"):
        model.remove_items([77])
    with pytest.raises(DataError, match="all items are named"):
        model.remove_items(model.items)


def test_updated_items_have_the_vectors_of_their_new_content(model):
    content = TEXT.loc[[8, 2]].set_axis([2, 8])  # 2 and 8 change places
    changed = model.update_items([8, 2], content)
    fresh = model.embed(TEXT)
    np.testing.assert_array_equal(changed.item[changed.items == 2][0], fresh[8])
    np.testing.assert_array_equal(changed.item[changed.items == 8][0], fresh[2])
    assert changed.cold_items.equals(model.cold_items)
    kept = ~model.items.isin([2, 8])
    np.testing.assert_array_equal(changed.item[kept], model.item[kept])


def test_added_clicks_belong_to_the_histories(model):
    clicks = pd.DataFrame({"user": ["u2", "new", "new"], "item": [9, 0, 8], "time": [9, 8, 7]})
    more = model.add_clicks(clicks)
    assert history(more, "u2") == [2, 3, 4, 5, 9]
    assert history(more, "new") == ([8, 0] if isinstance(model, SASRec) else [0, 8])
    assert not len(more.cold_items)
    assert len(model.cold_items) == 2
    assert 9 not in more.recommend(["u2"], k=20)["item"].tolist()
    with pytest.raises(DataError, match="interactions: item 77 is unknown"):
        model.add_clicks(clicks.assign(item=77))


def test_users_of_an_item_are_those_with_the_highest_scores(model):
    lists = model.recommend_users([9, 0], k=4)
    assert lists.columns.tolist() == ["item", "user", "rank", "score"]
    assert lists["item"].tolist() == [9] * 4 + [0] * 4
    user, item = model.representations()
    scores = user @ item[model.items.get_loc(9)]
    np.testing.assert_allclose(lists["score"][:4], np.sort(scores)[::-1][:4], atol=1e-6)
    takers = {*LOG["user"][LOG["item"] == 0]}
    assert not takers & {*model.recommend_users([0], k=20)["user"]}
    assert takers <= {*model.recommend_users([0], k=20, exclude_seen=False)["user"]}


def test_similar_items_by_id_and_by_content(model):
    lists = model.similar_items([9, 3], k=9)
    assert lists.columns.tolist() == ["item", "similar", "rank", "score"]
    assert lists["item"].tolist() == [9] * 9 + [3] * 9
    assert 9 not in lists["similar"][:9].tolist()
    unit = model.item / np.linalg.norm(model.item, axis=1, keepdims=True)
    cosine = np.delete(unit, 9, 0) @ unit[9] if model.items[9] == 9 else None
    np.testing.assert_allclose(lists["score"][:9], np.sort(cosine)[::-1], atol=1e-6)
    by_content = model.similar_items(content=TEXT.loc[[9]], k=1)
    assert by_content[["item", "similar"]].to_numpy().tolist() == [[9, 9]]
    with pytest.raises(ValueError, match="items or content"):
        model.similar_items()


@pytest.mark.parametrize("fallback", ["popular", "central"])
def test_users_without_history_get_a_fallback_that_is_marked(model, fallback):
    asked = {"nobody": [], "ann": [0, 1], "strange": [77]}
    lists = model.recommend(asked, k=2, unknown="drop", fallback=fallback)
    assert lists["user"].tolist() == ["nobody"] * 2 + ["ann"] * 2 + ["strange"] * 2
    assert lists["fallback"].tolist() == [True] * 2 + [False] * 2 + [True] * 2
    if fallback == "popular":
        clicks = LOG["item"].value_counts()
        assert lists["item"][0] == clicks.sort_index().idxmax()
        assert lists["score"][0] == clicks.max() == 8
    else:
        mean = model.item[model.warm].mean(0)
        assert lists["item"][0] == model.items[np.argmax(model.item @ mean)]
    only = model.recommend(asked, k=1, unknown="drop", fallback=fallback, candidates="cold")
    assert {*only["item"]} <= {8, 9}
    with pytest.raises(DataError, match=r"user 'nobody' is without history.*fallback=\"popular\""):
        model.recommend({"nobody": []})
    with pytest.raises(ValueError, match="fallback is"):
        model.recommend({"nobody": []}, fallback="random")


def test_evaluation_has_the_metrics_of_the_lists(model):
    held_out = pd.DataFrame({"user": ["u0", "u0", "u1"], "item": [7, 8, 9]})
    got = model.evaluate(held_out, cutoffs=(1, 3))
    lists = model.recommend(["u0", "u1"], k=3)
    hits = lists.merge(held_out)
    gain = hits.groupby("user")["rank"].agg(lambda r: (1 / np.log2(r + 1)).sum())
    ideal = pd.Series({"u0": 1 + 1 / np.log2(3), "u1": 1.0})
    ndcg = (gain.reindex(ideal.index).fillna(0) / ideal).mean()
    np.testing.assert_allclose(got["ndcg@3"], ndcg)
    assert {"recall@1", "hr@3", "mdg@1", "gini@3"} <= got.keys()
    cold = model.evaluate(held_out, cutoffs=(2,), candidates="cold")
    assert cold["recall@2"] == 1.0  # two cold items, both in a list of two; item 7 is warm
    everybody = held_out.replace("u1", "stranger")
    with pytest.raises(DataError, match="clicks: user 'stranger' is unknown"):
        model.evaluate(everybody)
    dropped = model.evaluate(everybody, cutoffs=(3,), unknown="drop")
    assert dropped == model.evaluate(held_out[:2], cutoffs=(3,))
    given = model.evaluate(everybody, (3,), histories={"stranger": [1, 2, 3, 4]}, unknown="drop")
    assert given == model.evaluate(held_out[2:], cutoffs=(3,))
    with pytest.raises(DataError, match="nothing to evaluate"):
        model.evaluate(held_out[:1], candidates="cold")


@pytest.mark.parametrize("kind", ["semco", "sasrec"])
def test_columns_of_any_name(kind, models):
    log = LOG.rename(columns={"user": "visitor", "item": "sku", "time": "at"})
    names = {"user": "visitor", "item": "sku"} | ({"time": "at"} if kind == "sasrec" else {})
    model = fit(kind, log, **names)
    np.testing.assert_array_equal(model.item, models[kind].item)
    held_out = pd.DataFrame({"visitor": ["u0"], "sku": [7]})
    assert model.evaluate(held_out) == models[kind].evaluate(
        held_out.set_axis(["user", "item"], axis=1)
    )
    with pytest.raises(DataError, match=r'it has no "item".*item="item_id"'):
        fit(kind, LOG.rename(columns={"item": "item_id"}))
    with pytest.raises(TypeError, match="user is the name of a column, not 3"):
        fit(kind, user=3)


class Polars:
    """The part of a polars frame that is read, which converts itself with pyarrow alone."""

    def __init__(self, frame):
        self._frame = frame
        self.columns = frame.columns.tolist()

    def __getitem__(self, name):
        return self._frame[name]

    def to_pandas(self):
        raise ModuleNotFoundError("pyarrow")


@pytest.mark.parametrize("kind", ["semco", "sasrec"])
@pytest.mark.parametrize("convert", [Polars, lambda x: pa.Table.from_pandas(x)])
def test_polars_and_arrow_frames(kind, convert, models):
    text = TEXT.rename_axis("item").reset_index()
    model = fit(kind, convert(LOG), convert(text))
    np.testing.assert_array_equal(model.item, models[kind].item)
    np.testing.assert_array_equal(model.embed(convert(text)), models[kind].embed(TEXT))
    with pytest.raises(DataError, match='content has no column "item"'):
        fit(kind, text=convert(TEXT))


def test_a_lazy_frame_is_named():
    class Lazy:
        collect = collect_schema = None

    with pytest.raises(DataError, match=r"interactions is a lazy frame; .*collect\(\)"):
        to_pandas(Lazy(), "interactions")


@pytest.mark.parametrize("kind", ["semco", "sasrec"])
def test_sparse_matrices_as_content(kind, models):
    matrix = sparse.csr_matrix(TEXT.to_numpy())
    model = fit(kind, text=matrix, items=TEXT.index)
    np.testing.assert_allclose(model.item, models[kind].item, atol=1e-6)
    np.testing.assert_array_equal(model.embed(matrix), model.embed(TEXT.to_numpy(np.float32)))
    with pytest.raises(DataError, match=r"75 GiB when dense; .*TruncatedSVD"):
        fit(kind, text=sparse.csr_matrix((2 * 10**6, 10**4)), items=range(2 * 10**6))


def test_all_of_it_is_saved(models, tmp_path):
    for kind, model in models.items():
        model.add_clicks(LOG[:1].assign(user="new")).save(tmp_path / kind)
        loaded = jaxcold.load(tmp_path / kind)
        assert history(loaded, "new") == [0]
        pd.testing.assert_frame_equal(loaded.history, model.history)
        pd.testing.assert_frame_equal(loaded.recommend(["u5"]), model.recommend(["u5"]))
