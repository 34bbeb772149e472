"""Statistics of a run's metrics: spread over seeds, paired tests, share of the oracle.

Two questions have two tests, both two-sided and neither corrected for the number of tests:

- Do these trained models differ for other users? A paired t-test over users, of per-user values
  averaged over seeds (`compare`, `paired`: "p"). It holds given these seeds: the average hides how
  much the metric changes with the seed.
- Do the methods differ for other seeds, on these users? Welch's t-test on the mean of each seed
  (`compare_seeds`: "p_seeds"). Not paired by seed: a seed's number fixes the start and the order of
  the batches, which have nothing in common between two losses or models, and the methods may have
  different numbers of seeds. Nor are the variances assumed to be equal.

A claim about methods needs the second one.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from jaxcold.eval.metrics import Metrics

Summary = Mapping[str, Mapping[str, Any]]

_OTHER_USERS = "a paired test needs the same users on both sides; compare one slice of one split"
_ACCURACY = ("recall@", "ndcg@", "hr@", "mrr@", "mdg@")


def flatten(by_slice: Mapping[str, Metrics]) -> dict[str, float]:
    """Means of several slices: {"test/cold": ...} -> {"test/cold/ndcg@20": 0.21, ...}."""
    return {
        f"{slice_name}/{name}": value
        for slice_name, metrics in by_slice.items()
        for name, value in metrics.mean().items()
    }


def summarise(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and values over seeds, for each name.

    Args:
        values: name to one value per seed.

    Returns:
        Name to "mean", "std" and "values". The deviation is the sample's (n - 1 in the
        denominator), and 0.0 for a single seed, whose spread is unknown.
    """
    return {
        name: {
            "mean": float(np.mean(column)),
            "std": float(np.std(column, ddof=1)) if len(column) > 1 else 0.0,
            "values": [float(value) for value in column],
        }
        for name, column in values.items()
    }


def compare(
    model: Sequence[Metrics], baseline: Sequence[Metrics], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Tests of a model against a baseline on one slice, over users and over seeds.

    Args:
        model: metrics of the slice, one per seed.
        baseline: likewise; a deterministic method has one.
        names: per-user metrics such as "ndcg@20".

    Returns:
        Name to the values of `paired` and "p_seeds", see `compare_seeds`.

    Raises:
        ValueError: if the users differ.
    """
    tests = paired(seed_means(model), seed_means(baseline), names)
    for name, test in tests.items():
        left, right = ([_mean_of(m, name) for m in by_seed] for by_seed in (model, baseline))
        test["p_seeds"] = compare_seeds(left, right, deterministic=len(baseline) == 1)
    return tests


def compare_seeds(
    left: Sequence[float], right: Sequence[float], *, deterministic: bool = False
) -> float:
    """Two-sided p of a t-test over seeds: do the two methods differ in the mean of a metric?

    Welch's test (see the head of this file), or, against a deterministic method, a t-test of one
    sample against its one value.

    Args:
        left: the metric of each seed.
        right: likewise.
        deterministic: `right` is one value, which no seed changes.

    Returns:
        p; NaN with fewer than two seeds of a method that has seeds, where a value is not finite,
        and where no value changes with the seed; 1 if all of them are the same number.
    """
    x, y = np.asarray(left, np.float64), np.asarray(right, np.float64)
    fewest = min(len(x), 2 if deterministic else len(y))
    if fewest < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    if np.ptp(x) == np.ptp(y) == 0:  # without any variance there is no t
        return 1.0 if x[0] == y[0] else float("nan")
    if deterministic:
        return float(scipy.stats.ttest_1samp(x, y[0]).pvalue)
    return float(scipy.stats.ttest_ind(x, y, equal_var=False).pvalue)


def seed_means(by_seed: Sequence[Metrics]) -> dict[str, np.ndarray]:
    """Per-user values of a slice, averaged over seeds: "users" i32[n] and "ndcg@20", .. f64[n].

    Raises:
        ValueError: if the users differ.
    """
    users = by_seed[0].users
    if any(not np.array_equal(users, metrics.users) for metrics in by_seed):
        raise ValueError(_OTHER_USERS)
    names = by_seed[0].per_user
    means = {name: np.mean([m.per_user[name] for m in by_seed], axis=0) for name in names}
    return {"users": users, **means}


def item_means(by_seed: Sequence[Metrics]) -> dict[str, np.ndarray]:
    """Per-item values of a slice, averaged over seeds.

    Returns:
        "items" i32[H] that some user holds out, "holders" i64[H], "mdg@20", "found@20", .. f64[H];
        "pool" i32[S], the items whose exposure counts, and "exposure@20", .. f64[S].
    """
    first = by_seed[0]
    groups = [m.per_item | m.found | m.exposure for m in by_seed]
    means = {name: np.mean([values[name] for values in groups], axis=0) for name in groups[0]}
    return {"items": first.items, "holders": first.holders, "pool": first.pool, **means}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p values for their number; NaN stays NaN and is not counted.

    The k-th smallest of m, counted from 0, is multiplied by ``m - k``; none becomes smaller than
    one before it, or larger than 1. Comparing the results with 0.05 bounds the probability of any
    false finding by 0.05.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    values = np.asarray(p, np.float64)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    raised = values[order] * (len(order) - np.arange(len(order)))
    values[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(value) for value in values]


def paired(
    left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Paired t-tests over users, given these seeds, for each name.

    Args:
        left: result of `seed_means`.
        right: likewise, of the same users.
        names: per-user metrics such as "ndcg@20".

    Returns:
        Name to "difference" (mean of left less right), "t", "p" (two-sided; 1 where no user
        differs) and "users" (their number).

    Raises:
        ValueError: if the users differ.
    """
    if not np.array_equal(left["users"], right["users"]):
        raise ValueError(_OTHER_USERS)
    tests = {}
    for name in names:
        x, y = left[name], right[name]
        t, p = 0.0, 1.0
        if not np.array_equal(x, y):
            with warnings.catch_warnings():  # one user, or one difference for all: t is not finite
                warnings.simplefilter("ignore", RuntimeWarning)
                t, p = scipy.stats.ttest_rel(x, y)
        tests[name] = {
            "difference": float(np.mean(x - y)) if len(x) else float("nan"),
            "t": float(t),
            "p": float(p),
            "users": len(x),
        }
    return tests


def share_of_oracle(metrics: Summary, oracle: Summary) -> dict[str, float]:
    """Mean over the oracle's mean, for the accuracy metrics of both sides."""
    return {
        name: metrics[name]["mean"] / oracle[name]["mean"]
        for name in metrics
        if name in oracle
        and name.rpartition("/")[2].startswith(_ACCURACY)
        and oracle[name]["mean"] > 0
    }


def _mean_of(metrics: Metrics, name: str) -> float:
    values = metrics.per_user[name]
    return float(values.mean()) if len(values) else float("nan")
