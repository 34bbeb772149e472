"""`jaxcold.Linear`: one fit, the API of every recommender."""

import numpy as np
import pandas as pd
import pytest

import jaxcold
from jaxcold.data import synthetic
from jaxcold.data.content import history_means
from jaxcold.models import closed_form
from jaxcold.types import DataError


def shop():
    data = synthetic.make(seed=2, users=80, items=120, per_user=10)
    train = data.split.train
    log = pd.DataFrame({"user": train.user, "item": train.item})
    frames = {mode: pd.DataFrame(table[:, :8]) for mode, table in data.content.tables.items()}
    return data, log, frames


@pytest.fixture(scope="module")
def fitted():
    data, log, frames = shop()
    return data, log, frames, jaxcold.Linear.fit(log, frames)


def test_it_is_the_model_of_the_experiments(fitted):
    data, _, frames, model = fitted
    tables = {mode: frame.to_numpy(np.float32) for mode, frame in frames.items()}
    content = data.content._replace(tables=tables)
    catalogue = closed_form.Catalogue(content, data.split.warm_items)
    l2 = model.options["l2"]
    expected = closed_form.encode(
        content, closed_form.ridge_projections(catalogue, lambda rows: rows, (l2,))[l2]
    )
    assert l2 in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    rows = [model.items.get_loc(item) for item in range(120)]
    np.testing.assert_allclose(
        model.item[rows] @ model.item[rows].T, expected @ expected.T, atol=1e-5
    )
    users = model.user_vectors([3])
    own = data.split.train.by_user().take(np.array([3]))
    np.testing.assert_allclose(users, history_means(own, model.item[rows]), atol=1e-6)
    assert set(model.cold_items) == set(data.split.cold_items)


@pytest.mark.parametrize("method", ["ridge", "whitened_knn"])
def test_new_items_saving_and_loading(method, tmp_path):
    _, log, frames = shop()
    model = jaxcold.Linear.fit(log, frames, method=method, l2=1.0)
    new = {mode: frame.iloc[:1].to_numpy() for mode, frame in frames.items()}
    row = model.embed(new)
    np.testing.assert_array_equal(row, model.item[model.items.get_loc(0)][None])
    grown = model.add_items([1000], new)
    lists = grown.recommend([3], k=5, candidates=[1000])
    assert lists["item"].tolist() == [1000]
    grown.save(tmp_path / "model")
    loaded = jaxcold.load(tmp_path / "model")
    assert isinstance(loaded, jaxcold.Linear)
    assert loaded.options == grown.options
    np.testing.assert_array_equal(loaded.embed(new), row)
    pd.testing.assert_frame_equal(
        loaded.recommend([3, 4], k=4, candidates="cold"),
        grown.recommend([3, 4], k=4, candidates="cold"),
    )


def test_l2_is_chosen_by_items_that_are_held_out():
    """So large a value ranks as content-KNN does, by what is irrelevant in the content."""
    _, log, frames = shop()
    assert jaxcold.Linear.fit(log, frames, l2=(1e9, 1.0)).options["l2"] == 1.0
    assert jaxcold.Linear.fit(log, frames, l2=(1e-9, 2.0, 1e9), val_fraction=0).options["l2"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l2": 0.0}, "l2 is one or more positive numbers"),
        ({"l2": ()}, "l2 is one or more positive numbers"),
        ({"method": "knn"}, "method is one of ridge, whitened_knn, not 'knn'"),
        ({"val_fraction": 1.0}, "val_fraction is from 0 and below 1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    _, log, frames = shop()
    with pytest.raises(ValueError, match=message):
        jaxcold.Linear.fit(log, frames, **arguments)


def test_a_damaged_method_is_refused(tmp_path):
    _, log, frames = shop()
    model = jaxcold.Linear.fit(log, frames, l2=1.0)
    model.options["method"] = "other"
    model.save(tmp_path / "model")
    with pytest.raises(DataError, match="options: method is 'other'"):
        jaxcold.load(tmp_path / "model")
