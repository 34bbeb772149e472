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

    @classmethod
    def empty(cls, rows: int) -> "Csr":
        """Rows without entries."""
        return cls(np.zeros(rows + 1, np.int64), np.zeros(0, np.int32))

    def take(self, rows: np.ndarray) -> "Csr":
        """The named rows, in that order."""
        start = self.indptr[rows]
        counts = self.indptr[np.add(rows, 1)] - start
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        at = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], counts)
        return Csr(indptr, self.indices[at])


class EvalSlice(NamedTuple):
    """A ranking task: rank ``candidates`` for ``users`` and compare with ``positives``.

    Which items compete, and what is known of a user, are data and not branches of an evaluator.
    """

    users: np.ndarray  # i32[n] rows of `histories`, ascending, each with at least one positive
    histories: Csr  # m rows: the items that a model reads of a user; slices may share them
    positives: Csr  # n rows: held-out items
    exclude: Csr  # n rows: items never recommended to the user (the training items, when warm)
    candidates: np.ndarray  # i32[C], ascending
    items: np.ndarray  # i32[H]: items whose exposure the Gini diversity counts
    list_without_history: bool = True  # False: users whose history is empty get an empty list


class Representations(NamedTuple):
    """Vectors of users and items: a user's score for an item is the dot product."""

    user: np.ndarray  # f32[m, D], row r belongs to row r of the histories
    item: np.ndarray  # f32[I, D]


class CutTies(NamedTuple):
    """The group of equal scores that the end of each list cuts, if it cuts one.

    In a random order of its members, each is as likely as the others to be at each of the
    places that begin after the `above` better ones.
    """

    above: np.ndarray  # i64[n]: candidates with a higher score than the last item of the list
    members: np.ndarray  # i64[n]: candidates with its score, in the list or not; 0: none is cut off
    positives: Csr  # n rows: the held-out items among them
    # Cut-off -> f64[C], over the users whose group is cut there: expected lists that show the
    # candidate, and the logarithm of the probability that none of them does.
    exposure: Mapping[int, np.ndarray]
    log_unseen: Mapping[int, np.ndarray]


class TopK(NamedTuple):
    """Recommendations, best first; ties by ascending item id."""

    users: np.ndarray  # i32[n]
    items: np.ndarray  # i32[n, K]; -1 where fewer than K candidates remain
    scores: np.ndarray  # f32[n, K]; -inf there
    # Set: metrics are expected values over random orders of equal scores. None: the lists as given.
    ties: CutTies | None = None


class ShardingSpec(NamedTuple):
    """Names of the arrays that are sharded over devices along their first axis.

    All others are replicated. A name is that of a field or key on the path to the array.
    """

    state: tuple[str, ...] = ()  # in parameters, their optimizer states, and the model state
    constants: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()


class Model(NamedTuple):
    """What a method's ``build`` returns: pure functions and the arrays that they share.

    The top-level keys of the parameters are the groups. A step updates them in the order of
    `losses`, each by the gradient of its own loss and by its own optimizer; a later group sees
    what the earlier ones became. A method with one group calls it "main".

    `constants` are an argument of the step and never closed over: a table captured by jit becomes
    program text, twice its size in memory and seconds of compile time.
    """

    constants: Any  # arrays that no step changes, on the devices
    init: Callable[[int], tuple[dict[str, Any], Any]]  # seed -> (params, model_state)
    # group -> (params, model_state, constants, batch, key) -> sum, (weight, model_state, metrics).
    # With axis=NAME that of one device: all but the model state add up over the devices.
    losses: Mapping[str, Callable[..., Any]]
    optimizers: Mapping[str, Any]  # group -> optax transformation
    batches: Callable[[np.random.Generator], Iterator[Any]]  # one epoch, constant shapes
    # (params, model_state) -> f32[I, D] of all items of the data set. With a third argument, the
    # content of n new items as the data set holds it, f32[n, D] from their content alone.
    encode_items: Callable[..., np.ndarray]
    # (params, model_state, item vectors, histories) -> f32[m, D]. Of a data set of pairs, row r is
    # user r, for methods that know users by number.
    encode_users: Callable[..., np.ndarray]
    steps_per_epoch: int = 0  # 0: nothing to train
    examples_per_epoch: int = 0  # of the training loss
    epochs: int = 0  # of a whole training, which the optimizers' schedules are made for
    # The first epochs train what is not served, such as a teacher: none of them can be the best.
    pretraining_epochs: int = 0
    # (as for `batches`, number of a batch in the epoch) -> external ids of its examples, by name
    examples: Callable[[np.random.Generator, int], Mapping[str, np.ndarray]] = lambda rng, at: {}
    devices: Any = None  # jaxcold.parallel.Devices that train; None: one
    sharding: ShardingSpec = ShardingSpec()
    # Dispatched steps that may wait for the device; few where batches are large. A loss that is not
    # finite is seen this many steps late at most.
    in_flight: int = 16
    # Arrays that no step reads and that a saved model needs beside its parameters.
    saved: Any = None
    # (params, model_state, score of such two on validation, higher is better) -> model_state: what
    # a method leaves to validation once training has ended; None: nothing.
    choose: Callable[[Any, Any, "Score"], Any] | None = None


Score = Callable[[Any, Any], float]


def untrained(encode_items: Callable[..., np.ndarray], encode_users: Callable[..., Any]) -> Model:
    """A model without parameters: nothing to train."""

    def no_batches(rng: np.random.Generator) -> Iterator[Any]:
        raise ValueError("this method has nothing to train")

    return Model(None, lambda seed: ({}, ()), {}, {}, no_batches, encode_items, encode_users)
