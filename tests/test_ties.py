"""Equal scores: metrics are expected over random orders, to the last bit where there are none."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_main import small

from experiments import clothing, movielens
from experiments import config as base
from experiments import method as methods
from experiments import task as tasks
from experiments.bench.toy import write_log, write_mmrec
from jaxcold import parallel
from jaxcold.eval import ranking
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.eval.metrics import evaluate, gini_diversity
from jaxcold.eval.ranking import top_k
from jaxcold.eval.ties import first_twins
from jaxcold.types import Csr, EvalSlice, Representations, TopK, untrained

PLACES = ("host", "device", "shard_map", "pmap")


def csr(rows):
    return Csr.from_pairs(
        np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        np.array([i for row in rows for i in row], np.int32),
        len(rows),
    )


def ranked(vectors, task, cutoffs, where="host", **options):
    """Lists with ties, made on the host, on a device, or on several."""
    devices = parallel.choose(where, count=3) if where in ("shard_map", "pmap") else parallel.ONE
    method = "host" if where == "host" else "device"
    k = max(cutoffs)
    return top_k(vectors, task, k, tie_cutoffs=cutoffs, method=method, devices=devices, **options)


def orders(scores, task, row):
    """All orders of a user's candidates, equally likely, best first."""
    hidden = set(task.exclude.take([row]).indices.tolist())
    left = [i for i in task.candidates.tolist() if i not in hidden]
    if not task.list_without_history and not task.histories.counts[task.users[row]]:
        left = []
    levels = sorted({scores[i] for i in left}, reverse=True)
    groups = [[i for i in left if scores[i] == level] for level in levels]
    for choice in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [i for group in choice for i in group]


def by_brute_force(vectors, task, k):
    """The metrics of every order, averaged."""
    users = len(task.users)
    per_user = {name: np.zeros(users) for name in ("recall", "ndcg", "hr", "mrr")}
    shown = np.zeros((users, 100))
    gains = {}
    for row, user in enumerate(task.users):
        held = set(task.positives.take([row]).indices.tolist())
        lists = list(orders(vectors.item @ vectors.user[user], task, row))
        for item in held:
            ranks = [order[:k].index(item) + 1 for order in lists if item in order[:k]]
            gains.setdefault(item, []).append(
                sum(1 / math.log2(rank + 1) for rank in ranks) / len(lists)
            )
        for order in lists:
            hit = [i for i, item in enumerate(order[:k]) if item in held]
            ideal = sum(1 / math.log2(i + 2) for i in range(min(len(held), k)))
            values = {
                "recall": len(hit) / len(held),
                "ndcg": sum(1 / math.log2(i + 2) for i in hit) / ideal,
                "hr": float(bool(hit)),
                "mrr": 1 / (hit[0] + 1) if hit else 0.0,
            }
            for name, value in values.items():
                per_user[name][row] += value / len(lists)
            shown[row, order[:k]] += 1 / len(lists)
    mdg = [sum(gains[item]) / len(gains[item]) for item in sorted(gains)]
    return per_user, mdg, shown.sum(0)[task.items], 1 - np.prod(1 - shown, axis=0)[task.items]


def assert_expected(got, vectors, task, cutoffs, tolerance=1e-12):
    for k in cutoffs:
        per_user, mdg, shown, covered = by_brute_force(vectors, task, k)
        for name, values in per_user.items():
            np.testing.assert_allclose(
                got.per_user[f"{name}@{k}"], values, atol=1e-12, err_msg=f"{name}@{k}"
            )
        np.testing.assert_allclose(got.per_item[f"mdg@{k}"], mdg, atol=1e-12)
        np.testing.assert_allclose(got.exposure[f"exposure@{k}"], shown, atol=tolerance)
        np.testing.assert_allclose(got.covered[f"coverage@{k}"], covered, atol=tolerance)
        mean = got.mean()
        if shown.any():
            assert mean[f"gini@{k}"] == pytest.approx(gini_diversity(shown), abs=1e-6)
        assert mean[f"coverage@{k}"] == pytest.approx(covered.mean(), abs=1e-6)


def drawn_task(rng, users, items, held_out):
    """Whole-number vectors, hidden items, held-out items in and out of the candidates."""
    levels = rng.integers(1, 3)
    vectors = Representations(
        rng.integers(0, levels + 1, (users + 1, 2)).astype(np.float32),
        rng.integers(0, levels + 1, (items, 2)).astype(np.float32),
    )
    candidates = np.sort(rng.permutation(items)[: rng.integers(1, items + 1)]).astype(np.int32)
    rows = rng.permutation(users + 1)[:users].astype(np.int32)
    task = EvalSlice(
        users=rows,
        histories=csr([[0] * int(rng.integers(0, 2)) for _ in range(users + 1)]),
        positives=csr([rng.integers(0, items, held_out).tolist() for _ in rows]),
        exclude=csr([rng.permutation(items)[: rng.integers(0, 3)].tolist() for _ in rows]),
        candidates=candidates,
        items=candidates[:: rng.integers(1, 3)],
        list_without_history=bool(rng.integers(0, 2)),
    )
    return vectors, task


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), users=st.integers(1, 4), items=st.integers(1, 6))
def test_on_the_host_metrics_are_the_mean_over_all_orders(seed, users, items):
    rng = np.random.default_rng(seed)
    vectors, task = drawn_task(rng, users, items, held_out=int(rng.integers(1, 4)))
    cutoffs = sorted(set(rng.integers(1, 9, 2).tolist()))
    lists = ranked(vectors, task, cutoffs, block_users=int(rng.integers(1, 4)))
    assert_expected(evaluate(lists, task, cutoffs), vectors, task, cutoffs)


