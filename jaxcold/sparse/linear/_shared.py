"""What the linear losses share: operands and their checks, products, row lists, values."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import (
    as_array,
    canonical_labels,
    check_broadcast,
    check_values,
    number,
    poison,
    widest,
)
from jaxcold.sparse._search import ThresholdResult, expm1_over


class Arguments(NamedTuple):
    """Arguments of a linear loss as its caller gave them, as arrays or None."""

    h: Any
    W: Any
    targets: Any
    bias: Any
    where: Any
    tau: Any
    weights: Any
    probabilities: Any


class Operands(NamedTuple):
    """Checked arguments of a linear loss, in the accumulator's dtype but for h and W."""

    h: jax.Array  # [rows, d]
    W: jax.Array  # [n, d]
    bias: Any  # [n] or None, -inf where an item is dropped
    tau: jax.Array  # [rows], NaN where invalid
    weights: Any  # [rows] or None
    targets: Any  # i32[rows, k] in [0, n), 0 where there is none
    shares: Any  # [rows, k] of each target; 0 where there is none
    is_counted: Any  # bool[rows], False for ignored rows


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """Sum over one axis of each, accumulated in ``dtype``; float32 is not truncated.

    The passes over the logits have to agree, and would not if only some of them were truncated.
    """
    precision = lax.Precision.HIGHEST if a.dtype == b.dtype == dtype else None
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)


def indices_of(chosen: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """The rows that ``chosen`` names, in order, so that tiles of others are never reached.

    Args:
        chosen: bool[rows].
        capacity: length of the list, at least the number of rows that are chosen.

    Returns:
        i32[capacity] indices of the chosen rows, the rest filled with ``rows``, which is out of
        range; and how many there are.
    """
    rows = chosen.shape[0]
    rank = jnp.cumsum(chosen, dtype=jnp.int32)
    indices = jnp.full(capacity, rows, jnp.int32)
    indices = indices.at[jnp.where(chosen, rank - 1, capacity)].set(
        jnp.arange(rows, dtype=jnp.int32), mode="drop"
    )
    return indices, rank[-1]


def at_most(limit: int, rows: Any) -> int:
    """A tile of at most as many rows as there are; their number may be unknown (jax.export)."""
    return min(limit, rows) if isinstance(rows, int) else limit


def take_rows(a: jax.Array, at: jax.Array, fill: float = 0) -> jax.Array:
    """Rows of ``a``, ``fill`` where an index is out of range."""
    return a.at[at].get(mode="fill", fill_value=fill)


def zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: tuple[jax.Array, ...]) -> jax.Array:
    """Zeros that shard_map takes to differ between devices wherever one of ``like`` does."""
    parts = (jnp.zeros_like(a, dtype, shape=()) for a in like)
    return jnp.broadcast_to(functools.reduce(jnp.add, parts), shape)


def alike(arrays: Any) -> Any:
    """The same tree; under shard_map all vary over the same axes, as loops need their operands.

    The transpose of this addition of zero sums the gradient of a replicated operand over the
    devices.
    """
    leaves = tuple(jax.tree.leaves(arrays))
    return jax.tree.map(
        lambda a: (
            a | zeros((), a.dtype, leaves) if a.dtype == bool else a + zeros((), a.dtype, leaves)
        ),
        arrays,
    )


