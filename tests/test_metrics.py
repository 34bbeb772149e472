"""Metrics: the reference's numbers, arithmetic by hand, and plain loops as an oracle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcold.eval.metrics import evaluate, gini_diversity
from jaxcold.types import Csr, EvalSlice, TopK

CASES = (
    "full",
    "noheld",
    "holdout_subset",
    "empty_users",
    "few_cands",
    "few_cands_gt_outside",
    "uniform",
    "onelist",
)


def csr(rows):
    """Rows of a list of lists."""
    indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return Csr(indptr, np.array([i for row in rows for i in row], np.int32))


def case(lists, positives, pool):
    """Lists (all of one length, -1 pads) and held-out items of users 0, 1, ..."""
    users = np.arange(len(lists), dtype=np.int32)
    items = np.array(lists, np.int32)
    pool = np.array(pool, np.int32)
    topk = TopK(users, items, np.zeros(items.shape, np.float32))
    nothing = csr([[]] * len(lists))
    return topk, EvalSlice(users, nothing, csr(positives), nothing, pool, pool)


@pytest.mark.parametrize("name", CASES)
def test_golden(golden, name):
    """Every value of the reference's metric code, user by user and item by item."""
    data = golden("semco/metrics")
    k = int(data[f"{name}__K"])
    lists = data[f"{name}__topk"]
    padded = np.full((len(lists), k), -1)
    padded[:, : lists.shape[1]] = lists
    held_out = Csr(data[f"{name}__gt_ptr"], data[f"{name}__gt_items"].astype(np.int32))
    users = np.flatnonzero(held_out.counts)
    pool = data[f"{name}__holdout_items"].astype(np.int32)
    nothing = csr([[]] * len(users))
    question = EvalSlice(users, nothing, held_out.take(users), nothing, pool, pool)
    metrics = evaluate(TopK(users, padded[users], padded[users]), question, [k])
    mean = metrics.mean()
    for metric in ("recall", "ndcg"):
        np.testing.assert_allclose(
            metrics.per_user[f"{metric}@{k}"],
            data[f"{name}__{metric}_per_user"][users],
            rtol=0,
            atol=1e-12,
        )
        np.testing.assert_allclose(mean[f"{metric}@{k}"], data[f"{name}__{metric}"], atol=1e-12)
    mdg = data[f"{name}__mdg_per_item"]
    np.testing.assert_array_equal(metrics.items, np.flatnonzero(~np.isnan(mdg)))
    np.testing.assert_allclose(metrics.per_item[f"mdg@{k}"], mdg[metrics.items], atol=1e-12)
    np.testing.assert_allclose(mean[f"mdg@{k}"], data[f"{name}__mdg_mean"], atol=1e-12)
    np.testing.assert_allclose(mean[f"gini@{k}"], data[f"{name}__gini_div"], atol=1e-12)


def test_by_hand():
    """Two users, cut-offs 1 and 3, every value as arithmetic."""
    lists = [[7, 5, 6], [5, 8, 7]]
    positives = [[5, 6, 9, 4], [5]]
    metrics = evaluate(*case(lists, positives, [4, 5, 6, 7, 8]), [1, 3])
    log2 = math.log2
    want_user = {
        "recall@1": [0 / 4, 1 / 1],
        "recall@3": [2 / 4, 1 / 1],
        "ndcg@1": [0, 1],
        "ndcg@3": [(1 / log2(3) + 1 / log2(4)) / (1 + 1 / log2(3) + 1 / log2(4)), 1],
        "hr@1": [0, 1],
        "hr@3": [1, 1],
        "mrr@1": [0, 1],
        "mrr@3": [1 / 2, 1],
    }
    assert metrics.per_user.keys() == want_user.keys()
    for name, want in want_user.items():
        np.testing.assert_allclose(metrics.per_user[name], want, atol=1e-15, err_msg=name)
    np.testing.assert_array_equal(metrics.items, [4, 5, 6, 9])
    np.testing.assert_allclose(metrics.per_item["mdg@1"], [0, 1 / 2, 0, 0], atol=1e-15)
    np.testing.assert_allclose(
        metrics.per_item["mdg@3"], [0, (1 / log2(3) + 1) / 2, 1 / log2(4), 0], atol=1e-15
    )
    np.testing.assert_array_equal(metrics.exposure["exposure@3"], [0, 2, 1, 2, 1])
    mean = metrics.mean()
    # Exposures 0 1 1 2 2: the ten pairs differ by 1+1+2+2 + 0+1+1 + 1+1 + 0 = 10; n^2 mean = 30.
    assert mean["gini@3"] == pytest.approx(1 - 10 / 30, abs=1e-15)
    assert mean["coverage@3"] == 4 / 5
    assert mean["coverage@1"] == 2 / 5
    assert mean["mdg@1"] == 1 / 8
    assert mean["recall@3"] == 3 / 4


def test_ideal_counts_held_out_items_beyond_the_pool():
    """Two held-out items, one candidate: a perfect list is still short of NDCG 1."""
    metrics = evaluate(*case([[3, -1]], [[3, 8]], [3]), [2])
    assert metrics.per_user["ndcg@2"][0] == pytest.approx(1 / (1 + 1 / math.log2(3)), abs=1e-15)
    assert metrics.per_user["recall@2"][0] == 1 / 2


def test_repeated_held_out_item_counts_once():
    metrics = evaluate(*case([[3, 4]], [[3, 3, 3]], [3, 4]), [2])
    assert metrics.mean()["recall@2"] == 1
    assert metrics.mean()["mdg@2"] == 1


