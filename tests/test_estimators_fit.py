"""What a fit makes of a log: scales of features, weights, held-out clicks, the curve."""

import warnings

import numpy as np
import pandas as pd
import pytest

import jaxcold
from jaxcold.data import content as vectors
from jaxcold.data.content import fit_scaling
from jaxcold.estimators import logs, semco
from jaxcold.estimators.sasrec import SASRec
from jaxcold.estimators.semco import SEMCo
from jaxcold.types import DataError

RNG = np.random.default_rng(0)
LOG = pd.DataFrame(
    [(f"u{u}", (u + t) % 8, t) for u in range(12) for t in range(4)],
    columns=["user", "item", "time"],
)
TEXT = pd.DataFrame(RNG.normal(size=(10, 5)), columns=list("abcde"))
SIZES = {"epochs": 2, "batch_size": 16, "val_fraction": 0, "progress": False}
SEMCO = SIZES | {"hidden": 4, "out": 3}
SASREC = SIZES | {"blocks": 1, "dropout": 0.0, "max_length": 4}
KINDS = ["semco", "sasrec"]


def fit(kind, log=LOG, text=TEXT, **changes):
    if kind == "semco":
        return SEMCo.fit(log, text, **{**SEMCO, **changes})
    return SASRec.fit(log, text, **{**SASREC, **changes})


def mixed(text=TEXT):
    """Features of which one is counted in thousands."""
    return text.assign(count=1000 * np.arange(len(text)))


# -- scales ---------------------------------------------------------------------------------------


def test_standardised_columns_have_mean_0_and_deviation_1_on_the_rows_that_decide():
    table = RNG.normal(size=(50, 4)) * [1, 1e3, 1e-3, 0] + [0, 1e6, 5, 7]
    scaling = fit_scaling(table, np.arange(40), always=True)
    got = scaling(table[:40])
    np.testing.assert_allclose(got.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(0), [1, 1, 1, 0], atol=1e-5)
    np.testing.assert_array_equal(scaling(np.full((1, 4), np.nan)), np.full((1, 4), np.nan))


@pytest.mark.parametrize(
    ("table", "needed"),
    [
        (RNG.normal(size=(50, 8)), False),
        (np.eye(50), False),  # each genre has one item
        (np.hstack([np.eye(50), 20 * np.ones((50, 1))]), False),
        (np.hstack([np.eye(50), RNG.integers(1, 5, (50, 1)), 1990 + np.eye(50)[:, :1]]), True),
        (RNG.normal(size=(50, 2)) * [1, 1000], True),
        (np.hstack([RNG.normal(size=(50, 8)), np.full((50, 1), 1e-8)]), False),  # rounding noise
        (np.zeros((50, 3)), False),
    ],
)
def test_orders_of_magnitude_decide_whether_columns_are_standardised(table, needed):
    assert (fit_scaling(table, np.arange(50), always=False) is not None) == needed


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_mixed_scales_are_standardised_and_new_items_alike(kind, tmp_path):
    with pytest.warns(UserWarning, match=r"columns of content differ in scale.*=False") as caught:
        model = fit(kind, text=mixed())
    assert len(caught) == 1
    scaled = (mixed() - mixed()[:8].mean()) / mixed()[:8].std(ddof=0)  # 8 and 9 have no clicks
    by_hand = fit(kind, text=scaled)
    np.testing.assert_allclose(model.item, by_hand.item, atol=1e-5)
    np.testing.assert_allclose(model.embed(mixed()), by_hand.embed(scaled), atol=1e-5)
    model.save(tmp_path / "m")
    loaded = jaxcold.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.embed(mixed()), model.embed(mixed()))


