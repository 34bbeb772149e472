"""Fenchel-Young losses of the entmax family."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import (
    Axis,
    as_array,
    batch_shape,
    canonical_axes,
    canonical_labels,
    check_broadcast,
    check_per_row,
    check_values,
    check_where,
    concrete,
    nan_where,
    number,
    per_row,
    poison,
    prepare,
    refuse_empty_rows,
    search_config,
    to_rows,
    valid_alpha,
)
from jaxcold.sparse._partition import solve
from jaxcold.sparse._rows import (
    alpha_derivative,
    alpha_of,
    jacobian_times,
    power_on_support,
)
from jaxcold.sparse._search import (
    SearchConfig,
    ThresholdResult,
    expm1_over,
    probabilities,
)
from jaxcold.sparse.activations import pair_with_zero

_GRADIENTS = ("fenchel_young", "autodiff")


class LossConfig(NamedTuple):
    """What is static in a loss."""

    search: SearchConfig
    autodiff: bool
    unit_tau: bool  # the temperature is 1: the logits need no scaling


def _entropy(p: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """Entries ``(p - p^alpha) / (alpha (alpha - 1))``, which sum to the entropy of p."""
    if isinstance(alpha, float) and alpha == 2:
        return p * (1 - p) / 2
    log_p = jnp.log(jnp.where(p == 0, 1, p))
    return -p * log_p * expm1_over((alpha - 1) * log_p) / alpha


def is_label(target: Any) -> bool:
    """Whether a target is a label, not a distribution."""
    return jnp.issubdtype(target.dtype, jnp.integer)


def as_distribution(target: jax.Array, z: jax.Array) -> jax.Array:
    """The target as a distribution [..., n]. XLA fuses the comparison: no one-hot is stored."""
    if not is_label(target):
        return target
    column = jax.lax.broadcasted_iota(target.dtype, z.shape, z.ndim - 1)
    return (column == target[..., None]).astype(z.dtype)


def _value_at_label(
    z: jax.Array, label: jax.Array, tau: jax.Array, result: ThresholdResult, config: LossConfig
) -> jax.Array:
    """The loss of one-hot targets from per-row sums alone.

    With x = p^(alpha - 1) on the support, ``sum p u`` and the entropy are both sums of p^alpha
    and p, so that the loss of ``u = z / tau`` is ``level - (u_y - max u) - (1 - sum p^alpha) /
    alpha``. It is stationary in the cut: the rounding of the cut enters squared.
    """
    alpha = config.search.alpha
    assert alpha is not None
    at = jnp.clip(label, 0, z.shape[-1] - 1)[..., None]
    u = (jnp.take_along_axis(z, at, -1)[..., 0] - result.top) / tau
    level = result.cut if alpha < 1.5 else (1 + result.cut) / (alpha - 1)
    rest = 1 - result.sum_p_alpha
    value = tau * (level - u - rest / alpha)
    if config.autodiff:
        value += (1 - tau) * rest / (alpha * (alpha - 1))
    return value


def _value(
    z: jax.Array, t: jax.Array, p: jax.Array, tau: jax.Array, alpha: Any, config: LossConfig
) -> jax.Array:
    """The loss of a target distribution, entry by entry: exactly 0 where p equals it."""
    top = z.max(-1, keepdims=True)
    gap = p - t
    entropy = _entropy(p, alpha)
    if not config.autodiff:
        entropy = tau[..., None] * (entropy - _entropy(t, alpha))
    centred = jnp.where(gap == 0, 0, z - jnp.where(top == -jnp.inf, 0, top))
    return (gap * centred + entropy).sum(-1)


# One function gives the loss, p and the sum [...] of p ** (2 - alpha), because the derivative rule
# needs all of them from a single search. custom_jvp for the reasons given at `entmax_rows`: p - t
# is written down, never differentiated. An ignored row has p = 0 and its target is 0: its gradient
# is 0 whatever its logits hold.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def loss_and_p(
    config: LossConfig,
    z: jax.Array,
    target: jax.Array,
    tau: jax.Array,
    alpha: jax.Array | None,
    status: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses [...], probabilities [..., n] and their sums of ``p ** (2 - alpha)`` [...].

    Args:
        config: the static part.
        z: [..., n] float32 or float64 logits.
        target: i[...] labels, -1 where ignored, or [..., n] distributions, 0 where ignored.
        tau: [...] temperatures.
        alpha: [...], or None where it is static.
        status: [...] 1; 0 for ignored rows, whose loss and gradient are 0; NaN for invalid ones,
            whose loss and gradient are NaN.
    """
    search = config.search
    # At alpha = 1 the authors' form needs the entropy itself, which the sum of p^alpha hides.
    by_sums = is_label(target) and search.alpha is not None
    by_sums = by_sums and not (config.autodiff and search.alpha == 1)
    scale = None if config.unit_tau else 1 / tau
    result = solve(z, alpha, search, scale, power_sum=by_sums)
    regular = status == 1
    p = probabilities(z, result, alpha, search, scale)
    p = jnp.where(regular[..., None], p, status[..., None])
    if by_sums:
        value = _value_at_label(z, target, tau, result, config)
    else:
        value = _value(z, as_distribution(target, z), p, tau, alpha_of(search, alpha), config)
    return jnp.where(regular, value, status), p, result.weight


