"""The best K candidates of every user, by the dot product of user and item vectors.

Users are scored in blocks, so memory does not grow with their number. Equal scores are ordered by
ascending item id on every backend. Scores that differ only by rounding are not equal: two backends
whose matrix products round differently may order such a pair differently.

For metrics that average over the orders of equal scores, `jaxcold.eval.ties` adds what a list of
length K does not show: the rest of the group that its end cuts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcold import parallel
from jaxcold.eval.ties import BlockCounts, TieCounts, count_ties, count_ties_on_host, first_twins
from jaxcold.types import Csr, EvalSlice, Representations, TopK

# Scores in a block. On the host 4 MB of float32 stay in a core's cache between the passes over
# them. With many candidates a block has this many users still, or the product is inefficient.
_HOST_BLOCK = 2**20
_DEVICE_BLOCK = 2**24
_MIN_USERS = 32


def top_k(
    representations: Representations,
    eval_slice: EvalSlice,
    k: int,
    *,
    tie_cutoffs: Sequence[int] = (),
    block_users: int | None = None,
    method: Literal["auto", "host", "device"] = "auto",
    devices: parallel.Devices = parallel.ONE,
) -> TopK:
    """Ranked candidates of a slice for each of its users, by dot product.

    Args:
        representations: user f32[U, D] and item f32[I, D] vectors.
        eval_slice: which users, which candidate items, and the items hidden from each user.
        k: length of the lists; at most the number of candidates is used.
        tie_cutoffs: of metrics that are expected over random orders of equal scores; the lists
            then have `ties`, and items with equal vectors get equal scores to the last bit.
        block_users: users scored at once; unset, chosen from the number of candidates.
        method: where the best k of the scores are selected: "device" is ``lax.top_k``, "host"
            NumPy. "auto" takes the host where JAX has only the CPU: there ``lax.top_k`` takes
            several times as long as the matrix product.
        devices: several devices rank a shard of the candidates each, then the best of the shards
            are merged; the lists are the same.

    Returns:
        n lists of K = min(k, candidates) items, padded with -1 and -inf for users from whom some of
        the candidates are hidden and fewer than K remain.

    Raises:
        ValueError: if a vector is not finite or so large that a score would overflow, if ids are
            out of range, or if the arrays of the slice do not fit together.
    """
    _check(representations, eval_slice, k)
    user = np.asarray(representations.user, np.float32)[eval_slice.users]
    item = np.asarray(representations.item, np.float32)[eval_slice.candidates]
    _check_finite(user, eval_slice.users, "user")
    _check_finite(item, eval_slice.candidates, "item")
    _check_overflow(user, item)
    if devices.mesh is not None:
        method = "device"
    elif method == "auto":
        method = "host" if jax.default_backend() == "cpu" else "device"
    if block_users is None:
        budget = _HOST_BLOCK if method == "host" else _DEVICE_BLOCK
        block_users = max(budget // max(len(item), 1), _MIN_USERS)
    hidden = _columns(eval_slice.exclude, eval_slice.candidates)
    counts = None
    if tie_cutoffs:
        held = _columns(eval_slice.positives, eval_slice.candidates)
        counts = TieCounts(held, ~_without_list(eval_slice), len(item), tie_cutoffs)
    k = min(k, len(item))
    columns, scores = _blocks(user, item, hidden, k, block_users, method, devices, counts)
    lists = _as_lists(eval_slice, columns, scores)
    return lists if counts is None else lists._replace(ties=counts.result(eval_slice.candidates))


def random_top_k(eval_slice: EvalSlice, k: int, seed: int) -> TopK:
    """Random lists, the lower bound for every method.

    Each user gets k distinct candidates, none of them hidden, uniformly at random; popularity has
    no influence. The lists depend on the slice and the seed alone.

    Args:
        eval_slice: which users, which candidate items, and the items hidden from each user.
        k: length of the lists; at most the number of candidates is used.
        seed: of the NumPy generator.

    Returns:
        n lists of K = min(k, candidates) items, padded as in `top_k`; the scores are the uniform
        numbers that order them.

    Raises:
        ValueError: if k < 1 or if the arrays of the slice do not fit together.
    """
    _check(None, eval_slice, k)
    rng = np.random.default_rng(seed)
    hidden = _columns(eval_slice.exclude, eval_slice.candidates)
    n, width = len(eval_slice.users), len(eval_slice.candidates)
    columns = np.empty((n, min(k, width)), np.int32)
    scores = np.empty((n, min(k, width)), np.float32)
    block = max(_HOST_BLOCK // max(width, 1), _MIN_USERS)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        drawn = rng.random((rows.stop - rows.start, width), dtype=np.float32)
        columns[rows], scores[rows] = rank_scores(drawn, _rows(hidden, rows), columns.shape[1])
    return _as_lists(eval_slice, columns, scores)


def rank_scores(scores: np.ndarray, exclude: Csr | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of every row, best first, equal scores by ascending column.

    A row's k-th largest maximum over disjoint groups of columns is no larger than its k-th largest
    score. So one pass for the maxima and one comparison leave little more than k columns to sort,
    and none of the best k is lost.

    Args:
        scores: f32[n, C]; -inf marks a column that the row must not get. The excluded entries are
            overwritten with -inf.
        exclude: n rows of columns that the row must not get.
        k: 1 <= k <= C, or 0 where C is 0.

    Returns:
        i32[n, k] columns and f32[n, k] scores, padded with -1 and -inf.

    Raises:
        ValueError: if a score that may be recommended is NaN or +inf, or if k is out of range.
    """
    columns, best, _ = _rank(scores, exclude, k)
    return columns, best