def loss_and_entropy(
    z: jax.Array,
    result: ThresholdResult,
    targets: jax.Array,
    shares: jax.Array,
    tau: jax.Array,
    alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Losses [r] without the targets' entropy, and the entropies [r] of p for alpha above 1.

    The dual form: stationary in the cut, whose rounding enters only squared.
    """
    u = (jnp.take_along_axis(z, targets, 1) - result.top[:, None]) / tau[:, None]
    score = jnp.where(shares == 0, 0, shares * u).sum(1)
    level = result.cut if alpha < 1.5 else (1 + result.cut) / (alpha - 1)
    rest = 1 - result.sum_p_alpha
    entropy = rest / (alpha * (alpha - 1)) if alpha > 1 else jnp.zeros_like(rest)
    return tau * (level - score - rest / alpha), entropy


def target_rows(W: jax.Array, targets: jax.Array, shares: jax.Array, dtype: Any) -> jax.Array:
    """The sum [r, d] of the rows of W that are targets, by their shares."""
    chosen = W[targets].astype(dtype)
    return jnp.where(shares[..., None] == 0, 0, shares[..., None] * chosen).sum(1)


def subtract_targets(
    dW: jax.Array, h: jax.Array, targets: jax.Array, shares: jax.Array
) -> jax.Array:
    """``dW`` [n, d] less ``h`` [r, d] at the targets i[r, k], by their shares [r, k]."""
    at = jnp.where(shares == 0, dW.shape[0], targets)
    part = shares[..., None] * h.astype(dW.dtype)[:, None]
    return dW.at[at].add(-part, mode="drop")


def check_alpha(alpha: Any) -> float:
    """The number.

    Raises:
        ValueError: if it is none, or outside [1, 2].
    """
    value = number(alpha)
    if value is None or not 1 <= value <= 2:
        raise ValueError(
            f"alpha must be a Python number in [1, 2], got {alpha}; for other or traced alphas "
            "use fenchel_young_loss on the logits"
        )
    return value


def _check_shapes(arguments: Arguments, one_dtype: bool) -> None:
    h, W, targets, bias, where, _, _, probabilities = arguments
    if h.ndim < 1 or W.ndim != 2 or h.shape[-1] != W.shape[1] or 0 in W.shape:
        raise ValueError(f"expected h [..., d] and W [N, d], W not empty: got {h.shape}, {W.shape}")
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (h, W)):
        raise ValueError(f"expected floating h and W, got {h.dtype} and {W.dtype}")
    if one_dtype and h.dtype != W.dtype:
        raise ValueError(f"expected h and W of one dtype, got {h.dtype} and {W.dtype}")
    batch = shape = h.shape[:-1]
    if probabilities is not None:
        shape = probabilities.shape
        if shape[:-1] != batch or not jnp.issubdtype(probabilities.dtype, jnp.floating):
            raise ValueError(
                f"expected floating target_probabilities of shape {(*batch, 'k')}, got"
                f" {probabilities.dtype}{list(shape)}"
            )
    if targets.shape != shape or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"expected integer targets of shape {list(shape)}, got"
            f" {targets.dtype}{list(targets.shape)}"
        )
    for name, array in (("bias", bias), ("where", where)):
        if array is not None and array.shape != W.shape[:1]:
            raise ValueError(f"{name} must be [{W.shape[0]}], got {list(array.shape)}")
    if where is not None and where.dtype != bool:
        raise ValueError(f"where is boolean, True for items that exist, not {where.dtype}")


def _are_distributions(t: np.ndarray) -> np.ndarray:
    return np.logical_and((t >= 0).all(-1), _sums_to_one(t))


def _sums_to_one(t: Any) -> Any:
    tolerance = 1e-3 + 4 * float(jnp.finfo(t.dtype).eps)
    total = t.astype(widest(t.dtype, jnp.float32)).sum(-1)
    return (abs(total - 1) <= tolerance) | (total == 0)


def check_arguments(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    one_dtype: bool = False,
) -> Arguments:
    """The arguments as arrays, ready for a compiled function.

    Raises:
        ValueError: for one of them, naming it and what it may be.
    """
    given = (h, W, targets, bias, where, tau, weights, probabilities)
    arguments = Arguments(*(None if a is None else as_array(a) for a in given))
    _check_shapes(arguments, one_dtype)
    batch = arguments.h.shape[:-1]
    check_values("tau", tau, lambda t: t > 0, "must be above 0")
    for name, array in (("tau", arguments.tau), ("weights", arguments.weights)):
        if array is not None:
            check_broadcast(name, array.shape, batch, "the shape of the losses")
    if probabilities is not None:
        rule = "are not negative and sum to 1 in each row that has a target"
        check_values("target_probabilities", arguments.probabilities, _are_distributions, rule)
    return arguments


def make_operands(arguments: Arguments) -> Operands:
    """The form that the loops take."""
    h, W, targets, bias, where, tau, weights, probabilities = jax.tree.map(jnp.asarray, arguments)
    batch, (n, d) = h.shape[:-1], W.shape
    kind = widest(h.dtype, W.dtype)
    dtype = widest(kind, jnp.float32)
    h, W = h.astype(kind), W.astype(kind)
    if len(batch) != 1:
        h = h.reshape(math.prod(batch), d)
    rows = h.shape[0]
    k = 1 if probabilities is None else targets.shape[-1]
    targets = canonical_labels(targets.reshape(rows, k), n)
    if probabilities is None:
        shares = jnp.where(targets < 0, 0, 1).astype(dtype)
        is_wrong = jnp.zeros(rows, bool)
    else:
        shares = probabilities.reshape(rows, k)
        is_wrong = (shares < 0).any(1) | ~_sums_to_one(shares)
        shares = lax.stop_gradient(shares.astype(dtype))
        is_wrong |= ((targets < 0) & (shares != 0)).any(1)
    is_counted = (shares != 0).any(1)
    is_wrong |= (targets >= n).any(1)
    targets = jnp.clip(targets, 0, n - 1)
    if bias is not None:
        bias = bias.astype(dtype)
    if where is not None:
        is_counted &= is_wrong | ~((shares != 0) & ~where[targets]).any(1)
        bias = jnp.where(where, jnp.zeros(n, dtype) if bias is None else bias, -jnp.inf)
    tau = jnp.broadcast_to(tau.astype(dtype), batch).reshape(rows)
    tau = poison(tau, ~(tau > 0) | (is_wrong & is_counted))
    if weights is not None:
        weights = jnp.broadcast_to(weights.astype(dtype), batch).reshape(rows)
    return Operands(h, W, bias, tau, weights, targets, shares, is_counted)


def entropy_of_targets(shares: jax.Array, alpha: float) -> jax.Array:
    """Tsallis' entropy [r] of shares [r, k]; 0 for one target."""
    log_t = jnp.log(jnp.where(shares > 0, shares, 1))
    return (-shares * log_t * expm1_over((alpha - 1) * log_t) / alpha).sum(-1)