def test_nobody_to_evaluate_gives_nan():
    mean = evaluate(*case(np.zeros((0, 3)), [], [1, 2]), [3]).mean()
    assert math.isnan(mean["recall@3"])
    assert math.isnan(mean["mdg@3"])
    assert math.isnan(mean["gini@3"])
    assert mean["coverage@3"] == 0


@pytest.mark.parametrize(
    ("counts", "want"),
    [([3, 3, 3], 1.0), ([0, 0, 5], 1 / 3), ([1, 3], 1 - 2 / (4 * 2)), ([7], 1.0)],
)
def test_gini(counts, want):
    assert gini_diversity(np.array(counts)) == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_gini_of_nothing_is_nan(counts):
    assert math.isnan(gini_diversity(np.array(counts, int)))


@pytest.mark.parametrize("cutoff", [0, 3])
def test_cutoff_out_of_range(cutoff):
    with pytest.raises(ValueError, match=f"cut-off {cutoff} is outside 1..2"):
        evaluate(*case([[1, 2]], [[1]], [1, 2, 5]), [cutoff])


def test_cutoff_beyond_the_candidates():
    """Three held-out items, two candidates: as if the list went on with no item."""
    metrics = evaluate(*case([[3, 4]], [[4, 8, 9]], [3, 4]), [2, 10**6])
    padded = evaluate(*case([[3, 4, -1, -1]], [[4, 8, 9]], [3, 4]), [2, 4])
    for group in ("per_user", "per_item", "exposure"):
        got, wanted = getattr(metrics, group), getattr(padded, group)
        assert {name.replace("@1000000", "@4"): v.tolist() for name, v in got.items()} == {
            name: v.tolist() for name, v in wanted.items()
        }
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics.per_user["ndcg@1000000"][0] == pytest.approx(1 / math.log2(3) / ideal)


def test_user_without_held_out_item_is_refused():
    with pytest.raises(ValueError, match="user 1 holds nothing out"):
        evaluate(*case([[1], [2]], [[1], []], [1, 2]), [1])


def test_lists_of_other_users_are_refused():
    topk, question = case([[1], [2]], [[1], [2]], [1, 2])
    with pytest.raises(ValueError, match="different users"):
        evaluate(topk._replace(users=topk.users[::-1]), question, [1])


def test_positives_of_other_users_are_refused():
    topk, question = case([[1], [2]], [[1], [2]], [1, 2])
    with pytest.raises(ValueError, match="positives has 1 rows for 2 users"):
        evaluate(topk, question._replace(positives=csr([[1]])), [1])


def loops(lists, positives, pool, k):
    """The definitions, one user and one item at a time."""
    out = {name: [] for name in ("recall", "ndcg", "hr", "mrr")}
    discount = [1 / math.log2(r + 1) for r in range(1, k + 1)]
    gains = {}
    for row, held in zip(lists, positives, strict=True):
        hits = [item in held for item in row[:k]]
        out["recall"].append(sum(hits) / len(held))
        dcg = sum(d for d, hit in zip(discount, hits, strict=True) if hit)
        out["ndcg"].append(dcg / sum(discount[: len(held)]))
        out["hr"].append(float(any(hits)))
        out["mrr"].append(1 / (1 + hits.index(True)) if any(hits) else 0.0)
        for item in held:
            at = row[:k].index(item) if item in row[:k] else None
            gains.setdefault(item, []).append(0.0 if at is None else discount[at])
    means = {name: sum(v) / len(v) for name, v in out.items()}
    means["mdg"] = sum(sum(v) / len(v) for v in gains.values()) / len(gains)
    shown = [sum(item in row[:k] for row in lists) for item in pool]
    differences = sum(abs(a - b) for i, a in enumerate(shown) for b in shown[:i])
    total = sum(shown)
    means["gini"] = 1 - differences / (len(pool) * total) if total else math.nan
    means["coverage"] = sum(x > 0 for x in shown) / len(pool)
    return means


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), length=st.integers(1, 6))
def test_agrees_with_loops(seed, n, length):
    """Random lists of distinct items with padding; held-out items in and out of the pool."""
    rng = np.random.default_rng(seed)
    pool = np.sort(rng.choice(12, rng.integers(1, 9), replace=False)).tolist()
    lists, positives = [], []
    for _ in range(n):
        full = rng.permutation(12)[: rng.integers(0, length + 1)].tolist()
        lists.append(full + [-1] * (length - len(full)))
        positives.append(rng.permutation(12)[: rng.integers(1, 9)].tolist())
    cutoffs = sorted({1, length})
    mean = evaluate(*case(lists, positives, pool), cutoffs).mean()
    for k in cutoffs:
        for name, want in loops(lists, positives, pool, k).items():
            np.testing.assert_allclose(mean[f"{name}@{k}"], want, atol=1e-12, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_bounds_and_monotone(seed):
    """All values lie in [0, 1]; recall, hr, mrr, mdg and coverage never fall with the cut-off."""
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(15)[:8].tolist() for _ in range(7)]
    positives = [rng.permutation(15)[: rng.integers(1, 6)].tolist() for _ in range(7)]
    cutoffs = [1, 2, 5, 8]
    mean = evaluate(*case(lists, positives, range(15)), cutoffs).mean()
    assert all(-1e-15 <= value <= 1 + 1e-15 for value in mean.values())
    for name in ("recall", "hr", "mrr", "mdg", "coverage"):
        values = [mean[f"{name}@{k}"] for k in cutoffs]
        assert values == sorted(values)