def test_standardisation_can_be_forced_either_way():
    forced = fit("semco", standardize=True)
    scaled = (TEXT - TEXT[:8].mean()) / TEXT[:8].std(ddof=0)
    np.testing.assert_allclose(forced.item, fit("semco", text=scaled).item, atol=1e-5)
    assert not fit("semco").modes.scalings
    raw = fit("semco", text=mixed(), standardize=False)
    assert not raw.modes.scalings
    with pytest.raises(ValueError, match='standardize is "auto", True or False'):
        fit("semco", standardize="yes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.assign(e=3.0), "content: 1 of 5 columns are constant"),
        (0 * TEXT, "content: every feature is zero"),
        (0 * TEXT + 2, "content: all rows are equal"),
        (pd.concat([TEXT[:5]] * 2, ignore_index=True), "10 items have 5 distinct contents"),
    ],
)
def test_features_that_say_little_are_named(text, message):
    with pytest.warns(UserWarning, match=message) as caught:
        fit("semco", text=text)
    assert len(caught) == 1


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"user_vector": "leave_one_out"}, {"loss": "gbce"}])
def test_weights_count_by_their_ratios(kind, options):
    if ("loss" in options and kind == "semco") or ("user_vector" in options and kind == "sasrec"):
        pytest.skip("of the other estimator")
    plain = fit(kind, **options)
    ones = fit(kind, LOG.assign(w=1.0), weight="w", **options)
    np.testing.assert_array_equal(ones.item, plain.item)
    assert ones.recommend(["u1"]).equals(plain.recommend(["u1"]))
    weighted = LOG.assign(w=RNG.uniform(0.1, 5, len(LOG)))
    model = fit(kind, weighted, weight="w", **options)
    assert np.abs(model.item - plain.item).max() > 1e-4
    scaled = fit(kind, weighted.assign(w=1000 * weighted["w"]), weight="w", **options)
    np.testing.assert_allclose(scaled.item, model.item, atol=1e-5)
    # Weights that hardly differ go another way through the code, to the same model.
    close = LOG.assign(w=1 + 1e-6 * (LOG["time"] % 2))
    np.testing.assert_allclose(fit(kind, close, weight="w", **options).item, plain.item, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_click_of_weight_0_is_none(kind):
    noise = LOG.assign(item=9, time=LOG["time"] + 10, w=0.0)
    log = pd.concat([LOG.assign(w=1.0), noise], ignore_index=True)
    model = fit(kind, log, weight="w")
    np.testing.assert_array_equal(model.item, fit(kind).item)
    assert 9 in model.cold_items


def test_weights_weigh_the_mean_of_a_user(tmp_path):
    log = LOG.assign(w=np.where(LOG["item"] == 3, 100.0, 1.0))
    model = fit("semco", pd.concat([log, log[:5].assign(w=0.5)]), weight="w")  # the larger counts
    user, item = model.representations()
    own = log[log["user"] == "u2"]
    mean = (own["w"].to_numpy()[:, None] * item[own["item"]]).sum(0)
    np.testing.assert_allclose(user[2], mean / np.linalg.norm(mean), atol=1e-5)
    model.save(tmp_path / "m")
    pd.testing.assert_frame_equal(jaxcold.load(tmp_path / "m").recommend(), model.recommend())
    more = model.add_clicks(pd.DataFrame({"user": ["u2"], "item": [9], "w": [1e6]}))
    np.testing.assert_allclose(more.user_vectors(["u2"])[0], item[9], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (-1.0, 'row 0 .* has "w" -1.0; a weight'),
        (np.nan, 'row 0 .* has "w" nan'),
        (np.inf, 'row 0 .* has "w" inf'),
        (0.0, 'no "w" is above 0'),
        ("x", 'column "w" holds gaps or text'),
    ],
)
def test_weights_that_mean_nothing_are_refused(kind, values, message):
    with pytest.raises(DataError, match=message):
        fit(kind, LOG.assign(w=values), weight="w")


def test_a_column_of_weights_is_named_or_used():
    with pytest.raises(DataError, match=r'0 columns "w"; leave weight out, or add it'):
        fit("semco", weight="w")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit("semco", LOG.assign(rating=2.0, weight=1.0), weight="weight", min_rating=1)
    with pytest.warns(UserWarning, match='"rating", "plays" not used.*weigh with weight='):
        fit("semco", LOG.assign(rating=2.0, weight=1.0, plays=3), weight="weight")


# -- what is held out -----------------------------------------------------------------------------

GROUPS, USERS, WARM, COLD = 4, 60, 60, 12


def tastes():
    """Users of four tastes, items of four kinds, in content with more nuisance than kind."""
    rng = np.random.default_rng(0)
    kind = np.arange(WARM + COLD) % GROUPS
    pairs = [
        (user, item, time)
        for user in range(USERS)
        for time, item in enumerate(
            rng.choice(np.flatnonzero(kind[:WARM] == user % GROUPS), 8, replace=False)
        )
    ]
    text = np.hstack([np.eye(GROUPS)[kind], 2 * rng.normal(size=(len(kind), 8))])
    return pd.DataFrame(pairs, columns=["user", "item", "time"]), text


