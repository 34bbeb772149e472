"""Spread over seeds, tests over users and over seeds, share of the oracle."""

import math
import statistics as reference

import numpy as np
import pytest
import scipy.stats

from jaxcold.eval import statistics
from jaxcold.eval.metrics import evaluate
from jaxcold.types import Csr, EvalSlice, TopK


def metrics_of(seed, users=40, items=30):
    """Metrics of random lists; the held-out items do not depend on the seed."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    lists = np.stack([rng.permutation(items)[:20] for _ in range(users)]).astype(np.int32)
    ids = np.arange(users, dtype=np.int32)
    held = np.stack([fixed.permutation(items)[:3] for _ in range(users)]).ravel()
    positives = Csr(np.arange(users + 1) * 3, held.astype(np.int32))
    nothing = Csr(np.zeros(users + 1, np.int64), np.zeros(0, np.int32))
    pool = np.arange(items, dtype=np.int32)
    topk = TopK(ids, lists, np.zeros(lists.shape, np.float32))
    return evaluate(topk, EvalSlice(ids, nothing, positives, nothing, pool, pool), [5, 20])


def test_summarise_by_hand():
    summary = statistics.summarise({"a": [1.0, 2.0, 6.0], "b": [0.25]})
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / (3 - 1))
    assert summary["a"] == {"mean": 3.0, "std": pytest.approx(deviation), "values": [1, 2, 6]}
    assert summary["b"] == {"mean": 0.25, "std": 0.0, "values": [0.25]}


def test_compare_is_a_paired_test_of_seed_means():
    model, baseline = [metrics_of(0), metrics_of(1)], [metrics_of(2)]
    test = statistics.compare(model, baseline, ["ndcg@20"])["ndcg@20"]
    gain = (model[0].per_user["ndcg@20"] + model[1].per_user["ndcg@20"]) / 2
    gain = (gain - baseline[0].per_user["ndcg@20"]).tolist()
    t = reference.mean(gain) / (reference.stdev(gain) / math.sqrt(len(gain)))
    assert test["t"] == pytest.approx(t)
    assert test["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(t), len(gain) - 1))
    assert test["difference"] == pytest.approx(reference.mean(gain))
    assert test["users"] == 40


def test_compare_with_itself_and_with_others():
    one, fewer = metrics_of(0), metrics_of(0, users=39)
    same = statistics.compare([one], [one], ["ndcg@20"])["ndcg@20"]
    p_seeds = same.pop("p_seeds")
    assert same == {"difference": 0.0, "t": 0.0, "p": 1.0, "users": 40}
    assert math.isnan(p_seeds)  # one seed
    with pytest.raises(ValueError, match="same users"):
        statistics.compare([one], [fewer], ["ndcg@20"])
    alone = statistics.compare([metrics_of(0, users=1)], [metrics_of(3, users=1)], ["ndcg@20"])
    assert math.isnan(alone["ndcg@20"]["p"])


def test_share_of_oracle_is_of_accuracy_alone():
    summary = statistics.summarise({"test/cold/ndcg@20": [0.3], "test/cold/gini@20": [0.3]})
    best = statistics.summarise({"test/cold/ndcg@20": [0.4], "test/cold/gini@20": [0.5]})
    assert statistics.share_of_oracle(summary, best) == {"test/cold/ndcg@20": pytest.approx(0.75)}


def test_p_over_seeds_is_welchs():
    """By hand: the standard error of each mean, and Satterthwaite's degrees of freedom."""
    left, right = [0.30, 0.32, 0.31], [0.28, 0.31, 0.27, 0.30]
    a, b = (reference.variance(values) / len(values) for values in (left, right))
    t = (reference.mean(left) - reference.mean(right)) / math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    p = 2 * scipy.stats.t.sf(abs(t), freedom)
    assert statistics.compare_seeds(left, right) == pytest.approx(p)
    assert statistics.compare_seeds(right, left) == pytest.approx(p)


def test_p_over_seeds_against_a_deterministic_method():
    left = [0.30, 0.32, 0.31]
    t = (reference.mean(left) - 0.25) / (reference.stdev(left) / math.sqrt(3))
    p = 2 * scipy.stats.t.sf(t, 2)
    assert statistics.compare_seeds(left, [0.25], deterministic=True) == pytest.approx(p)
    model, baseline = [metrics_of(0), metrics_of(1)], [metrics_of(2)]
    tests = statistics.compare(model, baseline, ["ndcg@20"])
    left, right = ([m.mean()["ndcg@20"] for m in by_seed] for by_seed in (model, baseline))
    p = scipy.stats.ttest_1samp(left, right[0]).pvalue
    assert tests["ndcg@20"]["p_seeds"] == pytest.approx(p)


@pytest.mark.parametrize(
    ("left", "right"),
    [([0.3], [0.2, 0.1]), ([0.3, 0.2], [0.1]), ([], []), ([0.3, math.nan], [0.1, 0.2])],
)
def test_p_over_seeds_needs_two_finite_seeds_of_both(left, right):
    assert math.isnan(statistics.compare_seeds(left, right))


def test_p_over_seeds_without_variance():
    assert statistics.compare_seeds([0.3, 0.3], [0.3, 0.3]) == 1.0
    assert math.isnan(statistics.compare_seeds([0.3, 0.3], [0.2, 0.2]))


def test_many_users_do_not_make_up_for_few_seeds():
    """A gap that many users make significant may lie inside the spread of the seeds."""
    rng = np.random.default_rng(0)
    users = np.arange(20_000)
    hard = rng.random(len(users))
    seeds = [[hard + shift for shift in shifts] for shifts in ((0.02, -0.01, 0.03), (0.0, 0.01))]
    noise = 0.05 * rng.standard_normal(len(users))
    left, right = ({"users": users, "ndcg@20": np.mean(s, 0)} for s in seeds)
    left["ndcg@20"] = left["ndcg@20"] + noise
    assert statistics.paired(left, right, ["ndcg@20"])["ndcg@20"]["p"] < 1e-6
    assert statistics.compare_seeds(*([v.mean() for v in s] for s in seeds)) > 0.3


def test_holm_by_hand():
    """Of four: 4 x .005, 3 x .01, 2 x .03, and .04, which may not be below the one before it."""
    corrected = statistics.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])
    with_nan = statistics.holm([0.5, float("nan"), 0.02, 0.9])
    np.testing.assert_allclose(with_nan, [1.0, np.nan, 0.06, 1.0])
    assert statistics.holm([]) == []