def _rank(
    scores: np.ndarray, exclude: Csr | None, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`rank_scores`, and i64[n] entries beyond the list that tie with its last one."""
    n, width = scores.shape
    if not min(1, width) <= k <= width:
        raise ValueError(f"k must lie between 1 and the {width} columns, got {k}")
    if exclude is not None:
        scores[exclude.row_of_entry, exclude.indices] = -np.inf
    columns = np.full((n, k), -1, np.int32)
    best = np.full((n, k), -np.inf, np.float32)
    beyond = np.zeros(n, np.int64)
    if not columns.size:
        return columns, best, beyond

    groups = min(width, max(256, 8 * k))
    maxima = scores[:, :groups].copy()
    for start in range(groups, width, groups):
        chunk = scores[:, start : start + groups]
        np.maximum(maxima[:, : chunk.shape[1]], chunk, out=maxima[:, : chunk.shape[1]])
    if not (maxima < np.inf).all():  # false for NaN as well
        bad = np.flatnonzero(~(maxima < np.inf).all(1))[0]
        raise ValueError(f"row {bad} holds a score that is NaN or +inf; scores must be finite")
    bound = np.partition(maxima, groups - k, axis=1)[:, groups - k]

    # -inf as the bound means fewer than k groups with anything to recommend: take all of it.
    chosen = scores >= np.maximum(bound, np.finfo(np.float32).min)[:, None]
    flat = np.flatnonzero(chosen)  # several times as fast as nonzero of a matrix
    counts = np.bincount(flat // width, minlength=n)
    crowded = np.flatnonzero(counts > 4 * k)
    if len(crowded):  # many ties: keep exactly k, so that a constant row costs no full sort
        chosen[crowded], beyond[crowded] = _exactly_k(scores[crowded], k)
        counts[crowded] = k
        flat = np.flatnonzero(chosen)
    row, column = np.divmod(flat, width)
    value = scores[row, column]
    # Stable, and columns ascend inside a row: equal scores stay in the order of their columns.
    order = np.lexsort((-value, row))
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = rank < k
    row_left, value_left = row[~keep], value[order[~keep]]
    order, row, rank = order[keep], row[keep], rank[keep]
    columns[row, rank] = column[order]
    best[row, rank] = value[order]
    beyond += np.bincount(row_left[value_left == best[row_left, k - 1]], minlength=n)
    return columns, best, beyond


def _exactly_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """bool[n, C]: the k best entries of each row, ties at the k-th score by ascending column.

    The second result is i64[n], how many of these ties are not among the k.
    """
    last = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k, None]
    above = scores > last
    tied = scores == last
    free = k - np.count_nonzero(above, axis=1, keepdims=True)
    order = np.cumsum(tied, axis=1, dtype=np.int32)
    return above | (tied & (order <= free)), order[:, -1] - free[:, 0]


def _blocks(
    user: np.ndarray,
    item: np.ndarray,
    hidden: Csr,
    k: int,
    block: int,
    method: str,
    devices: parallel.Devices,
    ties: TieCounts | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Best columns and scores of all users; blocks are padded to one shape and compiled once."""
    n = len(user)
    columns = np.empty((n, k), np.int32)
    best = np.empty((n, k), np.float32)
    if not best.size:
        return columns, best
    block = min(block, n)
    blocks = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    hidden_entries = _entries(hidden, blocks, block)
    padding = -len(item) % devices.n
    item_rows = np.pad(item, ((0, padding), (0, 0))) if padding else item
    twins = None if ties is None else first_twins(item_rows, devices.n)
    placed = devices.put((item_rows, twins), sharded=True)
    cutoffs = () if ties is None else ties.cutoffs
    held_entries = None
    if ties is not None and method == "device":
        held_entries = _entries(ties.held, blocks, block)
    pending: list[tuple] = []

    def finish_oldest() -> None:
        rows, result, counts = pending.pop(0)
        size = rows.stop - rows.start
        if method == "device":
            (scores, chosen), counts = jax.device_get((result, counts))
            columns[rows] = np.where(scores[:size] == -np.inf, -1, chosen[:size])
            best[rows] = scores[:size]
        else:
            scores = np.asarray(result)[:size]
            columns[rows], best[rows], beyond = _rank(scores, None, k)
            if ties is not None:
                counts = count_ties_on_host(ties, rows, scores, best[rows], beyond)
        if ties is not None and counts is not None:
            ties.add(rows, counts)

    for rows in blocks:
        size = rows.stop - rows.start
        vectors = np.zeros((block, user.shape[1]), np.float32)
        vectors[:size] = user[rows]
        hides = hidden_entries(rows)
        tied = None
        if ties is not None and held_entries is not None:
            tied = np.pad(ties.has_list[rows], (0, block - size)), held_entries(rows)
        if devices.mesh is not None:
            best_of_shards = _best(devices, k, len(item), cutoffs, vectors, placed, hides, tied)
            pending.append((rows, *best_of_shards))
        else:
            scores = _score(vectors, *placed, hides)
            if method == "device":
                pending.append((rows, *_select(k, cutoffs, scores, tied)))
            else:
                pending.append((rows, scores, None))
        if len(pending) > 1:  # the next block is scored while this one is selected from
            finish_oldest()
    finish_oldest()
    return columns, best


def _entries(csr: Csr, blocks: Sequence[slice], block: int) -> Callable[[slice], np.ndarray]:
    """From the rows of a block to its entries, i32[2, n] (row, column), n the same for all blocks.

    Padding points past the last row, where a scatter with mode "drop" writes nothing.
    """
    longest = max(int(csr.indptr[rows.stop] - csr.indptr[rows.start]) for rows in blocks)
    longest = 2 ** (longest - 1).bit_length() if longest else 0  # few shapes: few compilations

    def entries(rows: slice) -> np.ndarray:
        part = _rows(csr, rows)
        result = np.full((2, longest), block, np.int32)
        result[0, : len(part.indices)] = part.row_of_entry
        result[1, : len(part.indices)] = part.indices
        return result

    return entries


@jax.jit
def _score(
    user: jax.Array, item: jax.Array, twins: jax.Array | None, hidden: jax.Array
) -> jax.Array:
    """Scores [b, C], -inf where hidden [2, n] (row, column); see `first_twins`."""
    # Accelerators multiply float32 in fewer bits unless told otherwise.
    scores = jnp.matmul(user, item.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(scores == 0, 0.0, scores)  # -0 and +0 are a tie, not an order
    if twins is not None:
        scores = scores.at[:, twins].get(mode="promise_in_bounds")
    return scores.at[hidden[0], hidden[1]].set(-jnp.inf, mode="drop")


_Selected = tuple[tuple[jax.Array, jax.Array], BlockCounts | None]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _best(
    devices: parallel.Devices,
    k: int,
    count: int,
    cutoffs: tuple[int, ...],
    user: jax.Array,
    items: tuple[jax.Array, jax.Array | None],
    hidden: jax.Array,
    tied: tuple[jax.Array, jax.Array] | None,
) -> _Selected:
    """As `_score` and `_select`, of `count` candidates that are sharded over devices."""
    axis = devices.axis

    def body(user: jax.Array, items: tuple, hidden: jax.Array, tied: tuple | None) -> _Selected:
        own = len(items[0])
        column = parallel.index(axis) * own + jnp.arange(own)
        scores = _score(user, *items, _local(hidden, own, axis))
        scores = jnp.where((column < count)[None, :], scores, -jnp.inf)
        best, at = jax.lax.top_k(scores, min(k, own))
        # Shards are in the order of the columns, and ties go to the first: to the lowest column.
        every, columns = (parallel.gather(x.T, axis).T for x in (best, column[at]))
        best, at = jax.lax.top_k(every, k)
        lists = best, jnp.take_along_axis(columns, at, 1)
        if tied is None:
            return lists, None
        has_list, held = tied
        held = _local(held, own, axis)
        return lists, count_ties(cutoffs, axis, scores, best, has_list, held)

    return parallel.run_on_devices(
        devices, body, (user, items, hidden, tied), (False, True, False, False), False
    )


def _local(entries: jax.Array, own: int, axis: str | None) -> jax.Array:
    """Entries (row, column) with columns of this device's shard; those of others are dropped."""
    return entries.at[1].set(parallel.local_index(entries[1], own, axis))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _select(
    k: int,
    cutoffs: tuple[int, ...],
    scores: jax.Array,
    tied: tuple[jax.Array, jax.Array] | None,
) -> _Selected:
    """The k best of each row; with `tied`, what `count_ties` says too."""
    # Equal scores go to the lower column, as the documentation of lax.top_k promises.
    best, columns = jax.lax.top_k(scores, k)
    counts = None if tied is None else count_ties(cutoffs, None, scores, best, *tied)
    return (best, columns), counts


def _columns(items: Csr, candidates: np.ndarray) -> Csr:
    """Rows of items as positions among the ascending candidates, without other items."""
    position = np.searchsorted(candidates, items.indices)
    position[position == len(candidates)] = 0
    known = np.zeros(len(position), bool)
    if len(candidates):
        known = candidates[position] == items.indices
    return Csr.from_pairs(items.row_of_entry[known], position[known], items.rows)


def _rows(csr: Csr, rows: slice) -> Csr:
    """Consecutive rows, without a copy of the indices."""
    first, last = csr.indptr[rows.start], csr.indptr[rows.stop]
    return Csr(csr.indptr[rows.start : rows.stop + 1] - first, csr.indices[first:last])


def _as_lists(eval_slice: EvalSlice, columns: np.ndarray, scores: np.ndarray) -> TopK:
    """The lists with item ids in place of columns."""
    items = np.full(columns.shape, -1, np.int32)
    if columns.size:
        items = np.where(columns < 0, -1, eval_slice.candidates[columns]).astype(np.int32)
    empty = _without_list(eval_slice)
    items[empty], scores[empty] = -1, -np.inf
    return TopK(np.asarray(eval_slice.users, np.int32), items, scores)


def _without_list(eval_slice: EvalSlice) -> np.ndarray:
    """bool[n]: the users who get an empty list."""
    if eval_slice.list_without_history:
        return np.zeros(len(eval_slice.users), bool)
    return eval_slice.histories.counts[eval_slice.users] == 0


def _check(representations: Representations | None, eval_slice: EvalSlice, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if eval_slice.exclude.rows != len(eval_slice.users):
        raise ValueError(
            f"exclude has {eval_slice.exclude.rows} rows for {len(eval_slice.users)} users; "
            "give one per user"
        )
    if (np.diff(eval_slice.candidates) <= 0).any():
        raise ValueError("candidates must be ascending item ids without repetition")
    if representations is None:
        return
    user, item = representations
    if user.ndim != 2 or item.ndim != 2 or user.shape[1] != item.shape[1]:
        raise ValueError(
            f"representations must be [users, D] and [items, D], got {user.shape} and {item.shape}"
        )
    for name, ids, rows in (
        ("user", eval_slice.users, len(user)),
        ("item", eval_slice.candidates, len(item)),
    ):
        if len(ids) and (ids.min() < 0 or ids.max() >= rows):
            raise ValueError(
                f"{name} ids run from {ids.min()} to {ids.max()}; there are {rows} {name} vectors"
            )


def _check_finite(vectors: np.ndarray, ids: np.ndarray, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        raise ValueError(
            f"the vector of {name} {ids[bad[0]]} is not finite ({len(bad)} such {name}s); "
            "the model has diverged or its input holds NaN"
        )


def _check_overflow(user: np.ndarray, item: np.ndarray) -> None:
    if not user.size or not item.size:
        return
    largest = user.shape[1] * float(np.abs(user).max()) * float(np.abs(item).max())
    if largest >= float(np.finfo(np.float32).max):
        raise ValueError(f"scores may reach {largest:.1e} and overflow float32; scale the vectors")
