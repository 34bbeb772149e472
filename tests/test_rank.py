"""Ranking: exact order, ties by item id, hidden items, short pools, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcold.eval.ranking import random_top_k, rank_scores, top_k
from jaxcold.types import Csr, EvalSlice, Representations

METHODS = ("host", "device")


def csr(rows):
    indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return Csr(indptr, np.array([i for row in rows for i in row], np.int32))


def question(users, candidates, exclude=None):
    users = np.array(users, np.int32)
    candidates = np.array(candidates, np.int32)
    hidden = csr(exclude if exclude is not None else [[]] * len(users))
    histories = csr([[0]] * (int(users.max(initial=-1)) + 1))
    positives = csr([[0]] * len(users))
    return EvalSlice(users, histories, positives, hidden, candidates, candidates)


def integers(rng, rows, width, high=3):
    """Vectors whose dot products are exact in float32, in any order of summation."""
    return rng.integers(-high, high + 1, (rows, width)).astype(np.float32)


def sorted_lists(vectors, asked, k):
    """The definition: sort (descending score, ascending id) of what is not hidden."""
    lists = []
    for row, user in enumerate(asked.users):
        hidden = asked.exclude.indices[asked.exclude.indptr[row] : asked.exclude.indptr[row + 1]]
        left = [i for i in asked.candidates.tolist() if i not in set(hidden.tolist())]
        score = {i: float(vectors.user[user] @ vectors.item[i]) for i in left}
        best = sorted(left, key=lambda i: (-score[i], i))[:k]
        lists.append(best + [-1] * (k - len(best)))
    return np.array(lists, np.int32).reshape(len(asked.users), k)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("high", [0, 1, 50], ids=["constant", "many ties", "few ties"])
@pytest.mark.parametrize("k", [1, 20, 299])
def test_equals_sorting(method, high, k):
    """Three blocks, the last one short; hidden items inside and outside the candidates."""
    rng = np.random.default_rng(k)
    vectors = Representations(integers(rng, 30, 4, high), integers(rng, 400, 4, high))
    users = rng.permutation(30)[:23]
    exclude = [rng.permutation(400)[: rng.integers(0, 40)] for _ in users]
    asked = question(users, np.sort(rng.permutation(400)[:300]), exclude)
    got = top_k(vectors, asked, k, block_users=10, method=method)
    np.testing.assert_array_equal(got.items, sorted_lists(vectors, asked, k))
    shown = got.items >= 0
    row, column = np.nonzero(shown)
    want = (vectors.user[asked.users[row]] * vectors.item[got.items[row, column]]).sum(1)
    np.testing.assert_array_equal(got.scores[shown], want)
    np.testing.assert_array_equal(got.scores[~shown], -np.inf)
    np.testing.assert_array_equal(got.users, users)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    width=st.integers(1, 700),
    share=st.floats(0.01, 1),
    levels=st.sampled_from([1, 2, 10, 10**6]),
)
def test_rank_scores_equals_a_stable_sort(seed, n, width, share, levels):
    """Any width (one group, many groups, a ragged last one), any k, any number of ties."""
    rng = np.random.default_rng(seed)
    k = max(1, int(share * width))
    scores = (rng.integers(0, levels, (n, width)) - levels // 2).astype(np.float32)
    hidden = rng.random((n, width)) < rng.choice([0, 0.2, 1])
    exclude = csr([np.flatnonzero(row) for row in hidden])
    want = np.argsort(np.where(hidden, np.inf, -scores), axis=1, kind="stable")[:, :k]
    rest = np.take_along_axis(hidden, want, 1)
    columns, best = rank_scores(scores.copy(), exclude, k)
    np.testing.assert_array_equal(columns, np.where(rest, -1, want))
    np.testing.assert_array_equal(
        best, np.where(rest, -np.inf, np.take_along_axis(scores, want, 1))
    )


@pytest.mark.parametrize("method", METHODS)
def test_zeros_of_either_sign_tie(method):
    vectors = Representations(np.ones((1, 1), np.float32), np.float32([[0.0], [-0.0], [0.0]]))
    got = top_k(vectors, question([0], [0, 1, 2]), 3, method=method)
    np.testing.assert_array_equal(got.items, [[0, 1, 2]])


@pytest.mark.parametrize("method", METHODS)
def test_pool_smaller_than_k(method):
    """Two candidates, one of them hidden from user 1, both from user 2: lists of two."""
    vectors = Representations(np.ones((3, 1), np.float32), np.float32([[1], [5], [9]]))
    asked = question([0, 1, 2], [0, 1], [[], [1], [0, 1, 2]])
    got = top_k(vectors, asked, 3, method=method)
    np.testing.assert_array_equal(got.items, [[1, 0], [0, -1], [-1, -1]])
    inf = np.inf
    np.testing.assert_array_equal(got.scores, [[5, 1], [1, -inf], [-inf] * 2])


@pytest.mark.parametrize("method", METHODS)
def test_a_k_far_beyond_the_pool_allocates_nothing(method):
    """Lists of 10^15 items would not fit into any memory."""
    vectors = Representations(np.ones((3, 1), np.float32), np.float32([[1], [5], [9]]))
    asked = question([0, 1, 2], [0, 1, 2])
    got = top_k(vectors, asked, 10**15, method=method)
    np.testing.assert_array_equal(got.items, [[2, 1, 0]] * 3)
    assert random_top_k(asked, 10**15, seed=0).items.shape == (3, 3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("users", "candidates"), [([], [1, 2]), ([0, 1], []), ([], [])])
def test_nothing_to_rank(method, users, candidates):
    vectors = Representations(np.ones((2, 3), np.float32), np.ones((3, 3), np.float32))
    got = top_k(vectors, question(users, candidates), 2, method=method)
    np.testing.assert_array_equal(got.items, np.full((len(users), min(2, len(candidates))), -1))


def test_block_size_does_not_matter():
    rng = np.random.default_rng(0)
    vectors = Representations(integers(rng, 50, 8), integers(rng, 90, 8))
    asked = question(range(50), range(90))
    want = top_k(vectors, asked, 7)
    for block in (1, 7, 50, 1000):
        got = top_k(vectors, asked, 7, block_users=block)
        np.testing.assert_array_equal(got.items, want.items)


def test_repeats_to_the_bit():
    rng = np.random.default_rng(1)
    vectors = Representations(
        rng.standard_normal((40, 16), np.float32), rng.standard_normal((600, 16), np.float32)
    )
    first, second = (top_k(vectors, question(range(40), range(600)), 20) for _ in range(2))
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_must_be_finite(bad):
    user, item = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    asked = question([0, 2], [1, 3])
    user[1, 0] = item[0, 1] = item[2, 1] = bad  # neither asked for nor a candidate
    top_k(Representations(user, item), asked, 1)
    item[3, 1] = bad
    with pytest.raises(ValueError, match="vector of item 3 is not finite"):
        top_k(Representations(user, item), asked, 1)
    user[2, 1] = bad
    with pytest.raises(ValueError, match="vector of user 2 is not finite"):
        top_k(Representations(user, item), asked, 1)


def test_overflowing_scores_are_refused():
    vectors = Representations(np.full((1, 1), 1e30, np.float32), np.full((1, 1), 1e30, np.float32))
    with pytest.raises(ValueError, match="overflow"):
        top_k(vectors, question([0], [0]), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 255, 600, 699])
def test_scores_must_be_finite(bad, column):
    scores = np.zeros((3, 700), np.float32)
    scores[2, column] = bad
    with pytest.raises(ValueError, match="row 2 holds a score that is NaN or"):
        rank_scores(scores, None, 20)


@pytest.mark.parametrize("k", [0, 6])
def test_rank_scores_checks_k(k):
    with pytest.raises(ValueError, match="k must lie between 1 and the 5 columns"):
        rank_scores(np.zeros((1, 5), np.float32), None, k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": np.array([2, 1])}, "ascending"),
        ({"candidates": np.array([1, 1])}, "ascending"),
        ({"candidates": np.array([1, 4])}, "item ids run from 1 to 4; there are 4"),
        ({"users": np.array([-1, 0])}, "user ids run from -1 to 0"),
        ({"exclude": csr([[1]])}, "exclude has 1 rows for 2 users"),
    ],
)
def test_slice_is_checked(change, message):
    vectors = Representations(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=message):
        top_k(vectors, question([0, 1], [1, 3])._replace(**change), 2)


def test_arguments_are_checked():
    asked = question([0], [1])
    with pytest.raises(ValueError, match="k must be at least 1"):
        random_top_k(asked, 0, seed=0)
    vectors = Representations(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(4, 2\)"):
        top_k(vectors, asked, 1)


def test_random_is_uniform_and_hides():
    """Each of ten left items is as likely as the others in each of five places."""
    users = 6000
    asked = question(range(users), range(0, 24, 2), [[2, 8, 9]] * users)
    lists = random_top_k(asked, 5, seed=0).items
    left = [0, 4, 6, 10, 12, 14, 16, 18, 20, 22]
    assert set(np.unique(lists).tolist()) == set(left)
    assert all(len(set(row)) == 5 for row in lists.tolist())
    for place in range(5):
        counts = np.bincount(lists[:, place], minlength=24)[left]
        # Binomial(6000, 1/10): standard deviation 23; five of them are far out of chance's reach.
        assert np.abs(counts - users / 10).max() < 5 * 23


def test_random_depends_on_the_seed_alone():
    asked = question(range(50), range(100))
    first = random_top_k(asked, 5, seed=3)
    np.testing.assert_array_equal(first.items, random_top_k(asked, 5, seed=3).items)
    assert (first.items != random_top_k(asked, 5, seed=4).items).any()


def test_random_pads_short_pools():
    lists = random_top_k(question([0, 1], [3, 5], [[], [3]]), 3, seed=0).items
    assert sorted(lists[0].tolist()) == [3, 5]
    assert lists[1].tolist() == [5, -1]