def test_held_out_items_choose_the_epoch_and_stay_in_the_histories():
    log, text = tastes()
    frame = pd.DataFrame(text)
    options = {"batch_size": 64, "learning_rate": 0.02, "hidden": 16, "out": 8, "progress": False}
    model = SEMCo.fit(log, frame, epochs=12, patience=12, **options)
    assert model.served == "semco"
    curve = model.history
    assert curve.columns.tolist() == ["epoch", "loss", "ndcg@20", "content_knn"]
    assert curve["epoch"].tolist() == [*range(1, 13)]
    best = curve.loc[curve["ndcg@20"].idxmax()]
    assert model.options["epoch"] == best["epoch"]
    assert model.options["val_ndcg@20"] == best["ndcg@20"] >= best["content_knn"]
    # The numbers are those of the vectors that are served, on the held-out items.
    items = pd.Index(range(WARM + COLD))
    split = logs.PairLog.read(log, {"user": "user", "item": "item"}, items, None)
    dataset = split.split(None, None, 0)
    held_out = dataset.split.cold_val_items
    assert len(held_out) == 6
    trained_on = log[~log["item"].isin(held_out)]
    known = trained_on.groupby("user")["item"].agg(list).to_dict()
    got = model.evaluate(log, (20,), histories=known, candidates=held_out, unknown="drop")
    np.testing.assert_allclose(got["ndcg@20"], best["ndcg@20"], atol=1e-6)
    assert model.cold_items.tolist() == [*range(WARM, WARM + COLD)]
    assert model.histories.counts.tolist() == [8] * USERS
    # Without anything held out the last epoch is served, and all clicks train.
    final = SEMCo.fit(log, frame, epochs=2, val_fraction=0, **options)
    assert final.history.columns.tolist() == ["epoch", "loss"]
    assert final.options["epoch"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_content_knn_is_served_where_it_wins(kind, tmp_path):
    log, text = tastes()
    frame = pd.DataFrame(text[:, :GROUPS] + 0.01 * text[:, GROUPS : 2 * GROUPS])
    small = {"hidden": 4, "out": 2} if kind == "semco" else {"blocks": 1, "dim": 2}
    estimator = SEMCo if kind == "semco" else SASRec
    with pytest.warns(UserWarning, match=r"content_knn has ndcg@.*content_knn are served"):
        model = estimator.fit(log, frame, epochs=1, learning_rate=1e-6, progress=False, **small)
    assert model.served == "content_knn"
    unit = vectors.unit_rows(frame.to_numpy(np.float32))
    at = pd.Index(range(WARM + COLD)).get_indexer(model.items)
    np.testing.assert_array_equal(model.item, unit[at])
    np.testing.assert_array_equal(model.embed(frame), unit)
    user = model.user_vectors([5])[0]
    mean = unit[log["item"][log["user"] == 5]].mean(0)
    np.testing.assert_allclose(user, mean / np.linalg.norm(mean), atol=1e-5)
    more = model.add_items([99], frame[:1].set_axis([99]))
    more.save(tmp_path / "m")
    loaded = jaxcold.load(tmp_path / "m")
    assert loaded.served == "content_knn"
    assert loaded.items[-1] == 99
    pd.testing.assert_frame_equal(loaded.recommend([5], k=3), more.recommend([5], k=3))


def test_a_better_closed_form_is_named():
    log, text = tastes()
    loud = 5 * np.random.default_rng(0).normal(size=(len(text), 1))
    text = np.concatenate([text[:, :GROUPS], loud], axis=1)
    small = {"hidden": 4, "out": 2, "epochs": 1, "learning_rate": 1e-6, "progress": False}
    with (
        pytest.warns(UserWarning, match="content_knn are served"),
        pytest.warns(UserWarning, match=r"held out jaxcold\.Linear\(.* has .*, what is served 0\."),
    ):
        SEMCo.fit(log, pd.DataFrame(text), standardize=False, **small)


def test_a_final_fit_of_sequences_trains_on_all_users():
    log, text = tastes()
    only = pd.DataFrame({"user": [3, 3], "item": [WARM, WARM + 1], "time": [90, 91]})
    log = pd.concat([log, only], ignore_index=True)
    options = {"blocks": 1, "dim": 4, "epochs": 1, "max_length": 4, "progress": False}
    final = SASRec.fit(log, pd.DataFrame(text), val_fraction=0, **options)
    assert final.cold_items.tolist() == [*range(WARM + 2, WARM + COLD)]
    reduced = final.embed(text)
    moved = np.linalg.norm(final.item - reduced[final.items], axis=1)
    assert (moved[final.items.isin([WARM, WARM + 1])] > 0).all()
    assert final.history.columns.tolist() == ["epoch", "loss"]


@pytest.mark.parametrize("clicks", [100, 3_000, 30_000, 300_000, 30_000_000])
def test_default_sizes_give_small_logs_enough_steps(clicks):
    batch_size, epochs = semco.default_sizes(clicks)
    steps = epochs * -(-clicks // batch_size)
    assert batch_size <= max(clicks, 64)
    assert steps >= 400
    assert epochs == 10 or steps <= 1100


def test_what_cannot_be_held_out_is_named():
    with pytest.raises(DataError, match=r"8 items with clicks are too few.*val_fraction=0"):
        fit("semco", val_fraction=0.99)
    model = fit("semco", val_fraction=None)  # too few for the default to hold any out
    assert "ndcg@20" not in model.history