@pytest.mark.parametrize("where", PLACES[1:])
@pytest.mark.parametrize("seed", range(4))
def test_on_devices_they_are_the_same(where, seed):
    """One shape for all seeds, so that little is compiled; the last block is padded."""
    rng = np.random.default_rng(seed)
    vectors, task = drawn_task(rng, 5, 6, held_out=3)
    task = task._replace(candidates=np.arange(6, dtype=np.int32), items=np.arange(6))
    lists = ranked(vectors, task, (1, 3), where, block_users=2)
    # Sums of float32 within a block.
    assert_expected(evaluate(lists, task, (1, 3)), vectors, task, (1, 3), tolerance=1e-6)


@pytest.mark.parametrize("where", PLACES)
def test_a_group_of_all_candidates_is_shared_by_all(where):
    """Far more ties than the list is long, two of them held out."""
    items, k = 500, 10
    vectors = Representations(np.ones((3, 2), np.float32), np.ones((items, 2), np.float32))
    pool = np.arange(items, dtype=np.int32)
    nothing = csr([[], [], []])
    held = csr([[0, 499], [0, 499], [7, 8]])
    task = EvalSlice(np.arange(3), nothing, held, csr([[], [], [0, 1, 7]]), pool, pool)
    got = evaluate(ranked(vectors, task, (k,), where), task, (k,))
    np.testing.assert_allclose(
        got.per_user["recall@10"], [k / 500, k / 500, k / 497 / 2], atol=1e-12
    )
    none = 490 * 489 / (500 * 499)
    np.testing.assert_allclose(got.per_user["hr@10"], [1 - none, 1 - none, k / 497], atol=1e-12)
    discounts = sum(1 / math.log2(rank + 1) for rank in range(1, k + 1))
    np.testing.assert_allclose(
        got.per_item["mdg@10"],
        [discounts / 500, 0, discounts / 497, discounts / 500],
        atol=1e-12,
    )
    shown = got.exposure["exposure@10"]
    np.testing.assert_allclose(shown[[0, 1, 7]], 2 * k / 500, rtol=1e-6)
    np.testing.assert_allclose(shown[2], 2 * k / 500 + k / 497, rtol=1e-6)
    assert got.mean()["coverage@10"] == pytest.approx(
        (3 * (1 - 0.98**2) + 497 * (1 - 0.98**2 * (1 - k / 497))) / 500, abs=1e-6
    )


def test_coverage_over_every_joint_order():
    """Two users with orders of their own: three candidates tie for one, two for the other."""
    vectors = Representations(np.eye(2, dtype=np.float32), np.float32([[1, 2], [1, 1], [1, 1]]))
    pool = np.arange(3, dtype=np.int32)
    task = EvalSlice(np.arange(2), csr([[], []]), csr([[0], [1]]), csr([[], []]), pool, pool)
    k = 2
    seen = []
    for one in orders(vectors.item @ vectors.user[0], task, 0):
        for other in orders(vectors.item @ vectors.user[1], task, 1):
            seen.append(len({*one[:k], *other[:k]}) / 3)
    got = evaluate(ranked(vectors, task, (k,)), task, (k,))
    assert got.mean()["coverage@2"] == pytest.approx(sum(seen) / len(seen), abs=1e-12)


