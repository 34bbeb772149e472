"""Epochs of training data in constant shapes, made on the host."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

# Steps by which room is found for all.
SAMPLE = 1024


class Pairs(NamedTuple):
    """One epoch of shuffled (user, item) pairs in S batches of B."""

    user: np.ndarray  # i32[S, B]
    item: np.ndarray  # i32[S, B]
    weight: np.ndarray  # f32[S, B]; 0 marks the padding of the last batch


def shuffled_pairs(
    user: np.ndarray,
    item: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    most: int | None = None,
) -> Pairs:
    """Shuffles all pairs into batches; the last, short one is padded with its last pair.

    Args:
        user: i32[n].
        item: i32[n].
        batch_size: B.
        rng: decides the order.
        most: batches that are wanted, the first ones; unset, all.
    """
    # Half the memory of the order that `permutation(n)` makes, which is the same.
    order = rng.permutation(np.arange(len(user), dtype=np.int32))
    steps = -(-len(user) // batch_size)
    steps = steps if most is None else min(steps, most)
    places = steps * batch_size
    order = order[:places]
    weight = np.ones(places, np.float32)
    weight[len(order) :] = 0
    order = np.pad(order, (0, places - len(order)), mode="edge")
    shape = (steps, batch_size)
    return Pairs(user[order].reshape(shape), item[order].reshape(shape), weight.reshape(shape))


def round_up(size: int) -> int:
    """The next of a few sizes (a factor 2^(1/4) apart), so that shapes seldom change."""
    exponent = np.ceil(4 * np.log2(max(size, 1)))
    return max(8 * int(np.ceil(2 ** (exponent / 4) / 8)), size)


def capacity_of_steps(needs: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Capacity for many steps from what some of them need: they differ little, a margin does the rest.

    Args:
        needs: of each step the same kinds of things.
    """
    return tuple(round_up(int(1.1 * max(need))) for need in zip(*needs, strict=True))


def touched_items(item: np.ndarray, taken: np.ndarray, num_items: int) -> np.ndarray:
    """The ascending ids of a batch's items and of those its users have taken."""
    touched = np.zeros(num_items, bool)
    touched[item] = True
    touched[taken] = True
    return np.flatnonzero(touched)


def apart(ids: np.ndarray, items: int, parts: int, room: int) -> np.ndarray:
    """[parts, room]: ascending ids by part, each part's behind each other, with -1 for the rest.

    Args:
        ids: of items.
        items: of each part: part p owns those from ``p * items`` on.
        parts: their number.
        room: at least the ids of any part.
    """
    part = ids // items
    own = np.full((parts, room), -1, ids.dtype)
    own[part, np.arange(len(ids)) - np.searchsorted(part, part)] = ids
    return own


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
