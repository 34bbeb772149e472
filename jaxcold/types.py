"""The contracts between data, models and evaluation.

All ids are internal: contiguous, from 0. External ids stop at the readers. U users, I items,
D embedding width, K list length.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


class DataError(ValueError):
    """Bad input data; the message is one line that names the place and the remedy."""


class MissingDataError(DataError):
    """Files of a data set are absent."""


class Csr(NamedTuple):
    """Compressed sparse rows: row r holds ``indices[indptr[r]:indptr[r + 1]]``."""

    indptr: np.ndarray  # i64[rows + 1]
    indices: np.ndarray  # i32[n]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def counts(self) -> np.ndarray:
        """i64[rows]: entries of each row."""
        return np.diff(self.indptr)

    @property
    def row_of_entry(self) -> np.ndarray:
        """i64[n]: the row that each entry belongs to."""
        return np.repeat(np.arange(self.rows), self.counts)

    @classmethod
    def from_pairs(cls, row: np.ndarray, value: np.ndarray, rows: int) -> "Csr":
        """Groups values by row; inside a row the order of the pairs is kept."""
        order = np.argsort(row, kind="stable")
        indptr = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=indptr[1:])
        return cls(indptr, np.asarray(value)[order].astype(np.int32, copy=False))

    def take(self, rows: np.ndarray) -> "Csr":
        """The named rows, in that order."""
        start = self.indptr[rows]
        counts = self.indptr[np.add(rows, 1)] - start
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        at = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], counts)
        return Csr(indptr, self.indices[at])


class EvalSlice(NamedTuple):
    """One question to a model: rank ``candidates`` for ``users``; ``positives`` are right.

    Which items compete is data, not a branch inside an evaluator.
    """

    users: np.ndarray  # i32[n], each with at least one positive, ascending
    positives: Csr  # n rows: held-out items
    exclude: Csr  # n rows: items never recommended to the user (the training items, when warm)
    candidates: np.ndarray  # i32[C], ascending
    items: np.ndarray  # i32[H]: items whose exposure the Gini diversity counts


class Representations(NamedTuple):
    """What every model ends in: a user's score for an item is the dot product."""

    user: np.ndarray  # f32[U, D]
    item: np.ndarray  # f32[I, D]


class TopK(NamedTuple):
    """Recommendations, best first; ties by ascending item id."""

    users: np.ndarray  # i32[n]
    items: np.ndarray  # i32[n, K]; -1 where the pool has fewer than K
    scores: np.ndarray  # f32[n, K]; -inf there


class ShardingSpec(NamedTuple):
    """Names of the arrays that are split over devices along their first axis.

    All others are on every device. A name is that of a field or key on the way to the array.
    """

    state: tuple[str, ...] = ()  # in parameters, their optimizer state, and `extra`
    fixed: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()


class Model(NamedTuple):
    """What a model file's ``build`` returns: pure functions and the arrays they share.

    `fixed` is passed to the step as an argument, never closed over: a table captured by jit
    becomes program text, twice its size in memory and seconds of compile time.
    """

    fixed: Any  # arrays that no step changes, on the device
    init: Callable[[int], tuple[Any, Any]]  # seed -> (params, extra)
    # (params, extra, fixed, batch, key) -> sum, (weight, extra, logs); with axis=NAME, that of a
    # device: its own parts, of which all but `extra` add up
    loss: Callable
    # (params, extra, part) -> embeddings of the users of a part, "val" or "test", and of all items
    represent: Callable[..., Representations]
    batches: Callable[[np.random.Generator], Iterator[Any]]  # one epoch, constant shapes
    steps_per_epoch: int  # 0 where there is nothing to train
    examples_per_epoch: int  # of the training loss
    # (as for `batches`, number of a batch in the epoch) -> external ids of its examples, by name
    examples: Callable[[np.random.Generator, int], Mapping[str, np.ndarray]] = lambda rng, at: {}
    devices: Any = None  # jaxcold.parallel.Devices on which the arrays are; None: one
    sharding: ShardingSpec = ShardingSpec()
    # Steps that may wait for the device, few where batches are large. Reading a loss this old waits
    # for nothing, and one that is not finite is seen this many steps late at most.
    in_flight: int = 16
