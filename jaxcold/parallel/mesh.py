"""The devices of a run, where its arrays are placed, and running a function on every device."""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
Parallelism = Literal["jit", "pmap", "shard_map"]

# A sharded table is padded for this many shards at most, whatever the device count, so its shape,
# and with it a checkpoint, is the same on 1 and on 1024 devices.
_MAX_SHARDS = 1024


class Devices(NamedTuple):
    """The devices of a run; by default JAX's default device alone."""

    parallelism: Parallelism = "jit"
    mesh: Mesh | None = None  # of the one axis `AXIS`; None: one device
    shard_items: bool = False  # tables with a row per item are sharded by item

    @property
    def n(self) -> int:
        """Number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axis(self) -> str | None:
        """Name of the axis inside a step; None without a mesh."""
        return None if self.mesh is None else AXIS

    def rows(self, count: int) -> int:
        """Number of rows of a table of `count` items after padding to equal shards.

        With `shard_items` this does not depend on n.

        Raises:
            ValueError: if such a table has no equal shards for n devices.
        """
        if not self.shard_items:
            return -(-count // self.n) * self.n
        shards = min(_MAX_SHARDS, max(8, 1 << int(math.log2(max(count / 16, 1)))))
        if shards % self.n:
            raise ValueError(
                f"shard_items: {count} items are split over 1, 2, 4, ... up to {shards} devices, "
                f"not over {self.n}"
            )
        return -(-count // shards) * shards

    def sharding(self, sharded: bool = False) -> NamedSharding | None:
        """Sharding of an array: split along its first axis, or replicated; None without a mesh."""
        if self.mesh is None:
            return None
        return NamedSharding(self.mesh, _spec(sharded))

    def put(self, tree: Any, sharded: Collection[str] | bool = ()) -> Any:
        """The tree with its arrays on the devices, the named ones sharded, the others replicated.

        Args:
            tree: of NumPy or JAX arrays with whole shapes.
            sharded: names of the sharded arrays, or True for all; see `sharding_tree`.

        Raises:
            ValueError: if a name matches nothing.
        """
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        shardings = self.shardings(tree, sharded)
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)
        return jax.tree.map(_put_local_shards, tree, shardings)

    def shardings(self, tree: Any, sharded: Collection[str] | bool = ()) -> Any:
        """The sharding of every array of a tree; see `sharding_tree`."""
        return jax.tree.map(self.sharding, sharding_tree(tree, sharded))

    def stack(self, make_shard: Callable[[int], np.ndarray]) -> Array:
        """A sharded array whose shards a function makes, one at a time.

        Args:
            make_shard: device number to its shard; all shards have one shape.
        """
        first = make_shard(0)
        if self.mesh is None:
            return jnp.asarray(first)
        rows = first.shape[0]

        def data_of(index: Any) -> np.ndarray:
            number = (index[0].start or 0) // max(rows, 1)
            return first if number == 0 else make_shard(number)

        shape = (rows * self.n, *first.shape[1:])
        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, _spec(True)), data_of)


ONE = Devices()


def choose(
    parallelism: str = "auto", *, shard_items: bool = False, count: int | None = None
) -> Devices:
    """The devices that a run uses.

    Args:
        parallelism: "jit", one device; "pmap" or "shard_map", all devices; "auto", "shard_map"
            where there are several devices, else "jit". The devices that a CPU simulates share its
            cores and make nothing faster, so "auto" ignores them unless there are several hosts.
        shard_items: see `Devices`.
        count: number of devices to use, the first ones; None for all.

    Raises:
        ValueError: for an unknown parallelism, or for more devices than there are.
    """
    if parallelism not in ("auto", *get_args(Parallelism)):
        known = ", ".join(get_args(Parallelism))
        raise ValueError(f"parallel is one of auto, {known}, not {parallelism!r}")
    if parallelism == "auto":
        real = jax.default_backend() != "cpu" or jax.process_count() > 1
        several = real and (count or jax.device_count()) > 1
        parallelism = "shard_map" if several else "jit"
    if parallelism == "jit":
        if jax.process_count() > 1:
            raise ValueError("parallel=jit is one device; several hosts need shard_map or pmap")
        return Devices(shard_items=shard_items)
    available = jax.devices()
    if count is not None and not 1 <= count <= len(available):
        raise ValueError(f"{count} devices asked for; there are {len(available)}")
    # JAX's default axis type, Explicit, would reject arrays without a sharding of their own.
    mesh = jax.make_mesh(
        (count or len(available),),
        (AXIS,),
        axis_types=(AxisType.Auto,),
        devices=available[: count or len(available)],
    )
    return Devices(parallelism, mesh, shard_items)  # type: ignore[arg-type]


def sharding_tree(tree: Any, names: Collection[str] | bool) -> Any:
    """The tree with True for each array that is sharded along its first axis, else False.

    A name matches an array if it is the last field or key on the way to it: "delta" matches
    ``params["delta"]`` and Adam's ``opt_state[0].mu["delta"]``, but nothing below
    ``params["delta"]["norm"]``. Positions in a list do not count ("features" matches
    ``batch.features[0]``), nor does the ``value`` of a Flax variable. A name with dots asks for the
    fields before it too: "teacher.delta".

    Args:
        tree: of arrays. A named field may be None or empty; then there is nothing to shard.
        names: of the sharded arrays; True or False for all arrays.

    Raises:
        ValueError: naming what matches nothing.
    """
    if isinstance(names, bool):
        return jax.tree.map(lambda _: names, tree)
    matched: set[str] = set()

    def is_sharded(path: tuple[Any, ...], leaf: Any) -> Any:
        ends = _path_ends(path)
        matches = {name for name in names if any(f".{end}".endswith(f".{name}") for end in ends)}
        matched.update(matches)
        return leaf if _is_empty(leaf) else bool(matches)

    marked = jax.tree_util.tree_map_with_path(is_sharded, tree, is_leaf=_is_empty)
    missing = sorted(set(names) - matched)
    if missing:
        raise ValueError(
            f"sharding: no array is called {', '.join(missing)}; an array is named by the last "
            "field or key on the way to it"
        )
    return marked


def _is_empty(node: Any) -> bool:
    """Whether a node holds no array, so that JAX would not visit it."""
    return node is None or (isinstance(node, tuple | list | dict) and not node)


def _path_ends(path: tuple[Any, ...]) -> list[str]:
    """Dotted names on the way to an array, with and without a last field "value"."""
    keys = [getattr(key, "name", getattr(key, "key", None)) for key in path]
    names = [key for key in keys if isinstance(key, str)]
    return [".".join(names), *([".".join(names[:-1])] if names[-1:] == ["value"] else [])]


def run_on_devices(
    devices: Devices,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    sharded_args: tuple[Any, ...],
    sharded_results: Any,
) -> Any:
    """The results of a function that runs on every device with its shards; inside jit.

    Args:
        devices: with a mesh.
        body: function of `args`; it communicates over the axis `AXIS`.
        args: trees of arrays with whole shapes.
        sharded_args: for each argument, whether each of its arrays is sharded: a tree from
            `sharding_tree`, or a prefix of one.
        sharded_results: the same for the results. A result that is not sharded has to be equal on
            all devices.
    """
    assert devices.mesh is not None
    if devices.parallelism == "shard_map":
        in_specs, out_specs = jax.tree.map(_spec, (sharded_args, sharded_results))
        mapped = jax.shard_map(
            body, mesh=devices.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped(*args)

    n = devices.n

    def axes(tree: Any) -> Any:
        return jax.tree.map(lambda sharded: 0 if sharded else None, tree)

    def map_sharded(change: Callable[[Array], Array], sharded: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda divided, subtree: jax.tree.map(change, subtree) if divided else subtree,
            sharded,
            tree,
        )

    if jax.__version_info__ < (0, 8):  # JAX 0.7 makes pmap of shard_map only when asked
        jax.config.update("jax_pmap_shmap_merge", True)
    mapped = jax.pmap(
        body,
        axis_name=AXIS,
        in_axes=axes(sharded_args),
        out_axes=axes(sharded_results),
        devices=list(devices.mesh.devices.flat),
    )
    results = mapped(*map_sharded(lambda x: x.reshape(n, -1, *x.shape[1:]), sharded_args, args))
    return map_sharded(lambda x: x.reshape(-1, *x.shape[2:]), sharded_results, results)


def _put_local_shards(x: Any, sharding: NamedSharding) -> Array:
    """A sharded array of which this host places its own shards.

    `jax.device_put` would compare the whole array between all hosts and make them wait.
    """
    if isinstance(x, Array) and not x.is_fully_addressable:
        return x  # sharded over the hosts already
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _spec(sharded: bool) -> PartitionSpec:
    return PartitionSpec(AXIS) if sharded else PartitionSpec()
