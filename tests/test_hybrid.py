"""SEMCo and a closed form in one vector: the formulas in float64, the blend, and the estimator."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from test_closed_forms import assert_same_lists, counts, kernel, narrow, whitened

import jaxcold
from jaxcold.data.content import unit_rows
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.data.pairs.evaluation import slices
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.models import closed_form, hybrid, kernel_ease
from jaxcold.models.closed_form import Catalogue
from jaxcold.types import Csr, DataError

OPTIONS = {"epochs": 1, "batch_size": 64, "alpha": 2.0, "tau": 5.0, "hidden": 8, "out": 4}


@pytest.fixture(scope="module")
def data():
    return narrow()


def completed(data, l2, completion):
    """R + completion R B, with EASE's B from its formula, in float64."""
    r = counts(data)[:, data.split.warm_items]
    inverse = np.linalg.inv(r.T @ r + l2 * np.eye(r.shape[1]))
    b = -inverse / np.diag(inverse)
    np.fill_diagonal(b, 0)
    return r + completion * r @ b


def expected_scores(data, l2, ease_l2, completion):
    """Of all users for all items."""
    warm, k = data.split.warm_items, kernel(whitened(data))
    inverse = np.linalg.inv(k[np.ix_(warm, warm)] + l2 * np.eye(len(warm)))
    return completed(data, ease_l2, completion) @ inverse @ k[warm]


def solved(data, **options):
    r = scipy.sparse.csr_array(counts(data)[:, data.split.warm_items].astype(np.float32))
    given = {"width": 1000, "l2": 2.0, "ease_l2": 3.0, "completion": 2.0} | options
    return r, kernel_ease.solve(Catalogue.of(data), r, **given)


@pytest.mark.parametrize("completion", [0.0, 2.0])
def test_at_full_width_the_scores_are_those_of_the_formula(data, completion):
    r, solution = solved(data, completion=completion)
    width = solution.clicks.shape[1]
    items = closed_form.encode(data.content, solution.encoder)[:, :width]
    actual = (r @ solution.clicks) @ items.T
    expected = expected_scores(data, 2.0, 3.0, completion)
    np.testing.assert_allclose(actual, expected, atol=2e-3 * np.abs(expected).max())


def test_all_items_as_landmarks_are_exact(data):
    r, exact = solved(data)
    _, landmarks = solved(data, landmarks=len(data.split.warm_items))
    scores = [
        (r @ s.clicks) @ closed_form.encode(data.content, s.encoder)[:, : s.clicks.shape[1]].T
        for s in (exact, landmarks)
    ]
    assert_same_lists(*scores)


def test_a_width_keeps_the_largest_directions(data):
    """The scores of warm items are as close to the whole ones as a matrix of that rank can be."""
    warm = data.split.warm_items
    whole = expected_scores(data, 2.0, 3.0, 2.0)[:, warm]
    values = np.linalg.svd(whole, compute_uv=False)
    r, solution = solved(data, width=5)
    items = closed_form.encode(data.content, solution.encoder)[warm, :5]
    error = np.linalg.norm((r @ solution.clicks) @ items.T - whole)
    assert error == pytest.approx(np.sqrt((values[5:] ** 2).sum()), rel=1e-2)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"l2": 0.0}, "l2"),
        ({"ease_l2": 0.0}, "ease_l2"),
        ({"completion": -1.0}, "completion"),
        ({"width": 0}, "width"),
    ],
)
def test_arguments_out_of_range(data, option, match):
    with pytest.raises(ValueError, match=match):
        solved(data, **option)


@pytest.fixture(scope="module")
def model(data):
    return hybrid.build(data, width=16, **OPTIONS)


@pytest.fixture(scope="module")
def state(model):
    return model.init(0)


def scores_of(model, params, model_state, histories):
    items = model.encode_items(params, model_state)
    return model.encode_users(params, model_state, items, histories) @ items.T


def test_a_blend_is_the_weighted_mean_of_standardised_scores(data, model, state):
    params, _ = state
    histories, warm = data.split.train.by_user(), data.split.warm_items

    def scores(weight):
        return scores_of(model, params, {"weight": np.float32(weight)}, histories)

    first, second = scores(0), scores(1)
    for alone in (first, second):
        np.testing.assert_allclose(alone[:, warm].std(1), 1, atol=1e-4)
    np.testing.assert_allclose(scores(0.25), 0.75 * first + 0.25 * second, atol=1e-4)
    # Alone, they are the models that they are made of.
    items = model.encode_items(params, {"weight": np.float32(0)})[:, :4]
    matrix = counts(data)
    assert_same_lists(first, unit_rows(matrix @ items) @ items.T)


