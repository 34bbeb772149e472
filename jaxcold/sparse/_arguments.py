"""Arguments of the public functions: axes, masks and checks that hold eagerly and under a trace.

A public function checks what is static, then calls one compiled function. A value is looked at on
the host only where it is concrete, and by NumPy or as a result of the compiled function: logits
that a traced function closes over are concrete too, but any `jax.numpy` operation on them is
traced. What is invalid and traced becomes NaN, see `poison`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcold.sparse._search import METHODS, SearchConfig

# For alpha above 2 p is a root of what exceeds the threshold: rounding of the logits moves it by up
# to eps ** (1 / (alpha - 1)), which in float32 is 4e-3 at 4.
MAX_ALPHA = 4.0

Axis = int | tuple[int, ...] | None


def as_array(x: ArrayLike) -> Any:
    """``x`` as something that a compiled function takes: arrays stay as they are."""
    return x if isinstance(x, jax.Array | np.ndarray) else jnp.asarray(x)


def concrete(x: Any) -> np.ndarray | None:
    """The values of ``x``, or None where they cannot be read here and now."""
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    return np.asarray(x)


def number(value: Any) -> float | None:
    """A Python or NumPy number as a float; None for an array."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return float(value) if is_number else None


def canonical_axes(axis: Axis, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the classes, each from 0 on.

    Raises:
        ValueError: if one is out of range or named twice, or if there are no classes.
    """
    ndim = len(shape)
    given = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axis {axis} is out of range for z of shape {shape}")
    axes = tuple(a % ndim for a in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis {axis} names an axis of z of shape {shape} twice")
    if not axes or any(shape[a] == 0 for a in axes):
        raise ValueError(f"z needs at least one entry along axis {axis}; its shape is {shape}")
    return axes


def batch_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axes of the classes: that of one value per row."""
    return tuple(size for a, size in enumerate(shape) if a not in axes)


def to_rows(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """``x`` with the classes as the last axis, in the order of ``axes``."""
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    if len(axes) == 1:
        return x
    batch, classes = x.shape[: -len(axes)], x.shape[-len(axes) :]
    return x.reshape(*batch, math.prod(classes))


def from_rows(rows: jax.Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `to_rows` for an array of this shape."""
    rows = rows.reshape(*rows.shape[:-1], *(shape[a] for a in axes)) if len(axes) > 1 else rows
    return jnp.moveaxis(rows, range(-len(axes), 0), axes)


def check_where(where: Any, shape: tuple[int, ...]) -> Any:
    """The mask as an array, or None.

    Raises:
        ValueError: if it is not boolean, as an additive mask would be, or does not broadcast.
    """
    if where is None:
        return None
    where = as_array(where)
    if where.dtype != bool:
        raise ValueError(
            f"where is boolean, True for entries that exist, not {where.dtype}; add an additive"
            " mask of 0 and -inf to z instead"
        )
    check_broadcast("where", where.shape, shape, "the shape of z")
    return where


def check_broadcast(name: str, got: tuple[int, ...], to: tuple[int, ...], meaning: str) -> None:
    """Raises ValueError if the shape ``got`` does not broadcast to ``to``."""
    padded = (1,) * (len(to) - len(got)) + tuple(got)
    if len(got) > len(to) or any(
        not (isinstance(a, int) and a == 1) and a != b for a, b in zip(padded, to, strict=True)
    ):
        raise ValueError(f"{name} of shape {tuple(got)} does not broadcast to {to}, {meaning}")


def check_per_row(name: str, value: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """An array that has one number, or one per row with 1 at the axes of the classes.

    Raises:
        ValueError: if its shape is another one.
    """
    value = as_array(value)
    if value.ndim:
        kept = tuple(1 if a in axes else size for a, size in enumerate(shape))
        at = "axis " + ", ".join(map(str, axes))
        check_broadcast(name, value.shape, kept, f"the shape of z with 1 at {at}")
    return value


def per_row(value: Any, shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any) -> jax.Array:
    """What `check_per_row` allowed, as an array [...] with one number per row."""
    value = jnp.asarray(value).astype(dtype)
    kept = tuple(1 if a in axes else size for a, size in enumerate(shape))
    return jnp.squeeze(jnp.broadcast_to(value, kept), axes)


def check_values(name: str, value: Any, valid: Any, rule: str) -> None:
    """Raises ValueError if a concrete value is not valid everywhere; NaN never is.

    Args:
        name: of the argument.
        value: a number or an array.
        valid: NumPy array -> bool array.
        rule: what holds for a valid value, for the message.
    """
    values = concrete(value)
    if values is not None and not np.all(valid(values)):
        raise ValueError(f"{name} {rule}, not {value}")


def check_alpha(alpha: Any) -> None:
    """Raises ValueError for a concrete alpha outside (0, MAX_ALPHA]."""
    rule = f"is above 0 and at most {MAX_ALPHA:g}"
    check_values("alpha", alpha, lambda a: (a > 0) & (a <= MAX_ALPHA), rule)


def search_config(alpha: Any, method: str, k: int | None) -> SearchConfig:
    """The static part of a search; its alpha is None where alpha is an array.

    Raises:
        ValueError: for an invalid alpha, an unknown method, or one that alpha does not allow.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if k is not None:
        if method not in ("auto", "sort"):
            raise ValueError(f"k belongs to method='sort', not to {method!r}")
        if k < 1:
            raise ValueError(f"k counts sorted entries and is at least 1, not {k}")
        method = "sort"
    check_alpha(alpha)
    static = number(alpha)
    if method == "sort" and static not in (1, 1.5, 2):
        raise ValueError(f"method={method!r} needs alpha 1.5 or 2 as a Python number")
    return SearchConfig(static, method, k)


def widest(*dtypes: Any) -> Any:
    """The type that holds all of these; a user's strict promotion is about operands, not this."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def float_dtype(z: Any) -> Any:
    """The type of the results: that of z, float32 for integers."""
    return z.dtype if jnp.issubdtype(z.dtype, jnp.floating) else jnp.dtype(jnp.float32)


def prepare(
    z: jax.Array, axes: tuple[int, ...], where: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Logits [..., n] in float32 or wider, masked entries at -inf; and which rows lack one.

    Returns:
        The rows, and bool[...]: a row that is not masked whole has no finite entry.
    """
    z = z.astype(widest(float_dtype(z), jnp.float32))
    masked = jnp.asarray(False)
    if where is not None:
        kept = jnp.broadcast_to(where, z.shape)
        masked = ~kept.any(axes)
        z = jnp.where(kept, z, -jnp.inf)
    rows = to_rows(z, axes)
    return rows, (rows.max(-1) == -jnp.inf) & ~masked


def refuse_empty_rows(is_lost: jax.Array) -> None:
    """Raises ValueError if the result ``is_lost`` [...] is concrete and names a row."""
    lost = concrete(is_lost)
    if lost is not None and lost.any():
        raise ValueError("a row of z has no finite entry; drop it, or mask it whole by where=")


def canonical_labels(labels: Any, n: int) -> jax.Array:
    """i32 labels in [-1, n]: -1 for every negative one, n for all that are too large."""
    labels = jnp.asarray(labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    if jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
        return jnp.minimum(labels, n).astype(jnp.int32)
    return jnp.clip(labels, -1, n).astype(jnp.int32)


def poison(x: jax.Array, invalid: jax.Array) -> jax.Array:
    """``x`` with NaN where ``invalid``, in the value and in every gradient that passes through."""
    return x + nan_where(invalid, jnp.zeros_like(invalid, x.dtype))


def nan_where(invalid: jax.Array, x: jax.Array) -> jax.Array:
    """``x``, NaN where ``invalid``."""
    # Computed, not a constant: without jit `jax.debug_nans` would stop at one that nobody takes.
    return jnp.where(invalid, jnp.sqrt(-invalid.astype(x.dtype)), x)


def valid_alpha(alpha: jax.Array) -> jax.Array:
    """Alpha with NaN where it is out of range."""
    return poison(alpha, ~((alpha > 0) & (alpha <= MAX_ALPHA)))
