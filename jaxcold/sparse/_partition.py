"""The threshold search as one operation that keeps to each device's own rows."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxcold.sparse._search import SearchConfig, ThresholdResult, find_thresholds


@functools.cache
def _partitioned(
    config: SearchConfig, power_sum: bool, ndim: int, arrays: tuple[bool, bool]
) -> Any:
    """`solve` for z of ``ndim`` axes, which compiled programs run on each device's own rows.

    A row's search asks no other row, but the loop over rows ends when all have ended: left to
    itself the partitioner gathers the rows, or lets the devices wait for each other in every step.
    """

    def solve(z: jax.Array, *rest: jax.Array) -> ThresholdResult:
        given = iter(rest)
        scale, alpha = (next(given) if there else None for there in arrays)
        batch, n = z.shape[:-1], z.shape[-1]
        flat = jax.tree.map(lambda a: a.reshape(math.prod(batch)), (scale, alpha))
        rows = z.reshape(math.prod(batch), n)
        result = find_thresholds(rows, flat[0], flat[1], config, power_sum=power_sum)
        return jax.tree.map(lambda a: a.reshape(batch), result)

    split = custom_partitioning(solve)

    def partition(mesh: Any, arg_shapes: Any, result_shape: Any) -> Any:
        logits, *others = (a.sharding for a in jax.tree.leaves(arg_shapes))
        results = jax.tree.map(lambda a: a.sharding, result_shape)
        if isinstance(logits, NamedSharding):
            spec = tuple(logits.spec) + (None,) * (ndim - len(logits.spec))
            rows = NamedSharding(logits.mesh, PartitionSpec(*spec[:-1]))
            logits = NamedSharding(logits.mesh, PartitionSpec(*spec[:-1], None))
            others = [rows] * len(others)
            results = jax.tree.map(lambda _: rows, result_shape)
        return mesh, solve, results, (logits, *others)

    def infer(mesh: Any, arg_shapes: Any, result_shape: Any) -> Any:  # without Shardy
        return partition(mesh, arg_shapes, result_shape)[2]

    rows = " ".join(f"b{i}" for i in range(ndim - 1)) or "..."
    operands = ", ".join([f"{rows} n"] + [rows] * sum(arrays))
    results = ", ".join([rows] * len(ThresholdResult._fields))
    split.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=f"{operands} -> {results}",
        need_replication_factors=("n",),
    )
    return split


def solve(
    z: jax.Array,
    alpha: jax.Array | None,
    config: SearchConfig,
    scale: jax.Array | None = None,
    power_sum: bool = False,
) -> ThresholdResult:
    """The threshold of every row.

    Args:
        z: [..., n] float32 or float64 logits, largest finite; -inf entries are inert.
        alpha: [...] or scalar, used where ``config.alpha`` is None.
        config: the static part.
        scale: [...] or scalar, multiplies the logits.
        power_sum: also sum ``p ** alpha``.

    Returns:
        The results, each array [...].
    """
    batch = z.shape[:-1]
    if config.alpha is not None:
        alpha = None
    rest = [None if a is None else jnp.broadcast_to(a, batch) for a in (scale, alpha)]
    arrays = (scale is not None, alpha is not None)

    @jax.custom_batching.custom_vmap
    def rows(*arguments: jax.Array) -> ThresholdResult:
        split = _partitioned(config, power_sum, arguments[0].ndim, arrays)
        return split(*arguments)

    @rows.def_vmap
    def batched(size: int, is_batched: Any, *arguments: jax.Array) -> Any:
        arguments = tuple(
            a if batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, batched in zip(arguments, is_batched, strict=True)
        )
        results = rows(*arguments)
        return results, jax.tree.map(lambda _: True, results)

    return rows(z, *(a for a in rest if a is not None))
