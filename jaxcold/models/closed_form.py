"""Closed forms: linear maps of content that follow from the data without training steps.

x is an item's content, the unit rows of its modes side by side, and Xw that of the n warm items.

- whitened KNN: ``y = (x - m) S^(-1/2)`` with m and S the mean and covariance of Xw, and unit rows.
- ridge: ``y = (Xw' Xw + l2 I)^(-1/2) x``. The sum of ``y_j . y_i`` over a history is what ridge
  regression from the content of warm items onto the user's clicks predicts for item i.

A user is the mean of the y of the history, so a score costs D numbers, and a new item is embedded
from its content alone. Eigenvectors are found once, on the host in float64, for all values of l2;
products run on the device, `BLOCK` rows at a time, in float32.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcold.data.content import history_means, stacked_unit_rows, unit_rows
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.data.sequences.batches import truncate
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.models import layers
from jaxcold.models.content_knn import means_of_last
from jaxcold.types import Csr, DataError, Model, untrained

# Rows embedded by one call: an item's vector has the same bits alone and in any company.
BLOCK = 1024
# Directions in which warm items vary less than this fraction of the widest one say nothing.
_RELATIVE_VARIANCE = 1e-6

# Values of ridge's l2 to choose from, where none are given.
L2 = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

RowMap = Callable[[np.ndarray | Array], Array]  # f32[BLOCK, F] -> f32[BLOCK, D], row by row


class Catalogue(NamedTuple):
    """What a closed form reads of a data set."""

    content: ContentFeatures
    warm: np.ndarray  # i32[n] the items that it is made from
    padding_item: bool = False  # one more item, a row of zeros, see `content_knn.build`
    max_length: int | None = None  # items of a history that count, the last ones; None: all

    @classmethod
    def of(
        cls,
        dataset: Dataset | SequenceDataset,
        max_length: int | None = None,
        padding_item: bool = False,
    ) -> "Catalogue":
        """The content and warm items of a data set.

        Raises:
            DataError: if there is no content.
        """
        if dataset.content is None:
            raise DataError(f"{dataset.name}: has no content, which closed forms need")
        if isinstance(dataset, SequenceDataset):
            warm = np.arange(dataset.num_warm, dtype=np.int32)
            return cls(as_features(dataset.content), warm, padding_item, max_length)
        return cls(dataset.content, dataset.split.warm_items, padding_item, max_length)

    def encode(self, row_map: RowMap, content: Any = None) -> np.ndarray:
        """f32[I, D] of the items, or f32[n, D] of the content of new ones."""
        if content is None:
            rows = encode(self.content, row_map)
            return np.concatenate([rows, np.zeros_like(rows[:1])]) if self.padding_item else rows
        return encode(as_features(content), row_map)

    def read(self, histories: Csr) -> Csr:
        """The items of the histories that count."""
        return histories if self.max_length is None else truncate(histories, self.max_length)


def as_features(content: Any) -> ContentFeatures:
    """Content as modes; that of sequences, f[n, F], is one mode."""
    if isinstance(content, ContentFeatures):
        return content
    rows = np.asanyarray(content)
    return ContentFeatures({"content": rows}, {"content": np.ones(len(rows), bool)})


def encode(content: ContentFeatures, row_map: RowMap, ids: np.ndarray | None = None) -> np.ndarray:
    """f32[n, D]: rows of items, in blocks of one shape.

    Args:
        content: of I items.
        row_map: from rows of `stacked_unit_rows`.
        ids: int[n]; None: all items.

    Raises:
        DataError: if the file of a mapped table has gone.
    """
    if ids is None:
        ids = np.arange(len(next(iter(content.tables.values()))))
    result = np.zeros((0, 0), np.float32)
    for start in range(0, max(len(ids), 1), BLOCK):
        block = ids[start : start + BLOCK]
        padded = np.pad(block, (0, BLOCK - len(block)), constant_values=-1)
        rows = np.asarray(row_map(stacked_unit_rows(*content, padded)))
        if not start:
            result = np.empty((len(ids), rows.shape[1]), np.float32)
        result[start : start + len(block)] = rows[: len(block)]
    return result


@jax.jit
def _project(rows: Array, mean: Array, kernel: Array) -> Array:
    projected = jnp.matmul(rows - mean[None, :], kernel, precision="highest")
    # An item without content stays without a vector: it is not the one at the mean.
    return jnp.where(jnp.any(rows != 0, axis=1, keepdims=True), projected, 0)


_unit = jax.jit(functools.partial(layers.unit_rows, eps=0.0))


@jax.jit
def _centred_gram(rows: Array, mean: Array, is_real: Array) -> Array:
    rows = jnp.where(is_real[:, None], rows - mean[None, :], 0)
    return jnp.matmul(rows.T, rows, precision="highest")


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """``(x - mean) @ kernel``, of norm one if `unit`; a row of zeros stays one."""

    mean: Array  # f32[F]
    kernel: Array  # f32[F, D]
    unit: bool = False

    def __call__(self, rows: np.ndarray | Array) -> Array:
        """f32[BLOCK, F] -> f32[BLOCK, D]."""
        projected = _project(rows, self.mean, self.kernel)
        return _unit(projected) if self.unit else projected


def warm_rows(catalogue: Catalogue, row_map: RowMap) -> Iterator[tuple[Array, int]]:
    """Rows f32[BLOCK, D] of the warm items, and how many of them are no padding."""
    for start in range(0, len(catalogue.warm), BLOCK):
        ids = catalogue.warm[start : start + BLOCK]
        padded = np.pad(ids, (0, BLOCK - len(ids)), constant_values=-1)
        yield row_map(stacked_unit_rows(*catalogue.content, padded)), len(ids)


def gram(
    catalogue: Catalogue, row_map: RowMap, *, centred: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Mean f64[D], and the sum of the outer products f64[D, D], of the rows of the warm items.

    Args:
        catalogue: its warm items.
        row_map: from content to rows.
        centred: subtract the mean before the products; otherwise the mean is zero.
    """
    total: Any = 0.0
    for rows, count in warm_rows(catalogue, row_map):
        total = total + np.asarray(rows)[:count].sum(0, dtype=np.float64)
    mean = total / len(catalogue.warm) * centred
    products: Any = 0.0
    for rows, count in warm_rows(catalogue, row_map):
        is_real = np.arange(BLOCK) < count
        block = _centred_gram(rows, jnp.asarray(mean, jnp.float32), is_real)
        products = products + np.asarray(block, np.float64)
    return mean, products


