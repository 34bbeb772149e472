"""Content nearest neighbours: the training-free baseline.

Every mode is L2-normalised per item, so that no mode outweighs another by its scale; the modes are
concatenated and normalised again. A user is the normalised mean of the items in the training set.
The score is then the cosine between the user's profile and the item's content.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcold.data import content as vectors
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences import evaluation as questions
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.types import Csr, DataError, Model, Representations


def represent(
    content: Mapping[str, np.ndarray],
    train: Csr,
    present: Mapping[str, np.ndarray] | None = None,
) -> Representations:
    """User and item vectors of the content baseline.

    Args:
        content: mode name to [I, D_m] features, of any float type. A row of zeros is a missing
            mode, which then has no part in the item's vector.
        train: one row of warm training items per user.
        present: mode name to bool[I]; where False, the row counts as missing whatever it holds.

    Returns:
        f32[U, D] and f32[I, D] vectors, D the sum of the widths of the modes. Users without
        training items and items without content are zero vectors.

    Raises:
        ValueError: if there is no mode, or if the modes or the training items disagree on I.
        DataError: if the file of a memory-mapped table has gone.
    """
    if not content:
        raise ValueError("content-KNN needs at least one content mode")
    rows = {name: len(table) for name, table in content.items()}
    items = next(iter(rows.values()))
    if any(count != items for count in rows.values()):
        raise ValueError(f"content modes must have one row per item, got {rows}")
    if train.indices.max(initial=-1) >= items:
        raise ValueError(
            f"training item {train.indices.max()} has no content row; there are {items} rows"
        )
    modes = []
    for name, table in content.items():
        there = np.ones(items, bool) if present is None else present[name]
        modes.append(vectors.take_unit_rows(np.asanyarray(table), there, np.arange(items)))
    item = vectors.unit_rows(np.concatenate(modes, axis=1))
    return Representations(vectors.history_means(train, item), item)


def of_sequences(dataset: SequenceDataset, part: str, *, max_length: int) -> Representations:
    """The mean content of a user's last items, against the content of all items.

    The features count as they are: neither reduced nor normalised.

    Args:
        dataset: the data.
        part: "val" or "test", see `jaxcold.data.sequences.evaluation.histories`.
        max_length: items of a history that count.

    Returns:
        f32[n, F] a row per question, zero where there is no history, and f32[num_items, F].

    Raises:
        DataError: if there is no content.

    Source: "Let It Go? Not Quite", section 4, the baseline Content-KNN.
    """
    if dataset.content is None:
        raise DataError(f"{dataset.name}: has no content, which content-KNN needs")
    item = np.asarray(dataset.content, np.float32)
    history = packing.truncate(questions.histories(dataset, part), max_length)
    return Representations(vectors.history_means(history, item), item)


def build(dataset: SequenceDataset, *, max_length: int) -> Model:
    """Content-KNN of sequences as a model that has nothing to train."""

    def represent(params: Any, extra: Any, part: str) -> Representations:
        del params, extra
        return of_sequences(dataset, part, max_length=max_length)

    def nothing(*_: Any) -> Any:
        raise ValueError("content-KNN has nothing to train")

    return Model(None, lambda seed: ({}, ()), nothing, represent, nothing, 0, 0)