def _jacobian_times_u(
    p: jax.Array, weight: jax.Array, u: jax.Array, alpha: float | jax.Array
) -> jax.Array:
    """``J u`` where p = entmax(u): u is ``p ** (alpha - 1) / (alpha - 1)`` plus a constant."""
    if not isinstance(alpha, float) or alpha < 1.25:
        return jacobian_times(p, u, alpha)
    weight = jnp.where(weight == 0, 1, weight)[..., None]
    return (p - power_on_support(p, 2 - alpha) / weight) / (alpha - 1)


def _loss_and_p_jvp(config: LossConfig, primals: Any, tangents: Any) -> Any:
    z, target, tau, alpha, status = primals
    dz, _, dtau, dalpha, _ = tangents
    value, p, weight = loss_and_p(config, z, target, tau, alpha, status)
    a, t = alpha_of(config.search, alpha), as_distribution(target, z)
    column_tau = tau[..., None]
    u = jnp.where(p == 0, 0, z) / column_tau
    along = _jacobian_times_u(p, jnp.where(status == 0, 1, weight), u, a)
    excess = 1 - 1 / column_tau  # how far the authors' form is from stationary in p
    dvalue, dp = jnp.zeros_like(value), jnp.zeros_like(p)

    if not isinstance(dz, SymbolicZero):
        slope = p - t
        if config.autodiff:
            slope = slope + excess * along
        dvalue = dvalue + (slope * dz).sum(-1)
        dp = dp + jacobian_times(p, dz, a) / column_tau
    if not isinstance(dtau, SymbolicZero):
        if config.autodiff:
            dvalue = dvalue - (excess * u * along).sum(-1) * dtau
        else:
            dvalue = dvalue + (_entropy(p, a) - _entropy(t, a)).sum(-1) * dtau
        dp = dp - along / column_tau * dtau[..., None]
    dweight = ((2 - a) * power_on_support(p, 1 - a) * dp).sum(-1)
    if dalpha is not None and not isinstance(dalpha, SymbolicZero):
        # The weight is not used for an array alpha: its own dependence on alpha is left out.
        width = dalpha[..., None]
        dp_alpha = alpha_derivative(p, a) * width

        def entropy_change(q: jax.Array) -> jax.Array:
            return jax.jvp(lambda a: _entropy(q, a), (a,), (width,))[1].sum(-1)

        if config.autodiff:
            dvalue = dvalue + (tau - 1) * (u * dp_alpha).sum(-1) + entropy_change(p)
        else:
            dvalue = dvalue + tau * (entropy_change(p) - entropy_change(t))
        dp = dp + dp_alpha
    return (value, p, weight), (dvalue, dp, dweight)


loss_and_p.defjvp(_loss_and_p_jvp, symbolic_zeros=True)


def weighted(value: jax.Array, weights: jax.Array) -> jax.Array:
    """``weights * value``, 0 where the weight is; the gradient in the weight is the value there.

    A value that is not finite counts as 0 where the weight is 0.
    """
    return weights * jnp.where((weights == 0) & ~jnp.isfinite(value), 0, value)


def distribution_error(target: jax.Array, rows: jax.Array) -> jax.Array:
    """bool[...]: which targets [..., n] are no distributions, up to the rounding of their type."""
    tolerance = 1e-3 + 4 * float(jnp.finfo(target.dtype).eps)
    return ~((jnp.abs(rows.sum(-1) - 1) <= tolerance) & (rows >= 0).all(-1))


