"""Similarities among items, distilled from a teacher into a student: items drawn, loss, average.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, section 3.3.2 and equation 8.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcold import parallel
from jaxcold.models import pair_batches, semco
from jaxcold.models.layers import Compute, unit_rows
from jaxcold.sparse import entmax, fenchel_young_loss

# Rounds of drawing after which a sub-batch is taken as it is: the users of a batch may own fewer
# items than it has places.
MAX_ROUNDS = 16


def moving_average(old: Array, new: Array, momentum: float, first: Array | bool) -> Array:
    """``unit_rows(momentum * old + (1 - momentum) * new)``; the first value is taken whole.

    Args:
        old: [N, D] unit rows.
        new: [N, D].
        momentum: in [0, 1).
        first: whether there is nothing old yet.
    """
    return unit_rows(jnp.where(first, new, momentum * old + (1 - momentum) * new))


def sub_batch(
    key: Array,
    constants: pair_batches.Constants,
    user: Array,
    weight: Array,
    *,
    items: int,
    positives: int,
) -> tuple[Array, Array]:
    """Draws the items of the distillation loss: several of each of some of the batch's users.

    A round takes ``B // positives`` of the batch's distinct users without replacement and
    `positives` items of each one's history with replacement. Rounds go on until more than B
    distinct items are drawn, of which B are kept at random. A batch of fewer distinct users than a
    round takes gives one round with all of them.

    Args:
        key: of this step.
        constants: the users' histories.
        user: i32[B].
        weight: [B]; rows of weight 0 are ignored.
        items: N, warm items.
        positives: items drawn per user and round.

    Returns:
        i32[min(B, N)] distinct items and bool[min(B, N)], False for unused places.
    """
    size = user.shape[0]
    round_size = max(1, size // positives)
    row = jnp.arange(size)
    users = constants.indptr.shape[0] - 1
    at = jnp.where(weight > 0, user, users)
    is_first = jnp.full(users, size).at[at].min(row, mode="drop")[user] == row
    is_first &= weight > 0
    one_round = is_first.sum() < round_size

    def draw(state: tuple[Array, Array]) -> tuple[Array, Array]:
        rounds, drawn = state
        user_key, item_key = jax.random.split(jax.random.fold_in(key, rounds))
        priority = jnp.where(is_first, jax.random.uniform(user_key, (size,)), -1)
        priority, chosen = jax.lax.top_k(priority, round_size)
        start = constants.indptr[user[chosen]]
        length = constants.indptr[user[chosen] + 1] - start
        uniform = jax.random.uniform(item_key, (round_size, positives))
        nth = uniform * length[:, None].astype(uniform.dtype)
        nth = jnp.minimum(nth.astype(length.dtype), length[:, None] - 1)
        item = constants.indices[start[:, None] + nth]
        item = jnp.where(priority[:, None] >= 0, item, items)
        return rounds + 1, drawn.at[item].set(True, mode="drop")

    def unfinished(state: tuple[Array, Array]) -> Array:
        rounds, drawn = state
        limit = jnp.where(one_round, 1, MAX_ROUNDS)
        return (rounds < limit) & (drawn.sum() <= size)

    start = jnp.zeros((), jnp.int32), jnp.zeros(items, bool)
    _, drawn = jax.lax.while_loop(unfinished, draw, start)
    priority = jax.random.uniform(jax.random.fold_in(key, MAX_ROUNDS), (items,))
    priority, kept = jax.lax.top_k(jnp.where(drawn, priority, -1), min(size, items))
    return kept.astype(jnp.int32), priority >= 0


def similarity_logits(
    rows: Array,
    kept: Array,
    omega: Array | float,
    compute: Compute = "float32",
    axis: str | None = None,
) -> Array:
    """[n, n] cosines over omega, -1 on the diagonal; columns that are not kept are absent.

    Each of several devices has its shard of the rows and computes that of the result.
    """
    kept = parallel.pad_rows(kept, axis)
    columns = parallel.gather(rows, axis)
    logits = semco.logits(rows / omega, columns, jnp.where(kept, 0.0, semco.ABSENT), compute)
    number = jnp.arange(columns.shape[0])
    diagonal = parallel.shard(number, axis)[:, None] == number[None, :]
    return jnp.where(diagonal & kept[None, :], -1 / omega, logits)


def similarity_loss(
    student: Array,
    teacher: Array,
    kept: Array,
    *,
    alpha: float,
    omega: Array | float,
    compute: Compute = "float32",
    axis: str | None = None,
) -> tuple[Array, Array]:
    """Distillation of item similarities (paper, equation 8).

    With z the cosines among the items, -1 on the diagonal, over omega: the Fenchel-Young loss of
    the student's z against entmax of the teacher's. It is 0 where the two agree. (The authors'
    cross-entropy for softmax lies above it by the entropy of the teacher's probabilities, which no
    gradient sees.)

    Args:
        student: [n, d] unit rows.
        teacher: [n, D] unit rows of the same items; constant.
        kept: bool[n]; False for unused places.
        alpha: of the entmax.
        omega: temperature; it enters once.
        compute: of the products, see `semco.build`.
        axis: of the devices. Each has its shard of the rows (`jaxcold.parallel.shard`) and of the
            results; their losses add up to the mean.

    Returns:
        The mean over the kept rows, and the teacher's probabilities [n, n].
    """
    common = kept, omega, compute, axis
    target = entmax(similarity_logits(jax.lax.stop_gradient(teacher), *common), alpha)
    losses = fenchel_young_loss(similarity_logits(student, *common), target, alpha)
    count = jnp.maximum(kept.sum(), 1).astype(losses.dtype)
    return jnp.sum(jnp.where(parallel.shard(kept, axis), losses, 0)) / count, target