def test_without_ties_the_numbers_are_those_of_the_lists():
    rng = np.random.default_rng(0)
    vectors = Representations(
        rng.standard_normal((30, 8), np.float32), rng.standard_normal((50, 8), np.float32)
    )
    pool = np.arange(50, dtype=np.int32)
    held = csr([rng.permutation(50)[:4].tolist() for _ in range(30)])
    nothing = csr([[]] * 30)
    task = EvalSlice(np.arange(30), nothing, held, nothing, pool, pool)
    lists = ranked(vectors, task, (3, 7))
    assert not lists.ties.members.any()
    got, want = (evaluate(x, task, (3, 7)) for x in (lists, lists._replace(ties=None)))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_by_id_the_lowest_ids_are_shown():
    """One user, three twins, the last of them held out."""
    model = untrained(lambda *_: np.ones((3, 1), np.float32), lambda *_: np.ones((1, 1)))
    pool = np.arange(3, dtype=np.int32)
    task = EvalSlice(np.arange(1), csr([[]]), csr([[2]]), csr([[]]), pool, pool)
    by_id = evaluate_model(model, {}, (), {"x": task}, (1,), ties="id")["x"].mean()
    expected = evaluate_model(model, {}, (), {"x": task}, (1,))["x"].mean()
    assert (by_id["hr@1"], by_id["coverage@1"]) == (0, 1 / 3)
    assert expected["hr@1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="ties is 'expected' or 'id', not 'random'"):
        evaluate_model(model, {}, (), {"x": task}, (1,), ties="random")


def test_ties_of_another_cut_off_are_refused():
    vectors = Representations(np.ones((1, 1), np.float32), np.ones((3, 1), np.float32))
    pool = np.arange(3, dtype=np.int32)
    task = EvalSlice(np.arange(1), csr([[]]), csr([[2]]), csr([[]]), pool, pool)
    with pytest.raises(ValueError, match="ties were not counted at cut-off 1"):
        evaluate(ranked(vectors, task, (2,)), task, (1,))


def test_twins_take_the_score_of_the_first_of_them(monkeypatch):
    """A product that rounds by position, as XLA may: without twins, no two scores would tie."""
    rng = np.random.default_rng(0)
    item = rng.standard_normal((4, 3), np.float32)[[0, 1, 0, 2, 1, 0]]
    item[5] = np.where(item[5] == 0, -0.0, item[5])
    np.testing.assert_array_equal(first_twins(item), [0, 1, 0, 3, 1, 0])
    np.testing.assert_array_equal(first_twins(item, shards=2), [0, 1, 0, 0, 1, 2])
    np.testing.assert_array_equal(first_twins(np.float32([[0.0], [-0.0]])), [0, 0])
    assert first_twins(item[:2]) is None
    matmul = jax.numpy.matmul

    def by_position(a, b, **options):
        return matmul(a, b, **options) * (
            1 + jax.numpy.arange(b.shape[1], dtype=np.float32)[None, :] * 1e-6
        )

    monkeypatch.setattr(ranking.jnp, "matmul", by_position)
    user = rng.standard_normal((2, 3), np.float32)
    hidden = np.full((2, 1), 2, np.int32)
    scores = np.asarray(ranking._score.__wrapped__(user, item, first_twins(item), hidden))
    np.testing.assert_array_equal(scores[:, 0], scores[:, 5])
    np.testing.assert_array_equal(scores[:, 1], scores[:, 4])
    assert (scores[:, 0] != scores[:, 1]).all()


def test_lists_are_in_the_order_of_ids_either_way():
    vectors = Representations(np.ones((1, 1), np.float32), np.ones((9, 1), np.float32))
    pool = np.arange(9, dtype=np.int32)
    task = EvalSlice(np.arange(1), csr([[]]), csr([[2]]), csr([[]]), pool, pool)
    lists = ranked(vectors, task, (4,))
    assert lists.items.tolist() == [[0, 1, 2, 3]]
    assert isinstance(lists, TopK)
    assert (lists.ties.above.tolist(), lists.ties.members.tolist()) == ([0], [9])


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("semco", "pairs"),
        ("content_knn", "pairs"),
        ("sasrec_frozen", "sequences"),
        ("content_knn", "sequences"),
    ],
)
def test_items_of_equal_content_have_equal_vectors(model, kind, tmp_path):
    """To the last bit, wherever they stand in the catalogue: else their scores would not tie."""
    if kind == "pairs":
        write_mmrec(tmp_path / "data", "clothing", ("text",), users=90, items=601)
        config = clothing.get_config(model)
        config = small(config) if model == "semco" else config
    else:
        write_log(tmp_path / "data", users=600, items=301)
        config = movielens.get_config(model)
    rng = np.random.default_rng(0)
    path = tmp_path / "data" / "text_feat.npy"
    group = np.append(np.arange(97), rng.integers(0, 97, len(np.load(path)) - 97))
    np.save(path, rng.normal(size=(97, 33)).astype(np.float32)[group])
    with config.unlocked():
        config.data.root = str(tmp_path / "data")
        if kind == "sequences" and model != "content_knn":
            config.model.update(dim=7, blocks=1, max_length=6)
    config = base.resolve(config)
    task = tasks.of(config)
    dataset = task.load(config)
    built = methods.find(model).build(config, dataset, parallel.ONE)
    vectors = np.asarray(built.encode_items(*built.init(0)))
    content = dataset.content if kind == "sequences" else dataset.content.tables["text"]
    _, first, inverse = np.unique(content, axis=0, return_index=True, return_inverse=True)
    assert len(first) < len(content) / 2
    assert f", {len(first)} distinct contents" in task.describe(dataset)
    np.testing.assert_array_equal(vectors[: len(inverse)], vectors[first[inverse.ravel()]])
