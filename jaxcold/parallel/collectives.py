"""Communication inside a step: what the devices of one axis gather, sum and scatter.

Each function takes the axis name of `jaxcold.parallel.Devices.axis` and is the identity where it is
None, so a loss is written once for one device and for many.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def size(axis: str | None) -> int:
    """Number of devices on the axis, n."""
    return 1 if axis is None else lax.axis_size(axis)


def index(axis: str | None) -> Array | int:
    """Number of this device on the axis, from 0."""
    return 0 if axis is None else lax.axis_index(axis)


def sum_over_devices(tree: Any, axis: str | None) -> Any:
    """Every array summed over the devices; never inside a function that is differentiated."""
    return tree if axis is None else lax.psum(tree, axis)


def gather(x: Array, axis: str | None) -> Array:
    """The rows of all devices, in the order of the devices: [m, ...] -> [n m, ...]."""
    return x if axis is None else lax.all_gather(x, axis, tiled=True)


def scatter_sum(x: Array, axis: str | None) -> Array:
    """This device's shard of the rows summed over devices: [m, ...] -> [ceil(m / n), ...]."""
    return x if axis is None else lax.psum_scatter(pad_rows(x, axis), axis, tiled=True)


def shard(x: Array, axis: str | None) -> Array:
    """This device's shard of rows that every device has: [m, ...] -> [ceil(m / n), ...]."""
    if axis is None:
        return x
    x = pad_rows(x, axis)
    rows = x.shape[0] // size(axis)
    return lax.dynamic_slice_in_dim(x, index(axis) * rows, rows)


def pad_rows(x: Array, axis: str | None) -> Array:
    """The array with rows of zeros (or False) appended until n divides their number."""
    missing = -x.shape[0] % size(axis)
    return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x


def local_index(ids: Array, rows: int, axis: str | None) -> Array:
    """Row numbers inside this device's shard, and `rows` for rows of other shards.

    Args:
        ids: i32[...] row numbers of the whole table.
        rows: number of rows in each shard.
        axis: name or None.
    """
    if axis is None:
        return ids
    local = ids - index(axis) * rows
    return jnp.where((local >= 0) & (local < rows), local, rows)


def gather_rows(table: Array, at: Array, axis: str | None) -> Array:
    """This device's shard of m looked-up rows of a sharded table: [ceil(m / n), ...].

    Args:
        table: this device's shard.
        at: i32[m] from `local_index`, computed on every device from the same m row numbers.
        axis: name or None.
    """
    if axis is None:
        return table[at]
    return scatter_sum(table.at[at].get(mode="fill", fill_value=0), axis)
