"""The embedded data set: reproducible, of the promised size, and with a known best ranking."""

import numpy as np
import pytest

from jaxcold.data import load, synthetic, write_split
from jaxcold.data.pairs.evaluation import slices


def unit(rows):
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm == 0, 1, norm)


def mean_ndcg(user, item, question, k=20):
    """NDCG@k of dot products, one user at a time."""
    total = 0.0
    discount = 1 / np.log2(np.arange(k) + 2)
    for row, who in enumerate(question.users):
        score = item[question.candidates] @ user[who]
        best = question.candidates[np.argsort(-score, kind="stable")[:k]]
        held = question.positives
        right = held.indices[held.indptr[row] : held.indptr[row + 1]]
        total += (np.isin(best, right) * discount).sum() / discount[: len(right)].sum()
    return total / len(question.users)


def from_history(dataset, item):
    """Users as the mean of the unit vectors of their training items."""
    item = unit(item)
    user = np.zeros((dataset.interactions.num_users, item.shape[1]))
    np.add.at(user, dataset.split.train.user, item[dataset.split.train.item])
    return user, item


@pytest.fixture(scope="module")
def dataset():
    return synthetic.make(seed=0)


def test_it_has_the_promised_size(dataset):
    interactions = dataset.interactions
    assert (interactions.num_users, interactions.num_items) == (2000, 1500)
    assert 50_000 < len(interactions.user) < 70_000
    assert len({*zip(interactions.user.tolist(), interactions.item.tolist(), strict=True)}) == len(
        interactions.user
    )
    assert len(np.unique(interactions.user)) == 2000
    assert len(np.unique(interactions.item)) == 1500
    assert len(dataset.content.tables) == 2
    for table in dataset.content.tables.values():
        assert len(table) == 1500
        assert np.isfinite(table).all()


def test_some_items_are_much_more_popular_than_others(dataset):
    count = np.sort(np.bincount(dataset.interactions.item))[::-1]
    assert count[:150].sum() > 0.2 * count.sum()
    assert count[-150:].sum() < 0.04 * count.sum()


def test_the_seed_decides_everything():
    first, again, other = (synthetic.make(seed, users=200, items=100) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.interactions.pairs(), again.interactions.pairs())
    for mode, table in first.content.tables.items():
        np.testing.assert_array_equal(table, again.content.tables[mode])
    np.testing.assert_array_equal(first.split.cold_items, again.split.cold_items)
    assert first.interactions.pairs().tolist() != other.interactions.pairs().tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_oracle_leads_content_knn_by_far_and_that_leads_random(seed):
    dataset = synthetic.make(seed)
    question = slices(dataset.split)["test/cold"]
    content = np.concatenate([unit(t) for t in dataset.content.tables.values()], axis=1)
    rng = np.random.default_rng(0)
    oracle = mean_ndcg(*dataset.oracle, question)
    knn = mean_ndcg(*from_history(dataset, content), question)
    random = mean_ndcg(rng.normal(size=(2000, 4)), rng.normal(size=(1500, 4)), question)
    assert oracle > 2 * knn
    assert knn > 2 * random


def test_histories_over_the_true_latents_come_near_the_oracle_but_not_past_it(dataset):
    """So a content encoder that finds the latents can reach most of what is achievable."""
    question = slices(dataset.split)["test/cold"]
    oracle = mean_ndcg(*dataset.oracle, question)
    reached = mean_ndcg(*from_history(dataset, dataset.oracle.item), question)
    assert 0.85 * oracle < reached < oracle


def test_each_mode_shows_part_of_the_latents_and_both_show_all(dataset):
    latent = dataset.oracle.item

    def explained(table):
        """Share of each coordinate's variance that is linear in the content."""
        inputs = np.column_stack([table, np.ones(len(table))])
        fit = inputs @ np.linalg.lstsq(inputs, latent, rcond=None)[0]
        return 1 - (latent - fit).var(axis=0) / latent.var(axis=0)

    text, image = (explained(table) for table in dataset.content.tables.values())
    assert text[:5].min() > 0.8 > 0.3 > text[5:].max()
    assert image[3:].min() > 0.8 > 0.3 > image[:3].max()


def test_it_loads_by_name_with_another_split_too(tmp_path):
    size = {"users": 120, "items": 80}
    first = load("synthetic", split_seed=4, synthetic_options=size)
    write_split(tmp_path / "split.npz", first.split)
    again = load(
        "synthetic", split_seed=4, synthetic_options=size, split_file=tmp_path / "split.npz"
    )
    assert first.oracle is not None
    np.testing.assert_array_equal(first.split.cold_items, again.split.cold_items)
    with pytest.raises(TypeError, match="itmes"):
        load("synthetic", synthetic_options={"itmes": 80})
