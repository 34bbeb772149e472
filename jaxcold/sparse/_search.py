"""The Newton search for the one number per row that makes entmax probabilities sum to one.

With ``u = scale * (z - max z)`` and ``e = alpha - 1`` the probabilities of a row are

    p = max(e u - eta, 0) ** (1 / e) = max(1 + e (u - level), 0) ** (1 / e),  eta = e level - 1.

The two forms are one curve, and rounding decides between them: ``eta`` keeps its digits where many
entries share the mass (large alpha), ``level`` tends to the log-sum-exp as alpha tends to 1 and
keeps its own there. The ``cut`` below is ``level`` for alpha < 1.5 and ``eta`` from 1.5 on.

The search is Newton's method on ``F ** e``, F being the sum of p. For 1 < alpha <= 2 that is a norm
of ``max(e u - eta, 0)``, convex and decreasing in the cut; for alpha < 1 it is concave and
increasing (Minkowski's inequality reversed). Started left of the root it never passes it, and on
one entry or on equal entries a single step is exact. For sparsemax it visits the points of the
finite algorithm of Michelot (1986). A bracket around the root and a bisection at every other step
(after sixteen steps, or for alpha > 2 from the start) bound the time for any input: every step
visits a number strictly inside the bracket and then shrinks it. The loop ends on its residual or
on an empty bracket, never on a count. NaN ends it at once and makes the row NaN.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

METHODS = ("auto", "sort", "newton", "bisect")

# Elements of one block on a CPU: four megabytes of float32 stay in the cache that cores share while
# the search passes over them, and are enough for XLA to share a pass between cores.
_BLOCK = 1 << 20

# Elements of logits for which one order of work suits all platforms.
_SMALL = 1 << 14

# Groups of columns whose largest entries give a search its start.
_GROUPS = 128


class SearchConfig(NamedTuple):
    """What is static in a search."""

    alpha: float | None  # None: alpha is an array
    method: str = "auto"
    k: int | None = None  # entries that `sort` looks at first


class ThresholdResult(NamedTuple):
    """All that the probabilities of a row need besides its logits; each is [...]."""

    top: jax.Array  # largest logit; 0 for a row of -inf
    cut: jax.Array  # eta or level, see the module
    mass: jax.Array  # what the probabilities sum to before they are divided by it
    weight: jax.Array  # their sum of p ** (2 - alpha) over the support
    sum_p_alpha: jax.Array  # their sum of p ** alpha; the mass where it was not asked for


def _same(x: Any) -> Any:
    return x


class Reduction(NamedTuple):
    """How results of several shards of one row become one; by default a row is whole."""

    total: Callable[[Any], Any] = _same  # a tree of sums over this shard -> over all
    largest: Callable[[jax.Array], jax.Array] = _same
    shards: int = 1


WHOLE_ROWS = Reduction()


def _uses_level(config: SearchConfig, e: jax.Array) -> jax.Array | bool:
    return e < 0.5 if config.alpha is None else config.alpha < 1.5


def expm1_over(x: jax.Array) -> jax.Array:
    """``(exp(x) - 1) / x``, 1 at 0; its derivatives are right there too."""
    small = jnp.abs(x) < 1e-2
    safe = jnp.where(small, 1, x)
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    return jnp.where(small, series, jnp.expm1(safe) / safe)


def shifted_logits(u: jax.Array, e: jax.Array, config: SearchConfig) -> jax.Array:
    """What the cut is subtracted from, [..., n]; entries at the floor have no probability."""
    if config.alpha is not None and config.alpha >= 1.5:
        return jnp.maximum(e * u, -1)
    # A little below -1 / e, so that rounding gives an entry at the floor no probability.
    room = 1 + 8 * float(jnp.finfo(u.dtype).eps)
    if config.alpha is not None:
        return u if config.alpha <= 1 else jnp.maximum(u, -room / e)
    floor = jnp.where(e > 0, -room / jnp.where(e > 0, e, 1), -jnp.inf)
    level = jnp.maximum(u, floor)
    return jnp.where(_uses_level(config, e), level, jnp.maximum(e * u, -1))


def log_probability(d: jax.Array, e: jax.Array, config: SearchConfig) -> jax.Array:
    """Logarithm of p from ``d = shifted_logits - cut``, [..., n]; -inf outside the support."""
    if config.alpha == 1:
        return d
    by_level = by_eta = d
    if config.alpha is None or config.alpha < 1.5:
        y = e * d if config.alpha is not None else jnp.where(e == 0, 0, e * d)
        outside = y <= -1
        divisor = e if config.alpha is not None else jnp.where(e == 0, 1, e)
        by_level = jnp.log1p(jnp.where(outside, 0, y)) / divisor
        if config.alpha is None:
            by_level = jnp.where(e == 0, d, by_level)
        by_level = jnp.where(outside, -jnp.inf, by_level)
        if config.alpha is not None:
            return by_level
    outside = d <= 0
    divisor = jnp.where(_uses_level(config, e), 1, e) if config.alpha is None else e
    by_eta = jnp.where(outside, -jnp.inf, jnp.log(jnp.where(outside, 1, d)) / divisor)
    return by_eta if config.alpha is not None else jnp.where(e < 0.5, by_level, by_eta)


def _sums(
    t: jax.Array, cut: jax.Array, e: jax.Array, config: SearchConfig, cached: bool
) -> tuple[jax.Array, jax.Array]:
    """Sums of p and of ``p ** (2 - alpha)`` over the support, for rows [r, n] of shifted logits.

    XLA:CPU writes a shared operand of several reductions once, the fast way while it stays in the
    cache, but compares slowly: ``cached`` counts the support by clipping. An entry above the cut
    exceeds it by a rounding unit of the cut at least, which is far above the clip.
    """
    if config.alpha in (1.5, 2):
        d = jnp.maximum(t - cut[:, None], 0)
        if config.alpha == 1.5:
            return (d * d).sum(-1), d.sum(-1)
        if not cached:
            return d.sum(-1), (d > 0).sum(-1, dtype=d.dtype)
        clip = 2.0**-100 if t.dtype == jnp.float64 else 2.0**-60
        d = jax.lax.optimization_barrier(d)
        count = jax.lax.optimization_barrier(jnp.minimum(d, clip)).sum(-1) / clip
        return d.sum(-1), count
    log_p = log_probability(t - cut[:, None], e, config)
    return jnp.exp(log_p).sum(-1), _power_of_p(log_p, 1 - e, config).sum(-1)


def _power_of_p(log_p: jax.Array, exponent: jax.Array, config: SearchConfig) -> jax.Array:
    """``p ** exponent`` on the support, 0 elsewhere; the exponent may be 0 or negative."""
    if config.alpha is not None and config.alpha < 2:
        return jnp.exp(exponent * log_p)
    outside = log_p == -jnp.inf
    return jnp.where(outside, 0, jnp.exp(exponent * jnp.where(outside, 0, log_p)))


def _sum_p_alpha(t: jax.Array, cut: jax.Array, e: jax.Array, config: SearchConfig) -> jax.Array:
    """Sum of ``p ** alpha`` for rows [r, n] of shifted logits."""
    d = jnp.maximum(t - cut[:, None], 0)
    if config.alpha == 2:
        return (d * d).sum(-1)
    if config.alpha == 1.5:
        return jnp.einsum("ij,ij->i", d * d, d, precision="highest")
    return jnp.exp((1 + e) * log_probability(t - cut[:, None], e, config)).sum(-1)


def _sort_start(t: jax.Array, config: SearchConfig) -> jax.Array:
    """Threshold of rows [r, n] of shifted logits from their sorted prefix; alpha 1.5 or 2."""
    n = t.shape[-1]

    def prefix(t: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        ordered = jax.lax.top_k(t, count)[0]
        size = jnp.arange(1, count + 1, dtype=t.dtype)[None]
        total = jnp.cumsum(ordered, -1)
        if config.alpha == 2:
            eta = (total - 1) / size
        else:
            mean = total / size
            spread = jnp.cumsum(ordered**2, -1) - mean * total
            eta = mean - jnp.sqrt(jnp.maximum((1 - spread) / size, 0))
        inside = (ordered > eta).sum(-1)
        at = jnp.maximum(inside - 1, 0)[:, None]
        return jnp.take_along_axis(eta, at, -1)[:, 0], inside

    if config.k is None or config.k >= n:
        return prefix(t, n)[0]
    eta, inside = prefix(t, max(config.k, 1))
    # A support as large as the prefix may go on behind it.
    return jax.lax.cond(jnp.any(inside >= config.k), lambda: prefix(t, n)[0], lambda: eta)


def _newton_step(
    cut: jax.Array, mass: jax.Array, weight: jax.Array, e: jax.Array, config: SearchConfig
) -> jax.Array:
    log_mass = jnp.log(mass)
    move = mass / weight * log_mass * expm1_over(-e * log_mass)
    return cut + jnp.where(_uses_level(config, e), move, e * move)


def bracket(
    t: jax.Array, e: jax.Array, config: SearchConfig, reduction: Reduction = WHOLE_ROWS
) -> tuple[jax.Array, jax.Array]:
    """Bounds [r] of the cut of rows [r, n] of shifted logits whose largest entry is 0."""
    by_level = _uses_level(config, e)
    n = t.shape[-1] * reduction.shards
    log_n = jnp.log(jnp.asarray(n, t.dtype))
    # At the largest logit p lies between 1 / n and 1. With alpha <= 2 Jensen's inequality gives a
    # second lower bound, which is the root itself for equal entries.
    high = jnp.where(by_level, log_n * expm1_over(-e * log_n), -jnp.exp(-e * log_n))
    low = jnp.where(by_level, jnp.zeros_like(e), -1)
    mean = reduction.total(t.sum(-1)) / n
    by_mean = mean + high - 4 * float(jnp.finfo(t.dtype).eps) * jnp.abs(mean)
    low = jnp.where((e <= 1) & (by_mean > low), by_mean, low)
    return low, jnp.where(high > low, high, low)


def newton_search(
    t: jax.Array,
    e: jax.Array,
    config: SearchConfig,
    bounds: tuple[jax.Array, jax.Array],
    start: jax.Array,
    active: jax.Array,
    *,
    reduction: Reduction = WHOLE_ROWS,
    cached: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cut of rows of shifted logits, see the module; dense rows, tiles and shards share it.

    Args:
        t: [r, n] shifted logits.
        e: [r] or scalar, alpha - 1.
        config: the static part.
        bounds: [r] and [r] numbers around the cut; for alpha <= 2 Newton's steps start at the low
            one and need the high one only to bound the time.
        start: [r] where to begin.
        active: bool[r], False for rows that need no search.
        reduction: sums over the shards of a row.
        cached: see `_sums`.

    Returns:
        The cut, and the sums of p and of ``p ** (2 - alpha)`` there; each [r].
    """
    eps = float(jnp.finfo(t.dtype).eps)
    column_e = e[:, None] if jnp.ndim(e) else e
    # Newton leaves the left of the root only for alpha > 2.
    patience = 16 if config.alpha is not None and config.alpha <= 2 else 0
    low, high = bounds
    # The bound may be the root itself, and only what lies inside the bracket is visited.
    high = high + 4 * eps * (1 + jnp.abs(high))

    def advance(state: tuple) -> tuple:
        step, _, (cut, low, high, _, _, active) = state
        active = active > 0
        mass, weight = reduction.total(_sums(t, cut, column_e, config, cached))
        active &= jnp.abs(mass - 1) > 8 * eps
        low = jnp.where(active & (mass >= 1), cut, low)
        high = jnp.where(active & (mass < 1), cut, high)
        point = _newton_step(cut, mass, weight, e, config)
        usable = (point > low) & (point < high)
        if config.method == "bisect":
            usable = jnp.zeros_like(usable)
        else:
            usable &= (step < patience) | (step % 2 == 0)
            # Where the sum cannot be brought nearer to 1, Newton's step stays where it is.
            active &= point != cut
        point = jnp.where(usable, point, (low + high) / 2)
        # A wide support can leave the sum of p off by more than the tolerance on both of two
        # neighbouring numbers: where nothing lies between low and high, the search is over.
        active &= (point > low) & (point < high)
        cut = jnp.where(active, point, cut)
        return packed(step + 1, active, cut, low, high, mass, weight)

    def packed(step: jax.Array | int, active: jax.Array, *numbers: jax.Array) -> tuple:
        # One array: XLA compiles and calls a kernel for every array that a loop carries.
        return step, active.any(), jnp.stack([*numbers, active.astype(t.dtype)])

    # The sums are made inside the loop alone, and so compiled once.
    one = jnp.ones_like(start)
    first = packed(0, active, start, low, high, one, one)
    cut, _, _, mass, weight, _ = jax.lax.while_loop(lambda state: state[1], advance, first)[2]
    return cut, mass, weight