def test_the_weight_is_the_best_on_what_scores_it(model, state):
    for wanted in hybrid.WEIGHTS:

        def score(params, model_state, wanted=wanted):
            return -abs(float(model_state["weight"]) - wanted)

        assert float(model.choose(*state, score)["weight"]) == pytest.approx(wanted)


def test_new_items_alone_have_the_same_bits(data, model, state):
    cold = int(data.split.cold_items[0])
    one = {mode: table[cold : cold + 1] for mode, table in data.content.tables.items()}
    content = ContentFeatures(one, {mode: np.array([True]) for mode in one})
    known = model.encode_items(*state)
    np.testing.assert_array_equal(model.encode_items(*state, content), known[cold : cold + 1])


def test_a_user_without_history_has_no_scores(model, state):
    nobody = Csr.empty(1)
    assert not scores_of(model, *state, nobody).any()


@pytest.fixture(scope="module")
def log():
    data = narrow()
    clicks = pd.DataFrame({"user": data.interactions.user, "item": data.interactions.item})
    clicks = clicks[clicks["item"] != 7]
    return clicks, {mode: pd.DataFrame(table) for mode, table in data.content.tables.items()}


@pytest.fixture(scope="module")
def fitted(log):
    return jaxcold.fit(*log, width=12, epochs=2, hidden=8, out=4, progress=False, val_fraction=0.2)


def test_a_saved_model_recommends_the_same(fitted, tmp_path):
    assert fitted.served == "hybrid"
    fitted.save(tmp_path / "model")
    loaded = jaxcold.load(tmp_path / "model")
    assert type(loaded) is type(fitted)
    pd.testing.assert_frame_equal(loaded.recommend(k=5), fitted.recommend(k=5))
    np.testing.assert_array_equal(loaded.user_vectors(), fitted.user_vectors())


def test_what_was_held_out_makes_the_closed_form_in_the_end(log, fitted):
    """All clicked items are compared with new ones, those that chose the weight included."""
    clicks, _ = log
    assert len(fitted.encoder.closed.rows) == clicks["item"].nunique()
    assert fitted.warm.sum() == clicks["item"].nunique()
    assert fitted.options["closed_weight"] in np.float32(hybrid.WEIGHTS)


def test_a_new_item_equals_the_known_one_of_its_content(log, fitted):
    _, content = log
    cold = fitted.cold_items[0]
    new = {mode: table.loc[[cold]].set_axis([999]) for mode, table in content.items()}
    grown = fitted.add_items([999], new)
    at = grown.items.get_indexer([cold, 999])
    np.testing.assert_array_equal(grown.item[at[0]], grown.item[at[1]])
    again = grown.add_clicks(pd.DataFrame({"user": [0], "item": [999]}))
    assert np.isfinite(again.recommend([0], k=3)["score"]).all()


def test_the_parts_of_an_explanation_sum_to_the_score(fitted):
    scores = fitted.recommend([3], k=3).set_index("item")["score"]
    for item, score in scores.items():
        assert fitted.explain(3, item)["part"].sum() == pytest.approx(score, rel=1e-4)


def test_it_cannot_be_trained_on(log, fitted):
    with pytest.raises(ValueError, match="add_clicks, or fit a new one"):
        fitted.partial_fit(*log)


@pytest.mark.parametrize("weight", [2.0, "half", None])
def test_a_saved_weight_out_of_range_is_refused(fitted, tmp_path, weight):
    fitted.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    meta = json.loads(path.read_text())
    meta["options"]["closed_weight"] = weight
    path.write_text(json.dumps(meta))
    with pytest.raises(DataError, match="closed_weight"):
        jaxcold.load(tmp_path / "model")


def test_blend_beats_its_parts_where_they_know_different_things():
    """On synthetic clicks the chosen weight is no worse on validation than either part alone."""
    data = narrow(width=40)
    model = hybrid.build(data, width=16, **OPTIONS)
    params, model_state = model.init(0)
    held_out = {"val": slices(data.split)["val/cold_own"]}

    def score(params, model_state):
        return evaluate_model(model, params, model_state, held_out, (20,))["val"].mean()["ndcg@20"]

    chosen = score(params, model.choose(params, model_state, score))
    assert chosen >= max(score(params, {"weight": np.float32(w)}) for w in (0.0, 1.0))
