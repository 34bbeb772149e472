"""Epochs of training data in constant shapes, made on the host."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

# Steps whose needs decide the capacity for all steps.
SAMPLE = 1024

# A batch of more is made on the host for minutes before its memory is known.
_LARGEST = 1 << 24


def check_batch_size(batch_size: int, examples: int) -> None:
    """Raises a ValueError unless a batch has an example, and more than 2^24 only for as many."""
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, not {batch_size}")
    if batch_size > max(_LARGEST, examples):
        raise ValueError(
            f"batch_size={batch_size} is beyond the {examples} training examples; "
            f"set at most {examples}"
        )


class Pairs(NamedTuple):
    """One epoch of shuffled (user, item) pairs in S batches of B."""

    user: np.ndarray  # i32[S, B]
    item: np.ndarray  # i32[S, B]
    weight: np.ndarray  # f32[S, B], of the pairs; 0 marks the padding of the last batch


def relative_weights(weights: np.ndarray) -> np.ndarray:
    """f32[n] weights divided by their mean: only ratios count, and sums neither grow nor vanish."""
    return (weights / weights.mean(dtype=np.float64)).astype(np.float32)


def shuffled_pairs(
    user: np.ndarray,
    item: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    most: int | None = None,
    weight: np.ndarray | None = None,
) -> Pairs:
    """Shuffles all pairs into batches; the last, short one is padded with its last pair.

    Args:
        user: i32[n].
        item: i32[n].
        batch_size: B.
        rng: decides the order.
        most: number of batches to return, the first ones; None returns all.
        weight: f32[n] of the pairs; None: 1.
    """
    # Equals `permutation(n)` in half the memory: int32 instead of int64.
    order = rng.permutation(np.arange(len(user), dtype=np.int32))
    steps = -(-len(user) // batch_size)
    steps = steps if most is None else min(steps, most)
    places = steps * batch_size
    order = order[:places]
    weights = np.zeros(places, np.float32)
    weights[: len(order)] = 1 if weight is None else weight[order]
    order = np.pad(order, (0, places - len(order)), mode="edge")
    shape = (steps, batch_size)
    return Pairs(user[order].reshape(shape), item[order].reshape(shape), weights.reshape(shape))


def round_up(size: int) -> int:
    """The next of a few sizes (a factor 2^(1/4) apart), so that shapes seldom change."""
    exponent = np.ceil(4 * np.log2(max(size, 1)))
    return max(8 * int(np.ceil(2 ** (exponent / 4) / 8)), size)


def capacity_of_steps(needs: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Capacity for every step of an epoch: the largest need of the sampled steps and a margin.

    Args:
        needs: for each sampled step, the sizes that it needs, in the same order.
    """
    return tuple(round_up(int(1.1 * max(need))) for need in zip(*needs, strict=True))


def touched_items(item: np.ndarray, taken: np.ndarray, num_items: int) -> np.ndarray:
    """Ascending ids of the items in a batch and in the histories of its users."""
    touched = np.zeros(num_items, bool)
    touched[item] = True
    touched[taken] = True
    return np.flatnonzero(touched)


def group_by_shard(ids: np.ndarray, items: int, shards: int, capacity: int) -> np.ndarray:
    """[shards, capacity]: the ids that each shard of the item table owns, padded with -1.

    Args:
        ids: item ids, ascending.
        items: rows of a shard: shard s owns the items from ``s * items`` on.
        shards: their number.
        capacity: at least the number of ids of any shard.
    """
    shard = ids // items
    groups = np.full((shards, capacity), -1, ids.dtype)
    groups[shard, np.arange(len(ids)) - np.searchsorted(shard, shard)] = ids
    return groups


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
