"""Batches of sequences as one list of tokens without padding, grouped by length buckets."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxcold.types import Csr

_SHORTEST = 4  # bucket lengths: this, twice this, ... up to the longest sequence
_EVAL_TOKENS = 1 << 14  # slots of one block of histories in evaluation


class Capacity(NamedTuple):
    """The shape of a batch of tokens."""

    tokens: int
    lengths: tuple[int, ...]  # of the buckets, ascending; the last fits the longest sequence
    rows: tuple[int, ...]  # sequences that each bucket holds


class Tokens(NamedTuple):
    """Sequences as one list of T tokens, and the length buckets in which attention is computed.

    NumPy arrays on the host, JAX arrays inside a compiled program.
    """

    item: Any  # i32[T], from 1; 0 is no item
    position: Any  # i32[T]
    target: Any  # i32[T], from 1; 0 is none
    buckets: tuple[Any, ...]  # i32[n, length] each: index of a token, T for none
    slot: Any  # i32[T]: slot of each token among those of all buckets; their number for padding
    weight: Any = None  # f32[T], of the targets; None: 1


def capacity_for(lengths: np.ndarray, batch_size: int) -> Capacity:
    """Capacity that nearly every batch of sequences of these lengths fits, for one program.

    The capacity in tokens is three standard deviations above the mean of a batch, that of each
    bucket four: the padding costs a few per cent of a step whose loss is over a whole catalogue.
    """
    longest = int(lengths.max(initial=1))
    sizes = bucket_lengths(longest)
    count = max(len(lengths), 1)
    fraction = np.bincount(np.searchsorted(sizes, lengths), minlength=len(sizes)) / count
    expected = batch_size * fraction + 4 * np.sqrt(batch_size * fraction * (1 - fraction))
    rows = np.minimum(_up(expected, 8), batch_size)
    used = rows > 0
    tokens = batch_size * lengths.sum() / count + 3 * np.sqrt(batch_size) * (
        lengths.std() if len(lengths) else 0
    )
    most = np.minimum(_up(tokens, 64), batch_size * longest)
    return Capacity(int(most), tuple(np.array(sizes)[used].tolist()), tuple(rows[used].tolist()))


def bucket_lengths(longest: int) -> list[int]:
    """Bucket lengths for sequences of any length up to the longest."""
    sizes = [_SHORTEST]
    while sizes[-1] < longest:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], longest]


def _up(number: Any, multiple: int) -> Any:
    return (multiple * np.ceil(np.asarray(number) / multiple)).astype(int)


def pack(inputs: Csr, targets: np.ndarray, capacity: Capacity) -> Tokens:
    """Sequences as tokens without padding between them.

    Args:
        inputs: item ids from 0, at least one a row.
        targets: i32[n] the id that follows each entry of ``inputs.indices``.
        capacity: where it is exceeded, the tokens grow by eighths and the rows of a bucket double.
    """
    count, lengths = len(inputs.indices), inputs.counts
    size = (
        capacity.tokens
        if count <= capacity.tokens
        else int(_up(count, max(capacity.tokens // 8, 1)))
    )
    item, target, position = (np.zeros(size, np.int32) for _ in range(3))
    item[:count] = inputs.indices + 1
    target[:count] = targets + 1
    position[:count] = np.arange(count) - np.repeat(inputs.indptr[:-1], lengths)
    kind = np.searchsorted(capacity.lengths, lengths)
    buckets = []
    for bucket, (length, rows) in enumerate(zip(capacity.lengths, capacity.rows, strict=True)):
        members = np.flatnonzero(kind == bucket)
        while rows < len(members):
            rows = max(8, 2 * rows)
        at = np.arange(length)
        index = np.full((rows, length), size, np.int32)
        inside = at[None, :] < lengths[members][:, None]
        index[: len(members)] = np.where(inside, inputs.indptr[members][:, None] + at, size)
        buckets.append(index)
    flat = np.concatenate([index.reshape(-1) for index in buckets])
    slot = np.full(size, len(flat), np.int32)
    slot[flat[flat < size]] = np.flatnonzero(flat < size)
    return Tokens(item, position, target, tuple(buckets), slot)


def pad_left_or_right(
    inputs: Csr, targets: np.ndarray | None, rows: int, length: int, *, left: bool
) -> Tokens:
    """Sequences as one bucket whose every slot is a token, padded on one side.

    Args:
        inputs: item ids from 0, at most `length` a row.
        targets: see `pack`; None for none.
        rows: of the bucket, at least those of `inputs`.
        length: of the bucket.
        left: padding comes first, as in the code published with the paper; else last.
    """
    row = inputs.row_of_entry
    place = np.arange(len(inputs.indices)) - np.repeat(inputs.indptr[:-1], inputs.counts)
    if left:
        place += length - inputs.counts[row]
    item, target = (np.zeros((rows, length), np.int32) for _ in range(2))
    item[row, place] = inputs.indices + 1
    if targets is not None:
        target[row, place] = targets + 1
    every = np.arange(rows * length, dtype=np.int32)
    position = np.tile(np.arange(length, dtype=np.int32), rows)
    return Tokens(
        item.reshape(-1), position, target.reshape(-1), (every.reshape(rows, length),), every
    )


def pack_shards(inputs: Csr, targets: np.ndarray, capacity: Capacity, shards: int = 1) -> Tokens:
    """Sequences in equal shards, each packed alone and concatenated in every array.

    Args:
        inputs: see `pack`.
        targets: see `pack`.
        capacity: of each shard, see `pack`.
        shards: their number; all have the same shapes, and indices count within a shard.
    """
    edges = np.arange(shards + 1) * inputs.rows // shards
    pieces = list(_iterate_shards(inputs, targets, edges))
    packed = [pack(*piece, capacity) for piece in pieces]
    shapes = [(len(t.item), tuple(map(len, t.buckets))) for t in packed]
    if len(set(shapes)) > 1:  # the fullest shard decides
        rows = tuple(map(max, zip(*(rows for _, rows in shapes), strict=True)))
        wider = capacity._replace(tokens=max(tokens for tokens, _ in shapes), rows=rows)
        packed = [pack(*piece, wider) for piece in pieces]
    return _concatenate(packed)


def pad_shards(inputs: Csr, targets: np.ndarray, shards: int = 1) -> Tokens:
    """As `pack_shards`, each shard one bucket of the longest length, padded on the left.

    Args:
        inputs: see `pack`.
        targets: see `pack`.
        shards: see `pack_shards`.
    """
    rows, longest = -(-inputs.rows // shards), int(inputs.counts.max())
    edges = np.minimum(np.arange(shards + 1) * rows, inputs.rows)
    pieces = _iterate_shards(inputs, targets, edges)
    return _concatenate([pad_left_or_right(*piece, rows, longest, left=True) for piece in pieces])


def _iterate_shards(
    inputs: Csr, targets: np.ndarray, edges: np.ndarray
) -> Iterator[tuple[Csr, np.ndarray]]:
    """The rows from each edge to the next, and their targets."""
    for first, last in itertools.pairwise(edges):
        own = targets[inputs.indptr[first] : inputs.indptr[last]]
        yield inputs.take(np.arange(first, last)), own


def _concatenate(shards: list[Tokens]) -> Tokens:
    if len(shards) == 1:
        return shards[0]
    item, position, target, shapes, slot, _ = zip(*shards, strict=True)
    join = np.concatenate
    return Tokens(
        join(item),
        join(position),
        join(target),
        tuple(map(join, zip(*shapes, strict=True))),
        join(slot),
    )


def inputs_and_targets(rows: Csr) -> tuple[Csr, np.ndarray]:
    """Windows as inputs, all items but the last of each, and the item after each of them."""
    first, last = rows.indptr[:-1], rows.indptr[1:] - 1
    inputs, after = np.ones((2, len(rows.indices)), bool)
    inputs[last] = False
    after[first] = False
    indptr = rows.indptr - np.arange(len(rows.indptr))
    return Csr(indptr, rows.indices[inputs]), rows.indices[after]


def truncate(history: Csr, length: int) -> Csr:
    """The last items of each row, at most `length`."""
    counts = np.minimum(history.counts, length)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    at = np.arange(indptr[-1]) + np.repeat(history.indptr[1:] - indptr[1:], counts)
    return Csr(indptr, history.indices[at])


def encoding_blocks(
    history: Csr, *, batch: int | None = None, longest: int | None = None
) -> Iterator[tuple[np.ndarray, Tokens, np.ndarray]]:
    """Non-empty rows in blocks of one length, with the index of each row's last token.

    Args:
        history: the rows.
        batch: rows per block in the given order, padded on the left to the longest of them; None
            groups rows of similar length, and the result of a row does not depend on its block.
        longest: length that the bucket lengths are made for; None means that of `history`.
    """
    filled = np.flatnonzero(history.counts > 0)
    if batch is not None:
        for start in range(0, len(filled), batch):
            members = filled[start : start + batch]
            part = history.take(members)
            length = int(part.counts.max())
            last = np.arange(batch) * length + length - 1
            yield members, pad_left_or_right(part, None, batch, length, left=True), last
        return
    for length in bucket_lengths(longest or int(history.counts.max(initial=1))):
        shorter = history.counts <= length
        members, filled = filled[shorter[filled]], filled[~shorter[filled]]
        rows = max(_EVAL_TOKENS // length, 1)
        for start in range(0, len(members), rows):
            block = members[start : start + rows]
            part = history.take(block)
            last = np.zeros(rows, np.int64)
            last[: len(block)] = np.arange(len(block)) * length + part.counts - 1
            yield block, pad_left_or_right(part, None, rows, length, left=False), last
