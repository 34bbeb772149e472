"""The best K candidates of every user, by the dot product of user and item vectors.

Users are scored in blocks, so memory does not grow with their number. Equal scores are ordered by
ascending item id on every backend. Scores that differ only by rounding are not equal: two backends
whose matrix products round differently may order such a pair differently.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcold import parallel
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
    block_users: int | None = None,
    method: Literal["auto", "host", "device"] = "auto",
    devices: parallel.Devices = parallel.ONE,
) -> TopK:
    """Ranked candidates of a slice for each of its users, by dot product.

    Args:
        representations: user f32[U, D] and item f32[I, D] vectors.
        eval_slice: which users, which candidate items, and the items hidden from each user.
        k: length of the lists; at most the number of candidates is used.
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
    columns, scores = _blocks(user, item, hidden, min(k, len(item)), block_users, method, devices)
    return _as_lists(eval_slice, columns, scores)


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
    n, width = scores.shape
    if not min(1, width) <= k <= width:
        raise ValueError(f"k must lie between 1 and the {width} columns, got {k}")
    if exclude is not None:
        scores[exclude.row_of_entry, exclude.indices] = -np.inf
    columns = np.full((n, k), -1, np.int32)
    best = np.full((n, k), -np.inf, np.float32)
    if not columns.size:
        return columns, best

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
        chosen[crowded] = _exactly_k(scores[crowded], k)
        counts[crowded] = k
        flat = np.flatnonzero(chosen)
    row, column = np.divmod(flat, width)
    value = scores[row, column]
    # Stable, and columns ascend inside a row: equal scores stay in the order of their columns.
    order = np.lexsort((-value, row))
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = rank < k
    order, row, rank = order[keep], row[keep], rank[keep]
    columns[row, rank] = column[order]
    best[row, rank] = value[order]
    return columns, best


def _exactly_k(scores: np.ndarray, k: int) -> np.ndarray:
    """bool[n, C]: the k best entries of each row, ties at the k-th score by ascending column."""
    last = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k, None]
    above = scores > last
    tied = scores == last
    free = k - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= free))


def _blocks(
    user: np.ndarray,
    item: np.ndarray,
    hidden: Csr,
    k: int,
    block: int,
    method: str,
    devices: parallel.Devices,
) -> tuple[np.ndarray, np.ndarray]:
    """Best columns and scores of all users; blocks are padded to one shape and compiled once."""
    n = len(user)
    columns = np.empty((n, k), np.int32)
    best = np.empty((n, k), np.float32)
    if not best.size:
        return columns, best
    block = min(block, n)
    blocks = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    longest = max(int(hidden.indptr[rows.stop] - hidden.indptr[rows.start]) for rows in blocks)
    padding = -len(item) % devices.n
    item_rows = np.pad(item, ((0, padding), (0, 0))) if padding else item
    placed = devices.put(item_rows, sharded=True)
    pending: list[tuple] = []

    def finish_oldest() -> None:
        rows, result = pending.pop(0)
        size = rows.stop - rows.start
        if method == "device":
            scores, chosen = jax.device_get(result)
            columns[rows] = np.where(scores[:size] == -np.inf, -1, chosen[:size])
            best[rows] = scores[:size]
        else:
            columns[rows], best[rows] = rank_scores(np.asarray(result)[:size], None, k)

    for rows in blocks:
        size = rows.stop - rows.start
        excluded = _rows(hidden, rows)
        vectors = np.zeros((block, user.shape[1]), np.float32)
        vectors[:size] = user[rows]
        # Padding points past the last row, where a scatter with mode "drop" writes nothing.
        entries = np.full((2, longest), block, np.int32)
        entries[0, : len(excluded.indices)] = excluded.row_of_entry
        entries[1, : len(excluded.indices)] = excluded.indices
        if devices.mesh is not None:
            pending.append((rows, _best(devices, k, len(item), vectors, placed, entries)))
        else:
            scores = _score(vectors, placed, entries)
            pending.append((rows, _select(scores, k) if method == "device" else scores))
        if len(pending) > 1:  # the next block is scored while this one is selected from
            finish_oldest()
    finish_oldest()
    return columns, best


@jax.jit
def _score(user: jax.Array, item: jax.Array, hidden: jax.Array) -> jax.Array:
    """Scores [b, C], -inf where hidden [2, n] (row, column)."""
    # Accelerators multiply float32 in fewer bits unless told otherwise.
    scores = jnp.matmul(user, item.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(scores == 0, 0.0, scores)  # -0 and +0 are a tie, not an order
    return scores.at[hidden[0], hidden[1]].set(-jnp.inf, mode="drop")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _best(
    devices: parallel.Devices,
    k: int,
    count: int,
    user: jax.Array,
    item: jax.Array,
    hidden: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """As `_score` and `_select`, of `count` candidates that are sharded over devices."""
    axis = devices.axis

    def body(user: jax.Array, item: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = len(item)
        column = parallel.index(axis) * own + jnp.arange(own)
        scores = _score(user, item, hidden.at[1].set(parallel.local_index(hidden[1], own, axis)))
        scores = jnp.where((column < count)[None, :], scores, -jnp.inf)
        best, at = jax.lax.top_k(scores, min(k, own))
        # Shards are in the order of the columns, and ties go to the first: to the lowest column.
        every, columns = (parallel.gather(x.T, axis).T for x in (best, column[at]))
        best, at = jax.lax.top_k(every, k)
        return best, jnp.take_along_axis(columns, at, 1)

    return parallel.run_on_devices(devices, body, (user, item, hidden), (False, True, False), False)


# Equal scores go to the lower column, as the documentation of lax.top_k promises.
_select = jax.jit(jax.lax.top_k, static_argnums=1)


def _columns(exclude: Csr, candidates: np.ndarray) -> Csr:
    """The excluded items as positions among the ascending candidates, without other items."""
    position = np.searchsorted(candidates, exclude.indices)
    position[position == len(candidates)] = 0
    known = np.zeros(len(position), bool)
    if len(candidates):
        known = candidates[position] == exclude.indices
    return Csr.from_pairs(exclude.row_of_entry[known], position[known], exclude.rows)


def _rows(csr: Csr, rows: slice) -> Csr:
    """Consecutive rows, without a copy of the indices."""
    first, last = csr.indptr[rows.start], csr.indptr[rows.stop]
    return Csr(csr.indptr[rows.start : rows.stop + 1] - first, csr.indices[first:last])


def _as_lists(eval_slice: EvalSlice, columns: np.ndarray, scores: np.ndarray) -> TopK:
    """The lists with item ids in place of columns."""
    items = np.full(columns.shape, -1, np.int32)
    if columns.size:
        items = np.where(columns < 0, -1, eval_slice.candidates[columns]).astype(np.int32)
    if not eval_slice.list_without_history:
        empty = eval_slice.histories.counts[eval_slice.users] == 0
        items[empty], scores[empty] = -1, -np.inf
    return TopK(np.asarray(eval_slice.users, np.int32), items, scores)


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