def whitening(catalogue: Catalogue) -> Projection:
    """Rows centred and whitened on the warm items, of norm one: f32[BLOCK, F] -> f32[BLOCK, D].

    D counts the directions in which warm items vary at all.
    """
    mean, products = gram(catalogue, jnp.asarray, centred=True)
    variance, vectors = np.linalg.eigh(products / len(catalogue.warm))
    kept = variance > _RELATIVE_VARIANCE * variance[-1]
    if not kept.any():
        kept[-1], variance[-1] = True, 1.0  # all items are equal: every row is zero
    kernel = vectors[:, kept] / np.sqrt(variance[kept])
    return Projection(jnp.asarray(mean, jnp.float32), jnp.asarray(kernel, jnp.float32), unit=True)


def whitened_knn(
    dataset: Dataset | SequenceDataset,
    *,
    max_length: int | None = None,
    padding_item: bool = False,
) -> Model:
    """Nearest neighbours in content that is centred and whitened on the warm items.

    Args:
        dataset: of pairs or of sequences, with content.
        max_length: items of a history that count, the last ones; None: all.
        padding_item: one more item, a row of zeros, see `content_knn.build`.

    Raises:
        DataError: if there is no content.
    """
    catalogue = Catalogue.of(dataset, max_length, padding_item)
    return model_of_rows(catalogue, whitening(catalogue))


def model_of_rows(catalogue: Catalogue, row_map: RowMap, *, unit_items: bool = False) -> Model:
    """The model whose users are the means of the rows in their histories.

    Args:
        catalogue: of the data set.
        row_map: from content to rows.
        unit_items: items that are ranked have norm one, those of a history the norm of their row.
            A vector then ends in one more number, that norm, against a zero of the users.
    """

    def encode_items(params: Any, model_state: Any, content: Any = None) -> np.ndarray:
        del params, model_state
        rows = catalogue.encode(row_map, content)
        if not unit_items:
            return rows
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.concatenate([unit_rows(rows), norm], axis=1)

    def encode_users(
        params: Any, model_state: Any, item_vectors: np.ndarray, histories: Csr
    ) -> np.ndarray:
        del params, model_state
        if not unit_items:
            return means_of_last(histories, item_vectors, catalogue.max_length)
        rows = item_vectors[:, :-1] * item_vectors[:, -1:]
        users = history_means(catalogue.read(histories), rows)
        return np.pad(users, ((0, 0), (0, 1)))

    return untrained(encode_items, encode_users)


def ridge(
    dataset: Dataset | SequenceDataset,
    *,
    l2: Sequence[float],
    unit_rows: bool = False,
    max_length: int | None = None,
    padding_item: bool = False,
) -> dict[float, Model]:
    """Ridge regression from content, a model for each l2, from one decomposition.

    Args:
        dataset: of pairs or of sequences, with content.
        l2: what is added to the diagonal of ``Xw' Xw``; positive.
        unit_rows: the items that are ranked have norm one; those in a history do not.
        max_length: items of a history that count, the last ones; None: all.
        padding_item: one more item, a row of zeros, see `content_knn.build`.

    Raises:
        DataError: if there is no content.
        ValueError: for an l2 that is not positive.
    """
    catalogue = Catalogue.of(dataset, max_length, padding_item)
    projections = ridge_projections(catalogue, jnp.asarray, l2)
    return {
        value: model_of_rows(catalogue, projection, unit_items=unit_rows)
        for value, projection in projections.items()
    }


def check_l2(l2: Sequence[float]) -> None:
    """Raises a ValueError unless all are positive numbers, and there is one."""
    if not len(l2) or not all(0 < value < np.inf for value in l2):
        raise ValueError(f"model.l2 is one or more positive numbers, not {tuple(l2)}")


def ridge_projections(
    catalogue: Catalogue, row_map: RowMap, l2: Sequence[float], residual: float = 0.0
) -> dict[float, Projection]:
    """l2 -> ``(Z' Z + (l2 + residual) I)^(-1/2) z``, up to a rotation, of rows z of `row_map`."""
    check_l2(l2)
    _, products = gram(catalogue, row_map)
    values, vectors = np.linalg.eigh(products)
    mean = jnp.zeros(len(values), jnp.float32)
    return {
        value: Projection(
            mean,
            jnp.asarray(vectors / np.sqrt(np.maximum(values, 0) + residual + value), jnp.float32),
        )
        for value in l2
    }
