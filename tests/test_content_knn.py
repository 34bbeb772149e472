"""The training-free baseline: normalisation, missing modes, users without history."""

import numpy as np
import pytest

from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.models import content_knn
from jaxcold.types import Csr


def csr(rows):
    indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return Csr(indptr, np.array([i for row in rows for i in row], np.int32))


def represent(content, histories, present=None):
    """The vectors of users with these histories, and of all items with this content."""
    if present is None:
        present = {mode: np.ones(len(table), bool) for mode, table in content.items()}
    users = np.repeat(np.arange(histories.rows), histories.counts).astype(np.int32)
    items = 1 + int(histories.indices.max())
    train = Interactions(users, histories.indices, histories.rows, items)
    none = np.zeros(0, np.int32)
    split = ColdSplit(train, np.arange(items), none, none, {"warm_train": train.pairs()})
    features = ContentFeatures(content, present)
    ids = np.arange(histories.rows), np.arange(items)
    model = content_knn.build(Dataset("toy", train, split, features, *ids))
    assert model.steps_per_epoch == 0
    params, model_state = model.init(0)
    vectors = model.encode_items(params, model_state)
    return model.encode_users(params, model_state, vectors, histories), vectors


def test_scores_by_hand():
    """Scales of items and of modes drop out; each mode has the weight 1/2."""
    content = {"text": np.array([[3, 0], [0, 5], [1, 0]]), "image": np.array([[7], [2], [-0.1]])}
    user, item = represent(content, csr([[0], [0, 1], []]))
    half = 1 / 2
    # Items 0 and 2 agree in text and oppose in image; items 0 and 1 agree in image alone.
    np.testing.assert_allclose(
        item @ item.T, [[1, half, 0], [half, 1, -half], [0, -half, 1]], atol=1e-6
    )
    np.testing.assert_allclose(user[0] @ item.T, [1, half, 0], atol=1e-7)
    both = (1 + half) / np.sqrt(3)  # |item0 + item1|^2 = 1 + 1 + 2 / 2
    np.testing.assert_allclose(user[1] @ item.T, [both, both, -half / np.sqrt(3)], atol=1e-7)
    np.testing.assert_array_equal(user[2], 0)
    assert user.dtype == item.dtype == np.float32


def test_missing_mode_leaves_the_others():
    """Zeros, or anything where the mode is declared absent."""
    content = {"a": np.array([[1.0, 1], [0, 0], [np.nan, 7]]), "b": np.eye(3)}
    present = {"a": np.array([True, True, False]), "b": np.array([True, True, True])}
    _, item = represent(content, csr([[0]]), present)
    np.testing.assert_array_equal(item[1:], [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    np.testing.assert_allclose(item[0], np.array([0.5, 0.5, 0.5**0.5, 0, 0]), atol=1e-6)


def test_input_is_not_changed():
    table = np.array([[2.0, np.nan], [3, 4]], np.float32)
    before = table.copy()
    represent({"a": table}, csr([[1]]), {"a": np.array([False, True])})
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize(
    ("content", "train", "message"),
    [
        ({}, [[0]], "at least one content mode"),
        ({"a": np.eye(2), "b": np.eye(3)}, [[0]], "{'a': 2, 'b': 3}"),
        ({"a": np.eye(2)}, [[0], [2]], "history item 2 has no content row; there are 2"),
    ],
)
def test_bad_input(content, train, message):
    with pytest.raises(ValueError, match=message):
        represent(content, csr(train))


def test_features_on_disk_give_vectors_on_disk(tmp_path):
    """Mapped features are not made dense in memory, and the vectors are the same."""
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r", allow_pickle=False)
    histories = csr([[0, 39], [7]])
    user, item = represent({"text": rows}, histories)
    user_mapped, item_mapped = represent({"text": mapped}, histories)
    assert isinstance(item_mapped, np.memmap)
    np.testing.assert_array_equal(item_mapped, item)
    np.testing.assert_array_equal(user_mapped, user)
