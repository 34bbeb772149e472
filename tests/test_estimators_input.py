"""What the estimators do with input as users have it: the right answer or one clear line."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from jaxcold.estimators.frames import format_ids
from jaxcold.estimators.sasrec import SASRec
from jaxcold.estimators.semco import SEMCo

RNG = np.random.default_rng(0)
LOG = pd.DataFrame(
    [(f"u{u}", (u + t) % 8, t) for u in range(12) for t in range(4)],
    columns=["user", "item", "time"],
)
TEXT = pd.DataFrame(RNG.normal(size=(10, 5)), columns=list("abcde"))
SEMCO = {"epochs": 1, "batch_size": 16, "hidden": 4, "out": 3, "progress": False}
SEMCO["val_fraction"] = 0
SASREC = {"epochs": 1, "batch_size": 16, "blocks": 1, "dropout": 0.0, "max_length": 4}
SASREC |= {"progress": False, "val_fraction": 0}
HISTORIES = {"ann": [0, 1], "bob": [2, 3]}


@pytest.fixture(scope="module")
def semco():
    return SEMCo.fit(LOG, {"text": TEXT}, **SEMCO)


@pytest.fixture(scope="module")
def sasrec():
    return SASRec.fit(LOG, TEXT, **SASREC)


@pytest.fixture(scope="module", params=["semco", "sasrec"])
def model(request):
    return request.getfixturevalue(request.param)


def wrap(model, content):
    return {"text": content} if isinstance(model, SEMCo) else content


def fit(kind, log=LOG, text=TEXT, **changes):
    if kind == "semco":
        return SEMCo.fit(log, {"text": text}, **{**SEMCO, **changes})
    return SASRec.fit(log, text, **{**SASREC, **changes})


def refuses(call, message, error=(TypeError, ValueError)):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_format_ids_counts_what_it_leaves_out():
    assert format_ids("item", [1]) == "item 1 is"
    assert format_ids("item", range(5)) == "item 0, 1, 2 and 2 more are"


def test_columns_are_reordered_by_name(model):
    right = model.embed(wrap(model, TEXT))
    np.testing.assert_array_equal(model.embed(wrap(model, TEXT[list("edcba")])), right)
    # Frames are read as float32; arrays are taken as they are.
    array = TEXT.to_numpy(np.float32)
    np.testing.assert_array_equal(model.embed(wrap(model, array)), right)
    new = TEXT[:2].set_axis([20, 21])
    added = model.add_items([20, 21], wrap(model, new[list("caebd")]))
    np.testing.assert_array_equal(added.item[-2:], right[:2])


def test_columns_of_other_names_are_refused(model):
    renamed = TEXT.rename(columns={"a": "z"})
    refuses(lambda: model.embed(wrap(model, renamed)), "column 'a' is absent, column 'z' is unkn")
    extra = TEXT.assign(f=1.0)
    refuses(lambda: model.embed(wrap(model, extra)), "column 'f' is unknown; .* 5 columns")
    twice = pd.concat([TEXT, TEXT[["a"]]], axis=1)
    refuses(lambda: model.embed(wrap(model, twice)), "column 'a' is given twice")


def test_candidates_by_user(model):
    lists = model.recommend(
        histories=HISTORIES, candidates={"ann": [5, 4, 9], "bob": [7], "eve": [1]}
    )
    by_user = lists.groupby("user")["item"].agg(set).to_dict()
    assert by_user == {"ann": {4, 5, 9}, "bob": {7}}
    for user, items in by_user.items():
        alone = model.recommend(histories={user: HISTORIES[user]}, candidates=list(items))
        got = lists[lists["user"] == user].reset_index(drop=True)
        assert got["item"].tolist() == alone["item"].tolist()
        np.testing.assert_allclose(got["score"], alone["score"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "items"),
    [("cold", {8, 9}), ("warm", set(range(8))), ("all", set(range(10))), (None, set(range(10)))],
)
def test_candidates_by_name(model, name, items):
    lists = model.recommend(histories={"ann": [0]}, candidates=name, k=20, exclude_seen=False)
    assert {*lists["item"]} == items


def test_a_user_with_an_empty_list_of_candidates_has_no_rows(model):
    lists = model.recommend(histories=HISTORIES, candidates={"ann": [], "bob": [6]})
    assert lists[["user", "item"]].to_numpy().tolist() == [["bob", 6]]


def test_k_beyond_the_pool_is_the_pool(model):
    lists = model.recommend(histories={"ann": [0]}, k=10**9)
    assert lists["item"].nunique() == len(lists) == 9
    assert model.recommend(histories={"ann": [0]}, k=10**9, candidates=[]).empty


def test_unknown_items_are_dropped_alike(model):
    lists = model.recommend(histories={"ann": [0, 77], "bob": [78]}, unknown="drop", k=1)
    assert lists["user"].tolist() == ["ann"]
    right = model.recommend(histories={"ann": [0]}, k=1)
    pd.testing.assert_frame_equal(lists, right)


def test_histories_as_lists_and_as_a_series(model):
    right = model.recommend(histories={0: [0, 1], 1: [2, 3]})
    pd.testing.assert_frame_equal(model.recommend(histories=[[0, 1], [2, 3]]), right)
    series = pd.Series([[0, 1], [2, 3]])
    pd.testing.assert_frame_equal(model.recommend(histories=series), right)


def test_adding_nothing_changes_nothing(model):
    assert model.add_items([], wrap(model, TEXT[:0])) is model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 2.5}, "k is a whole number, not 2.5"),
        ({"k": "3"}, "k is a whole number, not '3'"),
        ({"k": None}, "k is a whole number, not None"),
        ({"k": 0}, "k is at least 1, not 0"),
        ({"candidates": TEXT}, "candidates: is a list of ids, not DataFrame"),
        ({"candidates": [[1], [2]]}, "candidates: holds a list where an id is expected"),
        ({"candidates": {"ann": [1]}}, "candidates: user 'bob' is without a list"),
        ({"candidates": {"ann": [1], "bob": [77]}}, r"candidates\['bob'\]: item 77 is unknown"),
        ({"candidates": "new"}, 'candidates is "all", "warm", "cold", a list'),
        ({"histories": {"ann": [[1], [2]]}}, r"histories\['ann'\]: holds a list where an id"),
        ({"histories": sparse.eye(3).tocsr()}, "histories is a mapping of users to lists"),
        ({"histories": LOG}, "histories is a mapping .* not DataFrame"),
        ({"unknown": "skip"}, 'unknown is "error" or "drop"'),
    ],
)
def test_bad_arguments_of_recommend(model, arguments, message):
    refuses(lambda: model.recommend(**{"histories": HISTORIES, **arguments}), message)


@pytest.mark.parametrize("kind", ["semco", "sasrec"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1.5}, "epochs is a whole number, not 1.5"),
        ({"seed": "a"}, "seed is a whole number, not 'a'"),
        ({"learning_rate": -0.1}, "learning_rate is a positive number, not -0.1"),
        ({"batch_size": 2.0}, "batch_size is a whole number"),
        ({"epohcs": 3}, r"fit has no argument 'epohcs'; did you mean 'epochs'\?"),
        ({"compute": "float8"}, "^compute is "),
        ({"log": LOG.assign(item=[[1]] * len(LOG))}, 'column "item" holds lists'),
        ({"log": pd.concat([LOG, LOG[["item"]]], axis=1)}, '2 columns "item"; rename'),
        ({"min_rating": 3.0}, '0 columns "rating"'),
        ({"log": LOG.assign(rating=1.0), "min_rating": 3.0}, "no rating reaches min_rating=3"),
        (
            {"text": pd.concat([TEXT[:3], TEXT[3:4] * 0 + 1e300, TEXT[4:]])},
            r"item 3 is not finite \(1e\+300 in col",
        ),
    ],
)
def test_bad_arguments_of_fit(kind, changes, message):
    refuses(lambda: fit(kind, **changes), message)


def test_arguments_of_one_estimator():
    refuses(lambda: fit("semco", l2=-1.0), "^l2 is a number from 0, not -1.0")
    refuses(lambda: fit("semco", hidden=0), "^hidden is at least 1")
    refuses(lambda: fit("sasrec", dim=6), "; set dim to at most 5")
    refuses(lambda: fit("sasrec", heads=0), "^heads is at least 1")


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (1, "one value in all rows"),
        (True, "holds bool, not numbers"),
        (1j, "holds complex128, not numbers"),
        (np.inf, "row 0 .* infinite time"),
    ],
)
def test_times_that_give_no_order_are_refused(time, message):
    refuses(lambda: fit("sasrec", LOG.assign(time=time)), message)


def test_equal_rows_of_a_log_count_once(sasrec):
    doubled = pd.concat([LOG, LOG], ignore_index=True)
    np.testing.assert_array_equal(fit("sasrec", doubled).item, sasrec.item)


def test_the_default_size_follows_the_content(sasrec):
    assert sasrec.options["dim"] == 5


@pytest.mark.parametrize("kind", ["semco", "sasrec"])
def test_ratings_filter_and_are_named_where_they_do_not(kind, request):
    right = request.getfixturevalue(kind)
    noise = LOG.assign(item=9, time=LOG["time"] + 10, rating=1)
    rated = pd.concat([LOG.assign(rating=5), noise], ignore_index=True)
    np.testing.assert_array_equal(fit(kind, rated, min_rating=4).item, right.item)
    with pytest.warns(UserWarning, match='"weight" not used') as caught:
        fit(kind, LOG.assign(weight=2.0))
    assert len(caught) == 1
