"""Content nearest neighbours: the baseline without training.

A user is the mean of the content of the items in the history; an item's score is the dot product
with its content. On a data set of pairs every mode is L2-normalised per item, so that none
outweighs another by its scale, the modes are concatenated and normalised again, and the score is a
cosine. On sequences the features count as they are: neither reduced nor normalised.

Source: "Let It Go? Not Quite", section 4, the baseline Content-KNN.
"""

import tempfile
from typing import Any

import numpy as np

from jaxcold.data.content import history_means, stacked_unit_rows, unit_rows
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.data.sequences.batches import truncate
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.types import Csr, DataError, Model, untrained

_CHUNK = 1 << 14  # rows normalised at once


def build(
    dataset: Dataset | SequenceDataset,
    *,
    max_length: int | None = None,
    padding_item: bool = False,
) -> Model:
    """Content-KNN as a model that has nothing to train.

    Args:
        dataset: of pairs or of sequences, with content.
        max_length: items of a history that count, the last ones; None: all.
        padding_item: one more item, a row of zeros: a candidate in the code published with
            "Let It Go? Not Quite".

    Raises:
        DataError: if there is no content.
    """
    if dataset.content is None:
        raise DataError(f"{dataset.name}: has no content, which content-KNN needs")

    def encode_items(params: Any, model_state: Any, content: Any = None) -> np.ndarray:
        del params, model_state
        content = dataset.content if content is None else content
        if isinstance(content, ContentFeatures):
            return concatenated_unit_rows(content)
        rows = np.asarray(content, np.float32)
        return np.concatenate([rows, np.zeros_like(rows[:1])]) if padding_item else rows

    def encode_users(
        params: Any, model_state: Any, item_vectors: np.ndarray, histories: Csr
    ) -> np.ndarray:
        del params, model_state
        return means_of_last(histories, item_vectors, max_length)

    return untrained(encode_items, encode_users)


def means_of_last(histories: Csr, item_vectors: np.ndarray, max_length: int | None) -> np.ndarray:
    """f32[m, D]: unit mean of the vectors of the last `max_length` items of each history.

    Raises:
        ValueError: for an item without a vector.
    """
    read = histories if max_length is None else truncate(histories, max_length)
    last = read.indices.max(initial=-1)
    if last >= len(item_vectors):
        raise ValueError(f"history item {last} has no content row; there are {len(item_vectors)}")
    return history_means(read, item_vectors)


def concatenated_unit_rows(content: ContentFeatures) -> np.ndarray:
    """f32[I, D] unit rows: the unit rows of all modes side by side, D the sum of their widths.

    An item without content is a row of zeros. Where features are memory-mapped, so is the result
    (of a temporary file that goes with it): it is in memory no more than they are.

    Raises:
        ValueError: if there is no mode, or if the modes disagree on I.
        DataError: if the file of a memory-mapped table has gone.
    """
    if not content.tables:
        raise ValueError("content-KNN needs at least one content mode")
    rows = {mode: len(table) for mode, table in content.tables.items()}
    items = next(iter(rows.values()))
    if any(count != items for count in rows.values()):
        raise ValueError(f"content modes must have one row per item, got {rows}")
    shape = (items, sum(table.shape[1] for table in content.tables.values()))
    result: np.ndarray
    if items and any(isinstance(table, np.memmap) for table in content.tables.values()):
        with tempfile.TemporaryFile() as file:
            result = np.memmap(file, np.float32, "w+", shape=shape)
    else:
        result = np.empty(shape, np.float32)
    for start in range(0, items, _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, items))
        result[ids] = unit_rows(stacked_unit_rows(*content, ids))
    return result
