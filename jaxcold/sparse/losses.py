"""Fenchel-Young losses of the entmax family."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxcold.sparse._threshold import Cut, How, expm1_over, probabilities, solve
from jaxcold.sparse.activations import (
    alpha_derivative,
    alpha_of,
    choose,
    jacobian_times,
    power_on_support,
    prepare,
)


class _Form(NamedTuple):
    """What is static in a loss."""

    how: How
    autodiff: bool


def _entropy(p: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """Entries ``(p - p^alpha) / (alpha (alpha - 1))``, which sum to the entropy of p."""
    if isinstance(alpha, float) and alpha == 2:
        return p * (1 - p) / 2
    log_p = jnp.log(jnp.where(p > 0, p, 1))
    return -p * log_p * expm1_over((alpha - 1) * log_p) / alpha


def _is_label(target: jax.Array) -> bool:
    return jnp.issubdtype(target.dtype, jnp.integer)


def _dense(target: jax.Array, z: jax.Array) -> jax.Array:
    """The target as a distribution [..., n]. XLA fuses the comparison: no one-hot is stored."""
    if not _is_label(target):
        return target
    column = jax.lax.broadcasted_iota(target.dtype, z.shape, z.ndim - 1)
    return (column == target[..., None]).astype(z.dtype)


def _value_at_label(
    z: jax.Array, label: jax.Array, tau: jax.Array, cut: Cut, form: _Form
) -> jax.Array:
    """The loss of one-hot targets from per-row sums alone.

    With x = p^(alpha - 1) on the support, ``sum p u`` and the entropy are both sums of p^alpha
    and p, so that the loss of ``u = z / tau`` is ``level - (u_y - max u) - (1 - sum p^alpha) /
    alpha``. It is stationary in the cut: the rounding of the cut enters squared.
    """
    alpha = form.how.alpha
    assert alpha is not None
    at = jnp.clip(label, 0, z.shape[-1] - 1)[..., None]
    u = (jnp.take_along_axis(z, at, -1)[..., 0] - cut.top) / tau
    level = cut.cut if alpha < 1.5 else (1 + cut.cut) / (alpha - 1)
    rest = 1 - cut.energy
    value = tau * (level - u - rest / alpha)
    if form.autodiff:
        value += (1 - tau) * rest / (alpha * (alpha - 1))
    return value


def _value(
    z: jax.Array, t: jax.Array, p: jax.Array, tau: jax.Array, alpha: Any, form: _Form
) -> jax.Array:
    """The loss of a target distribution, entry by entry: exactly 0 where p equals it."""
    top = z.max(-1, keepdims=True)
    gap = p - t
    entropy = _entropy(p, alpha)
    if not form.autodiff:
        entropy = tau * (entropy - _entropy(t, alpha))
    centred = jnp.where(gap == 0, 0, z - jnp.where(top == -jnp.inf, 0, top))
    return (gap * centred + entropy).sum(-1)


# One function gives the loss, p and the sum [...] of p ** (2 - alpha), because the derivative rule
# needs all of them from a single search. custom_jvp for the reasons given at `entmax_rows`: p - t
# is written down, never differentiated.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_p(
    form: _Form, z: jax.Array, target: jax.Array, tau: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    how = form.how
    # At alpha = 1 the authors' form needs the entropy itself, which the sum of p^alpha hides.
    by_sums = _is_label(target) and how.alpha is not None and not (form.autodiff and how.alpha == 1)
    scale = 1 / tau
    cut = solve(z, alpha, how, scale, energy=by_sums)
    p = probabilities(z, cut, alpha, how, scale)
    if by_sums:
        value = _value_at_label(z, target, tau, cut, form)
    else:
        value = _value(z, _dense(target, z), p, tau, alpha_of(how, alpha), form)
    return value, p, cut.weight


def _jacobian_times_u(
    p: jax.Array, weight: jax.Array, u: jax.Array, alpha: float | jax.Array
) -> jax.Array:
    """``J u`` where p = entmax(u): u is ``p ** (alpha - 1) / (alpha - 1)`` plus a constant."""
    if not isinstance(alpha, float) or alpha < 1.25:
        return jacobian_times(p, u, alpha)
    weight = jnp.where(weight > 0, weight, 1)[..., None]
    return (p - power_on_support(p, 2 - alpha) / weight) / (alpha - 1)


def _loss_and_p_jvp(form: _Form, primals: Any, tangents: Any) -> Any:
    z, target, tau, alpha = primals
    dz, _, dtau, dalpha = tangents
    value, p, weight = _loss_and_p(form, z, target, tau, alpha)
    a, t = alpha_of(form.how, alpha), _dense(target, z)
    u = jnp.where(p > 0, z, 0) / tau
    along = _jacobian_times_u(p, weight, u, a)
    excess = 1 - 1 / tau  # how far the authors' form is from stationary in p
    dvalue, dp = jnp.zeros_like(value), jnp.zeros_like(p)

    if not isinstance(dz, SymbolicZero):
        slope = p - t
        if form.autodiff:
            slope = slope + excess * along
        dvalue = dvalue + (slope * dz).sum(-1)
        dp = dp + jacobian_times(p, dz, a) / tau
    if not isinstance(dtau, SymbolicZero):
        if form.autodiff:
            dvalue = dvalue - excess * (u * along).sum(-1) * dtau
        else:
            dvalue = dvalue + (_entropy(p, a) - _entropy(t, a)).sum(-1) * dtau
        dp = dp - along / tau * dtau
    dweight = ((2 - a) * power_on_support(p, 1 - a) * dp).sum(-1)
    if not isinstance(dalpha, SymbolicZero):
        # The weight is not used for an array alpha: its own dependence on alpha is left out.
        width = dalpha[..., None]
        dp_alpha = alpha_derivative(p, a) * width

        def entropy_change(q: jax.Array) -> jax.Array:
            return jax.jvp(lambda a: _entropy(q, a), (a,), (width,))[1].sum(-1)

        if form.autodiff:
            dvalue = dvalue + (tau - 1) * (u * dp_alpha).sum(-1) + entropy_change(p)
        else:
            dvalue = dvalue + tau * (entropy_change(p) - entropy_change(t))
        dp = dp + dp_alpha
    return (value, p, weight), (dvalue, dp, dweight)


_loss_and_p.defjvp(_loss_and_p_jvp, symbolic_zeros=True)


def fenchel_young_loss(
    z: ArrayLike,
    target: ArrayLike,
    alpha: ArrayLike,
    *,
    tau: ArrayLike = 1.0,
    gradient: str = "fenchel_young",
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: int = -1,
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

    Args:
        z: [..., n, ...] logits, any float type; computed in float32 or wider.
        target: integer classes, the shape of ``z`` without ``axis``, or distributions t of the
            shape of ``z`` that sum to one. It is a constant: it gets no gradient.
        alpha: as in `entmax`; the gradient in an array alpha is right too.
        tau: positive scalar temperature, may be traced and differentiated.
        gradient: "fenchel_young" or "autodiff", see above. Either is written in closed form.
        where: boolean, broadcasts against ``z``: which classes exist.
        weights: multiplies the losses, broadcasts against them; at 0 a row has loss and gradient
            0 whatever it holds.
        axis: the axis of the classes.

    Returns:
        float32 or wider losses, the shape of ``z`` without ``axis``. Rows with a negative label or
        one that ``where`` excludes are ignored, with loss and gradient 0; a label of n or more
        gives NaN. A target on a logit of -inf costs +inf.

    Raises:
        ValueError: if shapes do not fit, for an unknown ``gradient``, and as `entmax` does.

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses (2020).
    """
    if gradient not in ("fenchel_young", "autodiff"):
        raise ValueError(f"gradient is 'fenchel_young' or 'autodiff', not {gradient!r}")
    rows, _ = prepare(z, axis, where)
    how, alpha = choose(rows, alpha, axis)
    target = jnp.asarray(target)
    ignored = None
    if _is_label(target):
        if target.shape != rows.shape[:-1]:
            raise ValueError(
                f"labels have the shape {rows.shape[:-1]} of z without its classes, not"
                f" {target.shape}"
            )
        ignored = target < 0
        if where is not None:
            kept = jnp.moveaxis(jnp.broadcast_to(where, jnp.shape(z)), axis, -1)
            at = jnp.clip(target, 0, rows.shape[-1] - 1)[..., None]
            ignored |= ~jnp.take_along_axis(kept, at, -1)[..., 0]
    else:
        if target.shape != jnp.shape(z):
            raise ValueError(
                f"target distributions have the shape {jnp.shape(z)} of z, not {target.shape}"
            )
        target = jnp.moveaxis(target, axis, -1).astype(rows.dtype)
    value, _, _ = _loss_and_p(
        _Form(how, gradient == "autodiff"),
        rows,
        jax.lax.stop_gradient(target),
        jnp.asarray(tau, rows.dtype),
        alpha,
    )
    if ignored is not None:
        value = jnp.where(target < rows.shape[-1], value, jnp.nan)
        value = jnp.where(ignored, 0, value)
    if weights is not None:
        weights = jnp.broadcast_to(jnp.asarray(weights, value.dtype), value.shape)
        value = jnp.where(weights == 0, 0, weights * value)
    return value


def entmax_loss(z: ArrayLike, target: ArrayLike, alpha: ArrayLike, **options: Any) -> jax.Array:
    """`fenchel_young_loss` under the name of its map.

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