@functools.partial(jax.jit, static_argnames=("axes", "config"), inline=True)
def _losses(
    z: jax.Array,
    target: jax.Array,
    alpha: Any,
    tau: Any,
    where: Any,
    weights: Any,
    *,
    axes: tuple[int, ...],
    config: LossConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The losses, whether a row has no finite entry, and whether a target is no distribution."""
    rows, is_lost = prepare(z, axes, where)
    batch, n = rows.shape[:-1], rows.shape[-1]
    kept = None if where is None else to_rows(jnp.broadcast_to(where, z.shape), axes)
    target = jax.lax.stop_gradient(target)
    t = None
    if is_label(target):
        target = canonical_labels(target, n)
        is_counted = target >= 0
        invalid = target >= n
        is_wrong = jnp.zeros(batch, bool)
        if kept is not None:
            at = jnp.clip(target, 0, n - 1)[..., None]
            is_counted &= invalid | jnp.take_along_axis(kept, at, -1)[..., 0]
    else:
        t = to_rows(target, axes).astype(rows.dtype)
        is_counted = (t != 0).any(-1)
        if kept is not None:
            is_counted &= ~((t != 0) & ~kept).any(-1)
        invalid = is_wrong = is_counted & distribution_error(target, t)
    if weights is not None:
        weights = jnp.broadcast_to(jnp.asarray(weights).astype(rows.dtype), batch)
        # Only rows that hold something else than numbers are hidden from the gradient: that of
        # the weight is the loss, also at 0.
        is_counted &= (weights != 0) | jnp.isfinite(rows.max(-1))
        invalid &= weights != 0
        is_wrong &= weights != 0
    if t is None:
        target = jnp.where(is_counted, target, -1)
    else:
        target = jnp.where(is_counted[..., None], t, 0)
    tau = jnp.broadcast_to(jnp.asarray(tau).astype(rows.dtype), batch)
    tau = tau if config.unit_tau else poison(tau, ~(tau > 0))
    if config.search.alpha is None:
        alpha = valid_alpha(per_row(alpha, z.shape, axes, rows.dtype))
    status = nan_where(invalid & is_counted, is_counted.astype(rows.dtype))
    value, _, _ = loss_and_p(config, rows, target, tau, alpha, status)
    if weights is not None:
        value = weighted(value, weights)
    return value, is_lost & is_counted, is_wrong


def fenchel_young_loss(
    z: ArrayLike,
    target: ArrayLike,
    alpha: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    gradient: str = "fenchel_young",
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: Axis = -1,
) -> jax.Array:
    """Fenchel-Young loss of alpha-entmax, one value per row.

    With ``p = entmax(z / tau, alpha)`` and Tsallis' entropy H (see `entmax`):

    * ``gradient="fenchel_young"``: ``(p - t).z + tau (H(p) - H(t))``. Its gradient in z is p - t,
      at every temperature. It is never negative, and zero exactly at p = t.
    * ``gradient="autodiff"``: ``(p - t).z + H(p)``, what one gets by differentiating this
      expression through p, as the published code of SEMCo does. The gradient is ``p - t +
      (1 - 1 / tau) J u`` with ``u = z / tau`` and J the Jacobian of entmax at u: from tau above 1
      on it also pulls up those entries of the support that lie below their mean. It is the first
      form at tau = 1 for a one-hot target. At another temperature it may be negative.

    alpha = 1 is softmax with Shannon's entropy: at tau = 1 both forms are the cross-entropy of the
    logits z, less the target's entropy in the first. A temperature in the usual sense is
    ``fenchel_young_loss(scores / tau, target, 1.0)``.

    One rule for targets, here and in the linear losses. Ignored, with loss and gradient 0 whatever
    the row holds: a negative label, a distribution of zeros, and a target on a class that ``where``
    excludes. NaN, in the loss and its gradient: a label of n or more, and under a trace a
    distribution that is none (outside it raises). A target on a logit of -inf costs +inf.

    Args:
        z: [..., n, ...] logits, any float type; computed in float32 or wider.
        target: integer classes, the shape of ``z`` without ``axis``, or distributions t of the
            shape of ``z`` that sum to one. It is a constant: it gets no gradient.
        alpha: as in `entmax`; the gradient in an array alpha is right too.
        tau: positive temperature, a number or one per row: it broadcasts against the losses. May
            be traced, where a value of 0 or less gives NaN, and differentiated.
        gradient: "fenchel_young" or "autodiff", see above. Either is written in closed form.
        where: boolean, broadcasts against ``z``: which classes exist.
        weights: multiplies the losses, broadcasts against them, differentiable. At 0 a row has
            loss 0 and gradient 0 in z whatever it holds; the gradient in the weight is the loss.
        axis: the axis of the classes, or several, which labels count in order.

    Returns:
        float32 or wider losses, the shape of ``z`` without ``axis``.

    Raises:
        ValueError: if shapes do not fit, for an unknown ``gradient``, if outside a trace tau is
            not positive or a target distribution does not sum to 1, and as `entmax` does.

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses (2020).
    """
    return _checked(z, target, alpha, tau, gradient, where, weights, axis)


def _checked(
    z: Any, target: Any, alpha: Any, tau: Any, gradient: str, where: Any, weights: Any, axis: Axis
) -> jax.Array:
    """Checks the arguments and calls what is compiled."""
    if gradient not in _GRADIENTS:
        raise ValueError(f"gradient is 'fenchel_young' or 'autodiff', not {gradient!r}")
    z, target = as_array(z), as_array(target)
    axes = canonical_axes(axis, z.shape)
    batch = batch_shape(z.shape, axes)
    search = search_config(alpha, "auto", None)
    alpha = check_per_row("alpha", alpha, z.shape, axes) if search.alpha is None else None
    where = check_where(where, z.shape)
    if is_label(target):
        if target.shape != batch:
            raise ValueError(
                f"labels have the shape {batch} of z without its classes, not {target.shape}"
            )
    elif target.shape != z.shape:
        raise ValueError(f"target distributions have the shape {z.shape} of z, not {target.shape}")
    elif not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(f"a target is integer or floating, not {target.dtype}")
    check_values("tau", tau, lambda t: t > 0, "is above 0")
    for name, value in (("tau", tau), ("weights", weights)):
        if value is not None and number(value) is None:
            check_broadcast(name, jnp.shape(value), batch, "the shape of the losses")
    config = LossConfig(search, gradient == "autodiff", number(tau) == 1)
    value, is_lost, is_wrong = _losses(
        z, target, alpha, as_array(tau), where, weights, axes=axes, config=config
    )
    refuse_empty_rows(is_lost)
    if not is_label(target):
        refuse_wrong_targets(is_wrong)
    return value


def refuse_wrong_targets(is_wrong: jax.Array) -> None:
    """Raises ValueError if the result ``is_wrong`` [...] is concrete and names a row."""
    wrong = concrete(is_wrong)
    if wrong is not None and wrong.any():
        raise ValueError("a target distribution has an entry below 0 or does not sum to 1")


def entmax_loss(z: ArrayLike, target: ArrayLike, alpha: ArrayLike, **options: Any) -> jax.Array:
    """`fenchel_young_loss` under the name of its activation.

    Args:
        z: see `fenchel_young_loss`.
        target: see `fenchel_young_loss`.
        alpha: see `fenchel_young_loss`.
        **options: its keyword arguments.

    Returns:
        One loss per row.
    """
    return fenchel_young_loss(z, target, alpha, **options)


def sparsemax_loss(z: ArrayLike, target: ArrayLike, **options: Any) -> jax.Array:
    """`fenchel_young_loss` of sparsemax, alpha 2.

    Args:
        z: see `fenchel_young_loss`.
        target: see `fenchel_young_loss`.
        **options: its keyword arguments.

    Returns:
        One loss per row.
    """
    return fenchel_young_loss(z, target, 2.0, **options)


def entmax15_loss(z: ArrayLike, target: ArrayLike, **options: Any) -> jax.Array:
    """`fenchel_young_loss` of 1.5-entmax.

    Args:
        z: see `fenchel_young_loss`.
        target: see `fenchel_young_loss`.
        **options: its keyword arguments.

    Returns:
        One loss per row.
    """
    return fenchel_young_loss(z, target, 1.5, **options)


def entmax_sigmoid_loss(
    z: ArrayLike, label: ArrayLike, alpha: ArrayLike, **options: Any
) -> jax.Array:
    """Fenchel-Young loss of `entmax_sigmoid`: binary labels, one logit each.

    At alpha = 1 it is the sigmoid cross-entropy, at 2 the binary sparsemax loss. The gradient in
    z is ``entmax_sigmoid(z / tau) - label``.

    Args:
        z: [...] logits.
        label: [...] 1 or True for the class of z, 0 for the other; a negative integer is ignored,
            and floats are probabilities of the class.
        alpha: see `entmax`; an array broadcasts against ``z``.
        **options: ``tau``, ``weights`` and ``gradient`` of `fenchel_young_loss`.

    Returns:
        [...] losses, float32 or wider.
    """
    pair, alpha = pair_with_zero(z, alpha)
    label = jnp.asarray(label)
    if label.dtype == bool:
        label = label.astype(jnp.int32)
    if is_label(label):
        # 0 and 1 change places, and what is out of range stays so.
        target = jnp.where((label == 0) | (label == 1), 1 - label, label)
    else:
        target = jnp.stack([label, 1 - label], -1)
    return fenchel_young_loss(pair, target, alpha, **options)
