"""The groups of equal scores that the ends of lists cut, counted while the scores are there.

In a random order of tied candidates, each member of a group of m takes each of its m places with
probability 1 / m. A list of length K holds every group above its last score whole, and its metrics
follow from the list alone. Of the group that its end cuts the list holds a part only. Per user two
counts say where that group is: the candidates strictly above it, and its members. Beyond them only
sums over users are kept, one per candidate and cut-off, so that a group of all candidates costs no
more memory than a group of two.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcold import parallel
from jaxcold.types import Csr, CutTies


class BlockCounts(NamedTuple):
    """Of b users, C candidates, p held-out items among them, c cut-offs."""

    above: Any  # i[b]: candidates above the last score of the list
    members: Any  # i[b]: candidates with that score; 0 where all of them are in the list
    is_tied: Any  # bool[p]: whether the held-out item is one of them
    sums: Any  # f[2, c, C], over the users whose group is cut: `exposure` and `log_unseen`


class TieCounts:
    """Adds up what the blocks of a ranking tell.

    Args:
        held: n rows of held-out items, as columns.
        has_list: bool[n]; False for users who get an empty list.
        width: C, the number of candidates.
        cutoffs: c list lengths.
    """

    def __init__(self, held: Csr, has_list: np.ndarray, width: int, cutoffs: Sequence[int]):
        self.held, self.has_list, self.cutoffs = held, has_list, tuple(cutoffs)
        self._above, self._members = np.zeros((2, held.rows), np.int64)
        self._is_tied = np.zeros(len(held.indices), bool)
        self._sums = np.zeros((2, len(self.cutoffs), width))

    def add(self, rows: slice, counts: BlockCounts) -> None:
        """Adds a block of users, who may be followed by padding."""
        size = rows.stop - rows.start
        entries = slice(self.held.indptr[rows.start], self.held.indptr[rows.stop])
        self._above[rows], self._members[rows] = counts.above[:size], counts.members[:size]
        self._is_tied[entries] = counts.is_tied[: entries.stop - entries.start]
        self._sums += counts.sums[..., : self._sums.shape[2]]

    def result(self, candidates: np.ndarray) -> CutTies:
        """The counts of all users, with item ids in place of columns."""
        held, tied = self.held, self._is_tied
        items = candidates[held.indices[tied]]
        positives = Csr.from_pairs(held.row_of_entry[tied], items, held.rows)
        exposure, log_unseen = (dict(zip(self.cutoffs, sums, strict=True)) for sums in self._sums)
        return CutTies(self._above, self._members, positives, exposure, log_unseen)


def count_ties_on_host(
    counts: TieCounts, rows: slice, scores: np.ndarray, best: np.ndarray, beyond: np.ndarray
) -> BlockCounts | None:
    """`count_ties` in NumPy; it looks at all candidates of those users only whose group is cut.

    None where no group is cut.

    Args:
        counts: of all users.
        rows: the b users of the block.
        scores: f32[b, C].
        best: f32[b, K] scores of the lists.
        beyond: i64[b] candidates that tie with the last one of the list and are not in it.
    """
    last = best[:, -1]
    is_cut = (beyond > 0) & (last > -np.inf) & counts.has_list[rows]
    cut = np.flatnonzero(is_cut)
    if not len(cut):
        return None
    above = np.count_nonzero(best > last[:, None], axis=1)
    members = np.where(is_cut, best.shape[1] - above + beyond, 0)
    held = counts.held.take(np.arange(rows.start, rows.stop))
    row, column = held.row_of_entry, held.indices
    is_tied = is_cut[row] & (scores[row, column] == last[row])
    width = scores.shape[1]
    sums = np.zeros((2, len(counts.cutoffs), width))
    row, column = np.divmod(np.flatnonzero(scores[cut] == last[cut, None]), width)
    for at, k in enumerate(counts.cutoffs):
        share = np.clip(k - above[cut], 0, None) / members[cut]
        for total, value in zip(sums, (share, np.log1p(-share)), strict=True):
            total[at] = np.bincount(column, value[row], width)
    return BlockCounts(above, members, is_tied, sums)


@functools.partial(jax.jit, static_argnums=(0, 1))
def count_ties(
    cutoffs: tuple[int, ...],
    axis: str | None,
    scores: jax.Array,
    best: jax.Array,
    has_list: jax.Array,
    held: jax.Array,
) -> BlockCounts:
    """What a block of users tells, on the device; sums of float32 within the block.

    Args:
        cutoffs: c list lengths, at most K, or all candidates are in the lists.
        axis: of the devices, each of which has a shard of the candidates; None: one has all.
        scores: f32[b, C] of this device's candidates.
        best: f32[b, K] scores of the lists.
        has_list: bool[b]; False for padding too.
        held: i32[2, p] (row, column of this device) of held-out items; beyond b and C: padding.

    Returns:
        The same on every device.
    """
    length = best.shape[1]
    last = best[:, -1]
    # Of one computed array: a score computed twice might be rounded twice, in two ways.
    scores = jax.lax.optimization_barrier(scores)
    equal = scores == last[:, None]
    above = jnp.sum(best > last[:, None], axis=1)
    members = parallel.sum_over_devices(jnp.sum(equal, axis=1), axis)
    is_cut = has_list & (last > -jnp.inf) & (above + members > length)
    members = jnp.where(is_cut, members, 0)
    is_tied = (equal & is_cut[:, None]).at[held[0], held[1]].get(mode="fill", fill_value=False)
    is_tied = parallel.sum_over_devices(is_tied.astype(jnp.int32), axis) > 0
    shares = jnp.stack([jnp.clip(k - above, 0, length) / jnp.maximum(members, 1) for k in cutoffs])
    shares = jnp.where(is_cut[None, :], shares, 0)

    def add_up() -> jax.Array:
        weights = jnp.concatenate([shares, jnp.log1p(-shares)])
        return jnp.matmul(weights, equal.astype(weights.dtype), precision=jax.lax.Precision.HIGHEST)

    def nothing() -> jax.Array:
        return jnp.zeros((2 * len(cutoffs), scores.shape[1]), shares.dtype)

    sums = jax.lax.cond(jnp.any(is_cut), add_up, nothing)
    sums = parallel.gather(sums.T, axis).T
    return BlockCounts(above, members, is_tied, sums.reshape(2, len(cutoffs), -1))


def first_twins(vectors: np.ndarray, shards: int = 1) -> np.ndarray | None:
    """i32[C]: the first row that equals each row, among those of its shard; None if all differ.

    Equal vectors get equal scores only if a matrix product rounds a column alike wherever it
    stands. XLA does not promise that; so twins take over the score of the first of them.

    Args:
        vectors: f32[C, D].
        shards: number of equal shards of the rows; the result counts inside each from 0.
    """
    if not vectors.size:
        return None
    rows = np.ascontiguousarray(vectors + np.float32(0))  # -0 equals 0
    keys = rows.view(np.dtype((np.void, rows.strides[0])))[:, 0]
    firsts = []
    for shard in np.split(keys, shards):
        _, first, group = np.unique(shard, return_index=True, return_inverse=True)
        firsts.append(first[group])
    if all((first == np.arange(len(first))).all() for first in firsts):
        return None
    return np.concatenate(firsts).astype(np.int32)