def _climb(leaders: jax.Array, e: jax.Array, config: SearchConfig, start: jax.Array) -> jax.Array:
    """A start from the largest entries of groups, [r, groups] of shifted logits.

    They alone need a lower cut than the row, and Newton's steps stay left of theirs: it costs
    little and is nearly the root where few entries have a probability.
    """

    def climb(state: tuple) -> tuple:
        step, cut, _ = state
        mass, weight = _sums(leaders, cut, e, config, cached=True)
        point = jnp.where(mass > 1, _newton_step(cut, mass, weight, e, config), cut)
        return step + 1, point, jnp.any(mass > 1.1)

    def worthwhile(state: tuple) -> jax.Array:
        return (state[0] < 8) & state[2]

    first = (0, start, jnp.any(start == start))  # made from the rows for shard_map
    return jax.lax.while_loop(worthwhile, climb, first)[1]


def find_threshold(
    z: jax.Array,
    scale: jax.Array | None,
    alpha: jax.Array | None,
    config: SearchConfig,
    *,
    power_sum: bool = False,
    cached: bool = False,
    reduction: Reduction = WHOLE_ROWS,
    at_least: jax.Array | None = None,
) -> ThresholdResult:
    """`solve` for rows z [r, n], scale [r], alpha [r] whose cuts are ``at_least`` [r], if given."""
    n = z.shape[-1]
    leaders = None
    newton_only = config.alpha is not None and 1 < config.alpha <= 2
    newton_only &= config.method in ("auto", "newton")
    if cached and newton_only and n >= 4 * _GROUPS:
        # Maxima over the columns of equal remainder: the way that vectorises.
        grouped = n - n % _GROUPS
        leaders = jax.lax.optimization_barrier(
            z[:, :grouped].reshape(-1, grouped // _GROUPS, _GROUPS).max(1)
        )
        top = leaders.max(-1)
        top = top if grouped == n else jnp.maximum(top, z[:, grouped:].max(-1))
    else:
        top = reduction.largest(z.max(-1))
    empty = top == -jnp.inf
    top = jnp.where(empty, 0, top)

    def relative(z: jax.Array) -> jax.Array:
        u = z - top[:, None]
        return u if scale is None else scale[:, None] * u

    if config.alpha == 1:
        one = jnp.where(empty, 1.0, jnp.ones_like(top))
        total = jnp.where(empty, 1, reduction.total(jnp.exp(relative(z)).sum(-1)))
        return ThresholdResult(top, jnp.log(total), one, one, one)
    e = jnp.asarray(alpha - 1 if config.alpha is None else config.alpha - 1, z.dtype)  # type: ignore[operator]
    column_e = e[:, None] if config.alpha is None else e
    t = shifted_logits(relative(z), column_e, config)
    low, high = bracket(t, e, config, reduction)
    if at_least is not None:
        low = jnp.clip(at_least, low, high)
    start = low
    if leaders is not None:
        start = _climb(shifted_logits(relative(leaders), e, config), e, config, low)
        start = jnp.clip(start, low, high)
    if config.method == "sort":
        start = jnp.clip(_sort_start(t, config), low, high)
    cut, mass, weight = newton_search(
        t, e, config, (low, high), start, ~empty, reduction=reduction, cached=cached
    )
    mass = jnp.where(empty, 1, mass)
    power = reduction.total(_sum_p_alpha(t, cut, column_e, config)) if power_sum else mass
    return ThresholdResult(top, cut, mass, weight, power)


def _find_in_blocks(
    z: jax.Array,
    scale: jax.Array | None,
    alpha: jax.Array | None,
    at_least: jax.Array | None,
    *,
    config: SearchConfig,
    power_sum: bool,
) -> ThresholdResult:
    """The same, a cache full of rows at a time."""

    def find(
        z: jax.Array, scale: jax.Array | None, alpha: jax.Array | None, low: jax.Array | None
    ) -> ThresholdResult:
        return find_threshold(
            z, scale, alpha, config, power_sum=power_sum, cached=True, at_least=low
        )

    rows, n = z.shape
    # A number of rows that only a later caller knows (jax.export) is one block.
    if not isinstance(rows, int) or not isinstance(n, int) or rows * n <= _BLOCK:
        return find(z, scale, alpha, at_least)
    block = min(max(1, _BLOCK // n), rows)

    def step(i: jax.Array, results: ThresholdResult) -> ThresholdResult:
        # The last block may be ragged: it is moved back and finds some rows again.
        first = jnp.minimum(i * block, rows - block)

        def part(a: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(a, first, block)

        block_results = find(*jax.tree.map(part, (z, scale, alpha, at_least)))
        return jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice(a, b, (first,)), results, block_results
        )

    # Made from the logits, so that shard_map takes them to differ between devices as those do.
    zero = z[:, 0] * 0
    empty = ThresholdResult(*(zero,) * len(ThresholdResult._fields))
    return jax.lax.fori_loop(0, -(-rows // block), step, empty)


def find_thresholds(
    z: jax.Array,
    scale: jax.Array | None,
    alpha: jax.Array | None,
    config: SearchConfig,
    *,
    power_sum: bool = False,
    at_least: jax.Array | None = None,
) -> ThresholdResult:
    """`find_threshold` in the order of work that suits the platform."""

    def whole(
        z: jax.Array, scale: jax.Array | None, alpha: jax.Array | None, low: jax.Array | None
    ) -> ThresholdResult:
        return find_threshold(z, scale, alpha, config, power_sum=power_sum, at_least=low)

    # Each platform's way is traced anew: not for what is small everywhere.
    if isinstance(z.size, int) and z.size <= _SMALL:
        return whole(z, scale, alpha, at_least)
    blocks = functools.partial(_find_in_blocks, config=config, power_sum=power_sum)
    return jax.lax.platform_dependent(z, scale, alpha, at_least, cpu=blocks, default=whole)


def probabilities(
    z: jax.Array,
    result: ThresholdResult,
    alpha: jax.Array | None,
    config: SearchConfig,
    scale: jax.Array | None = None,
) -> jax.Array:
    """The probabilities [..., n] at a result of `solve`, by one elementwise expression."""
    if config.alpha not in (1, 1.5, 2):
        return jnp.exp(log_probabilities(z, result, alpha, config, scale))
    u = z - result.top[..., None]
    if scale is not None:
        u = scale[..., None] * u
    if config.alpha == 1:
        return jnp.exp(u - result.cut[..., None])
    e = jnp.asarray(config.alpha - 1, z.dtype)
    d = jnp.maximum(shifted_logits(u, e, config) - result.cut[..., None], 0)
    return (d if config.alpha == 2 else d * d) / result.mass[..., None]


def log_probabilities(
    z: jax.Array,
    result: ThresholdResult,
    alpha: jax.Array | None,
    config: SearchConfig,
    scale: jax.Array | None = None,
) -> jax.Array:
    """The logarithms of `probabilities`, -inf where they are 0."""
    u = z - result.top[..., None]
    if scale is not None:
        u = scale[..., None] * u
    static = None if config.alpha is None else jnp.asarray(config.alpha - 1, z.dtype)
    e = alpha[..., None] - 1 if static is None else static  # type: ignore[index]
    t = u if config.alpha == 1 else shifted_logits(u, e, config)
    log_p = log_probability(t - result.cut[..., None], e, config)
    return log_p - jnp.log(result.mass)[..., None]
