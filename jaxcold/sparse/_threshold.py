"""Search for the one number per row that makes the entmax probabilities sum to one.

With ``u = scale * (z - max z)`` and ``e = alpha - 1`` the probabilities of a row are

    p = max(e u - eta, 0) ** (1 / e) = max(1 + e (u - level), 0) ** (1 / e),  eta = e level - 1.

The two forms are one curve, and rounding decides between them: ``eta`` keeps its digits where many
entries share the mass (large alpha), ``level`` tends to the log-sum-exp as alpha tends to 1 and
keeps its own there. ``cut`` below is ``level`` for alpha < 1.5 and ``eta`` from 1.5 on.

The search is Newton's method on ``F ** e``, F being the sum of p. For alpha <= 2 that is a norm of
``max(e u - eta, 0)``, hence convex and decreasing in the cut: started left of the root it never
passes it, and on one entry or on equal entries a single step is exact. For sparsemax it visits
the same points as the finite algorithm of Michelot (1986). A bracket around the root and a
bisection at every other step, after sixteen steps or for alpha > 2 from the start, bound the time
for any input: every step visits a number strictly inside the bracket and then shrinks it. The loop
ends on its residual or on an empty bracket, never on a count.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

METHODS = ("auto", "sort", "newton", "bisect", "pallas")

# Elements of one block on a CPU: a megabyte of float32 stays in the cache of a core while the
# search passes over it, and is enough for XLA to share a pass between cores.
_BLOCK = 1 << 18

# Groups of columns whose largest entries give a search its start.
_GROUPS = 128


class How(NamedTuple):
    """What is static in a search."""

    alpha: float | None  # None: alpha is an array
    method: str = "auto"
    k: int | None = None  # entries that `sort` looks at first


class Cut(NamedTuple):
    """All that the probabilities of a row need besides its logits; each is [...]."""

    top: jax.Array  # largest logit; 0 for a row of -inf
    cut: jax.Array  # eta or level, see the module
    mass: jax.Array  # what the probabilities sum to before they are divided by it
    weight: jax.Array  # their sum of p ** (2 - alpha) over the support
    energy: jax.Array  # their sum of p ** alpha


def _sort_start(t: jax.Array, how: How) -> jax.Array:
    """Threshold of rows [r, n] of scaled logits from their sorted prefix; alpha 1.5 or 2."""
    n = t.shape[-1]

    def prefix(t: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        ordered = jax.lax.top_k(t, count)[0]
        size = jnp.arange(1, count + 1, dtype=t.dtype)[None]
        total = jnp.cumsum(ordered, -1)
        if how.alpha == 2:
            eta = (total - 1) / size
        else:
            mean = total / size
            spread = jnp.cumsum(ordered**2, -1) - mean * total
            eta = mean - jnp.sqrt(jnp.maximum((1 - spread) / size, 0))
        inside = (ordered > eta).sum(-1)
        at = jnp.maximum(inside - 1, 0)[:, None]
        return jnp.take_along_axis(eta, at, -1)[:, 0], inside

    if how.k is None or how.k >= n:
        return prefix(t, n)[0]
    eta, inside = prefix(t, max(how.k, 1))
    # A support as large as the prefix may go on behind it.
    return jax.lax.cond(jnp.any(inside >= how.k), lambda: prefix(t, n)[0], lambda: eta)


def _near_one(how: How, e: jax.Array) -> jax.Array | bool:
    return e < 0.5 if how.alpha is None else how.alpha < 1.5


def expm1_over(x: jax.Array) -> jax.Array:
    """``(exp(x) - 1) / x``, 1 at 0; its derivatives are right there too."""
    small = jnp.abs(x) < 1e-2
    safe = jnp.where(small, 1, x)
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    return jnp.where(small, series, jnp.expm1(safe) / safe)


def work(u: jax.Array, e: jax.Array, how: How) -> jax.Array:
    """What the cut is subtracted from, [..., n]; entries at the floor have no probability."""
    far = jnp.maximum(e * u, -1)
    if how.alpha is not None and how.alpha >= 1.5:
        return far
    near = jnp.maximum(u, -1 / e)
    return near if how.alpha is not None else jnp.where(_near_one(how, e), near, far)


def log_probability(d: jax.Array, e: jax.Array, how: How) -> jax.Array:
    """Logarithm of p from ``d = work - cut``, [..., n]; -inf outside the support."""
    near = _near_one(how, e)
    by_eta = jnp.where(d > 0, jnp.log(jnp.where(d > 0, d, 1)) / jnp.where(near, 1, e), -jnp.inf)
    if near is False:
        return by_eta
    y = e * jnp.where(d > -jnp.inf, d, 0)
    inside = (y > -1) & (d > -jnp.inf)
    y = jnp.where(inside & (y != 0), y, 1)
    ratio = jnp.where(e * d == 0, 1, jnp.log1p(y) / y)
    by_level = jnp.where(inside, d * ratio, -jnp.inf)
    return by_level if how.alpha is not None else jnp.where(near, by_level, by_eta)


def _sums(
    t: jax.Array, cut: jax.Array, e: jax.Array, how: How, cached: bool
) -> tuple[jax.Array, jax.Array]:
    """Sums of p and of ``p ** (2 - alpha)`` over the support, for rows [r, n] of `work`.

    XLA:CPU writes a shared operand of several reductions once, the fast way while it stays in the
    cache, but compares slowly: ``cached`` counts the support by clipping. An entry above the cut
    exceeds it by a rounding unit of the cut at least, which is far above the clip.
    """
    if how.alpha in (1.5, 2):
        d = jnp.maximum(t - cut[:, None], 0)
        if how.alpha == 1.5:
            return (d * d).sum(-1), d.sum(-1)
        if not cached:
            return d.sum(-1), (d > 0).sum(-1, dtype=d.dtype)
        clip = 2.0**-100 if t.dtype == jnp.float64 else 2.0**-60
        d = jax.lax.optimization_barrier(d)
        count = jax.lax.optimization_barrier(jnp.minimum(d, clip)).sum(-1) / clip
        return d.sum(-1), count
    log_p = log_probability(t - cut[:, None], e, how)
    inside = log_p > -jnp.inf
    safe = jnp.where(inside, log_p, 0)
    mass = jnp.where(inside, jnp.exp(safe), 0).sum(-1)
    return mass, jnp.where(inside, jnp.exp((1 - e) * safe), 0).sum(-1)


def _energy(t: jax.Array, cut: jax.Array, e: jax.Array, how: How) -> jax.Array:
    """Sum of ``p ** alpha`` for rows [r, n] of `work`."""
    d = jnp.maximum(t - cut[:, None], 0)
    if how.alpha == 2:
        return (d * d).sum(-1)
    if how.alpha == 1.5:
        return jnp.einsum("ij,ij->i", d * d, d, precision="highest")
    return jnp.exp((1 + e) * log_probability(t - cut[:, None], e, how)).sum(-1)


def _search(
    z: jax.Array, scale: jax.Array, alpha: jax.Array, how: How, energy: bool, cached: bool
) -> Cut:
    """`solve` for rows: z [r, n], alpha [r]."""
    n = z.shape[-1]
    grouped = n - n % _GROUPS
    leaders = None
    newton_only = how.method in ("auto", "newton") and how.alpha is not None and 1 < how.alpha <= 2
    if cached and newton_only and grouped >= 4 * _GROUPS:
        # Maxima over the columns of equal remainder: the way that vectorises.
        leaders = jax.lax.optimization_barrier(
            z[:, :grouped].reshape(-1, grouped // _GROUPS, _GROUPS).max(1)
        )
        top = leaders.max(-1)
        top = top if grouped == n else jnp.maximum(top, z[:, grouped:].max(-1))
    else:
        top = z.max(-1)
    empty = top == -jnp.inf
    top = jnp.where(empty, 0, top)
    u = scale * (z - top[:, None])
    if how.alpha == 1:
        total = jnp.where(empty, 1, jnp.exp(u).sum(-1))
        one = jnp.where(empty, 1.0, jnp.ones_like(top))
        return Cut(top, jnp.log(total), one, one, one)
    row_e = alpha - 1 if how.alpha is None else jnp.asarray(how.alpha - 1, z.dtype)
    e = row_e[:, None] if how.alpha is None else row_e
    t = work(u, e, how)
    near = _near_one(how, row_e)

    # At the largest logit p lies between 1 / n and 1. With alpha <= 2 Jensen's inequality gives a
    # second lower bound, which is the root itself for equal entries.
    log_n = jnp.log(jnp.asarray(n, z.dtype))
    high = jnp.where(near, log_n * expm1_over(-row_e * log_n), -jnp.exp(-row_e * log_n))
    low = jnp.where(near, jnp.zeros_like(row_e), -1)
    mean = t.mean(-1)
    eps = jnp.finfo(z.dtype).eps
    by_mean = mean + high - 4 * eps * jnp.abs(mean)
    low = jnp.where((row_e <= 1) & (by_mean > low) & ~empty, by_mean, low)
    high = jnp.where(high > low, high, low)

    def newton(cut: jax.Array, mass: jax.Array, weight: jax.Array) -> jax.Array:
        log_mass = jnp.log(mass)
        move = mass / weight * log_mass * expm1_over(-row_e * log_mass)
        return cut + jnp.where(near, move, row_e * move)

    start = low
    if leaders is not None:
        # The leaders alone need a lower cut than the row, and Newton's steps stay left of theirs:
        # a start that costs little and is nearly the root where few entries have a probability.
        few = work(scale * (leaders - top[:, None]), e, how)

        def climb(state: tuple) -> tuple:
            step, cut, mass, weight = state
            cut = jnp.where(mass > 1, newton(cut, mass, weight), cut)
            return step + 1, cut, *_sums(few, cut, e, how, cached)

        def worthwhile(state: tuple) -> jax.Array:
            return (state[0] < 8) & jnp.any(state[2] > 1.1)

        climbed = jax.lax.while_loop(
            worthwhile, climb, (0, start, *_sums(few, start, e, how, cached))
        )
        start = jnp.clip(climbed[1], low, high)
    if how.method == "sort":
        start = jnp.clip(_sort_start(t, how), low, high)
    if how.method == "pallas" and how.alpha is not None:
        from jaxcold.sparse import _pallas  # kernels: only for those who ask

        # The search below ends at once on the kernel's result, or finishes it in float64.
        start = jnp.clip(_pallas.threshold(t, how.alpha).astype(z.dtype), low, high)
    # Newton leaves the left of the root only for alpha > 2.
    patience = 16 if how.alpha is not None and how.alpha <= 2 else 0
    mass, weight = _sums(t, start, e, how, cached)

    def unfinished(mass: jax.Array) -> jax.Array:
        return jnp.abs(mass - 1) > 8 * eps

    def advance(state: tuple) -> tuple:
        step, active, cut, low, high, mass, weight = state
        low = jnp.where(active & (mass >= 1), cut, low)
        high = jnp.where(active & (mass < 1), cut, high)
        point = newton(cut, mass, weight)
        usable = ((point > low) & (point < high)) | (point == cut)
        if how.method == "bisect":
            usable = jnp.zeros_like(usable)
        else:
            usable &= (step < patience) | (step % 2 == 0)
        point = jnp.where(usable, point, (low + high) / 2)
        # A wide support can leave the sum of p off by more than the tolerance on both of two
        # neighbouring numbers: where nothing lies between low and high, the search is over.
        active &= (point > low) & (point < high)
        moved = jnp.where(active, point, cut)
        mass, weight = _sums(t, moved, e, how, cached)
        active &= unfinished(mass)
        return step + 1, active, moved, low, high, mass, weight

    # The bound may be the root itself, and only what lies inside the bracket is visited.
    high += 4 * eps * (1 + jnp.abs(high))
    first = (0, unfinished(mass) & ~empty, start, low, high, mass, weight)
    last = jax.lax.while_loop(lambda state: jnp.any(state[1]), advance, first)
    cut, mass, weight = last[2], jnp.where(empty, 1, last[5]), last[6]
    return Cut(top, cut, mass, weight, _energy(t, cut, e, how) if energy else mass)


def _search_in_blocks(
    z: jax.Array, scale: jax.Array, alpha: jax.Array, how: How, energy: bool
) -> Cut:
    """The same, a cache full of rows at a time."""
    rows, n = z.shape
    block = max(1, _BLOCK // n)
    search = functools.partial(_search, how=how, energy=energy, cached=True)
    whole = rows - rows % block
    cut = jax.lax.map(
        lambda part: search(part[0], scale, part[1]),
        (z[:whole].reshape(-1, block, n), alpha[:whole].reshape(-1, block)),
    )
    cut = jax.tree.map(lambda a: a.reshape(whole), cut)
    if whole == rows:
        return cut
    rest = search(z[whole:], scale, alpha[whole:])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cut, rest)


# Compiled as a whole also where the caller is not: eager loops would be compiled at every call.
@functools.partial(jax.jit, static_argnames=("how", "energy"), inline=True)
def solve(
    z: jax.Array,
    alpha: jax.Array,
    how: How,
    scale: jax.Array | float = 1.0,
    energy: bool = False,
) -> Cut:
    """The cut of every row.

    Args:
        z: [..., n] float32 or float64 logits, largest finite; -inf entries are inert.
        alpha: [...] or scalar, used where ``how.alpha`` is None.
        how: the static part.
        scale: scalar, multiplies the logits.
        energy: also sum ``p ** alpha``.

    Returns:
        The cut, each array [...].
    """
    batch, n = z.shape[:-1], z.shape[-1]
    alpha = jnp.asarray(alpha if how.alpha is None else how.alpha, z.dtype)
    alpha = jnp.broadcast_to(alpha, batch).reshape(-1)
    arguments = z.reshape(-1, n), jnp.asarray(scale, z.dtype), alpha
    whole = functools.partial(_search, how=how, energy=energy, cached=False)
    if how.method == "pallas":
        return jax.tree.map(lambda a: a.reshape(batch), whole(*arguments))
    cut = jax.lax.platform_dependent(
        *arguments,
        cpu=functools.partial(_search_in_blocks, how=how, energy=energy),
        default=whole,
    )
    return jax.tree.map(lambda a: a.reshape(batch), cut)


def probabilities(
    z: jax.Array, cut: Cut, alpha: jax.Array, how: How, scale: jax.Array | float = 1.0
) -> jax.Array:
    """The probabilities [..., n] at a cut of `solve`, by one elementwise expression."""
    e = alpha[..., None] - 1 if how.alpha is None else jnp.asarray(how.alpha - 1, z.dtype)
    u = scale * (z - cut.top[..., None])
    if how.alpha == 1:
        return jnp.exp(u - cut.cut[..., None])
    d = work(u, e, how) - cut.cut[..., None]
    if how.alpha == 2:
        p = jnp.maximum(d, 0)
    elif how.alpha == 1.5:
        p = jnp.maximum(d, 0) ** 2
    else:
        p = jnp.exp(log_probability(d, e, how))
    return p / cut.mass[..., None]
