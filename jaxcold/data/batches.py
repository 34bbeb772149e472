"""Epochs of training data in constant shapes, made on the host."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from jaxcold.types import Csr

T = TypeVar("T")


class Pairs(NamedTuple):
    """One epoch of shuffled (user, item) pairs in S batches of B."""

    user: np.ndarray  # i32[S, B]
    item: np.ndarray  # i32[S, B]
    weight: np.ndarray  # f32[S, B]; 0 marks the padding of the last batch


def shuffled_pairs(
    user: np.ndarray, item: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Pairs:
    """Shuffles all pairs into batches; the last, short one is padded with its last pair."""
    steps = -(-len(user) // batch_size)
    order = np.pad(rng.permutation(len(user)), (0, steps * batch_size - len(user)), mode="edge")
    weight = (np.arange(steps * batch_size) < len(user)).astype(np.float32)
    shape = (steps, batch_size)
    return Pairs(user[order].reshape(shape), item[order].reshape(shape), weight.reshape(shape))


def round_up(size: int) -> int:
    """The next of a few sizes (a factor 2^(1/4) apart), so that shapes seldom change."""
    exponent = np.ceil(4 * np.log2(max(size, 1)))
    return max(8 * int(np.ceil(2 ** (exponent / 4) / 8)), size)


def history_entries(pairs: Pairs, counts: np.ndarray) -> int:
    """The most history entries that the distinct users of any batch have together.

    Args:
        pairs: the batches.
        counts: [users], or [parts, users] where each part of the items is counted alone, and the
            fullest decides.
    """
    return max(int(counts[..., np.unique(user)].sum(-1).max()) for user in pairs.user)


def touched_items(pairs: Pairs, histories: Csr, num_items: int) -> Iterator[np.ndarray]:
    """For each batch the ascending ids of its items and of its users' histories."""
    for user, item in zip(pairs.user, pairs.item, strict=True):
        touched = np.zeros(num_items, bool)
        touched[item] = True
        touched[histories.take(user).indices] = True
        yield np.flatnonzero(touched)


def by_part(histories: Csr, items: int, parts: int) -> Csr:
    """Histories taken apart by item: row ``part * users + user`` holds the part's own ids.

    Args:
        histories: of the users.
        items: of each part: part p owns those from ``p * items`` on.
        parts: their number.
    """
    user = np.repeat(np.arange(histories.rows), histories.counts)
    owner, own = np.divmod(histories.indices, items)
    return Csr.from_pairs(owner * histories.rows + user, own, parts * histories.rows)


def prefetch(source: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Draws from `source` in a thread, at most `depth` ahead; its errors surface here."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in source:
                if not put("value", value):
                    return
            put("end", None)
        except BaseException as error:  # handed to the consumer, whatever it is
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
