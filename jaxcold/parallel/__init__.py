"""Many devices: who holds what, and the few words in which they talk.

One axis of n devices. A model's step is one function for one device or many: the helpers here are
the identity where ``axis`` is None. `jaxcold.train.step` makes of it a program for one device
("jit"), or runs it on every device of a mesh ("shard_map", and "pmap", of which JAX today makes the
same program).

The rules that make gradients right in all forms:

1. The loss of a device is its own part of a sum. Gradients are taken of this local sum; sums over
   the devices come afterwards (`sum_over_devices`), never inside what is differentiated.
2. Inside it devices speak only by `gather` and `scatter_sum`. Each is the other's transpose, so the
   derivative of all devices' sums reaches whoever contributed.
3. Replication is not tracked (``check_vma=False``). pmap can do no other, and with it the gradient
   of a replicated parameter is this device's part of it in both forms.

What a device holds and sends in a step, for U users, N training items with D features, width d,
nnz interactions, B pairs or T tokens of a batch, P parameters without a row per item, and Adam; in
numbers of 4 bytes. ``python -m experiments.bench.scaling`` compares both with the compiled
programs of 1, 2, 4 and 8 simulated devices; not so distillation, whose teacher of width t learns in
some steps only, and is counted by hand.

| | held by each of n devices | sent by each, times (n - 1) / n |
|---|---|---|
| SEMCo | N D / n + nnz / n + 2 U + 3 P + D^2 + 3 B | 6 B d + 2 P |
| distillation | that + nnz + 2 N t | 10 B d + 8 B t + 2 P + N t |
| the same, ``shard_items`` | that + nnz + 2 N t / n | 10 B d + 8 B t + 2 P |
| SASRec | 3 P + 4 N d + 4 T / n | 2 P + 2 N d |
| the same, ``shard_items`` | 3 P + 4 N d / n + 4 T / n | 4 T d + 6 T + 2 P |

- SEMCo's features are always split: a device encodes its own items, adds up their part of each
  user's history, and what travels is B rows: users and positives (two sums and a gather, and the
  same back). N does not appear. Of activations there are those of N / n encoded items and of
  [B / n, B] logits.
- SASRec's tables (content, deltas, moments) are split with ``shard_items``. Embeddings and hidden
  states go there and back; entmax adds two numbers per row and iteration of its search. [T, d]
  hidden states and their gradient are on every device, and some rows of [N / n] logits.
- With ``compute="bfloat16"`` SEMCo's features, and the hidden states that SASRec's split loss
  gathers, are 2 bytes each.
- A host reads a share of the lines of a table of interactions and has the rest from the others. It
  keeps all of them, in the order of an epoch, of the split and of the users: about 50 bytes each.
  Of features in memory-mapped files it keeps nothing; of embeddings, when they are evaluated, all.
- 10^7 items on 256 devices. SEMCo with 1024 features, B = 16384, d = 64, 10^7 users and 2 * 10^8
  interactions: 0.15 GiB of features a device, and half as much for the users' rows, which every
  device repeats: with more users they are the bottleneck, not the items. It sends 25 MiB a step.
  SASRec with d = 128 and T = 10^6: 0.08 GiB of tables, 2 GiB sent a step: the batch's hidden states
  are what has to travel, and the bottleneck.
"""

import math
import re
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcold import compat

AXIS = "devices"
Parallelism = Literal["jit", "pmap", "shard_map"]

# A table that is split has rows for this many equal parts at most, whatever the device count, so
# that its shape, and with it a checkpoint, is the same on 1 and on 1024 devices.
_MOST_PARTS = 1024

# Bytes that hosts send each other at once, all of which is on every device for a moment.
_PIECE = 1 << 26


class Devices(NamedTuple):
    """The devices of a run; by default the one that JAX takes."""

    parallelism: Parallelism = "jit"
    mesh: Mesh | None = None  # of the one axis `AXIS`; None: one device
    shard_items: bool = False  # tables with a row per item are split along items

    @property
    def n(self) -> int:
        """How many there are."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def axis(self) -> str | None:
        """Name of the axis inside a step; None where nothing is divided."""
        return None if self.mesh is None else AXIS

    def rows(self, count: int) -> int:
        """Rows of a table of `count` items once it can be split into n equal parts.

        With `shard_items` this does not depend on n.

        Raises:
            ValueError: if n devices cannot share such a table.
        """
        if not self.shard_items:
            return -(-count // self.n) * self.n
        parts = min(_MOST_PARTS, max(8, 1 << int(math.log2(max(count / 16, 1)))))
        if parts % self.n:
            raise ValueError(
                f"shard_items: {count} items are split over 1, 2, 4, ... up to {parts} devices, "
                f"not over {self.n}"
            )
        return -(-count // parts) * parts

    def sharding(self, split: bool = False) -> NamedSharding | None:
        """Of an array that is split along its first axis, or on all devices."""
        if self.mesh is None:
            return None
        return NamedSharding(self.mesh, _spec(split))

    def put(self, tree: Any, split: Collection[str] | bool = ()) -> Any:
        """Places a tree of arrays; the named leaves (or all) are split along their first axis.

        Args:
            tree: of NumPy or JAX arrays, of whole shapes.
            split: names of fields or keys on the way to a leaf, see `sharding_tree`.
        """
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        placed = self.shardings(tree, split)
        if jax.process_count() == 1:
            return jax.device_put(tree, placed)
        return jax.tree.map(_own_parts, tree, placed)

    def shardings(self, tree: Any, split: Collection[str] | bool = ()) -> Any:
        """The sharding of every leaf, see `put`."""
        return jax.tree.map(self.sharding, sharding_tree(tree, split))

    def stack(self, part: Callable[[int], np.ndarray]) -> Array:
        """An array whose n-th part along its first axis is made by a function, one at a time.

        Args:
            part: device number to its part; the parts are of one shape.
        """
        if self.mesh is None:
            return jnp.asarray(part(0))
        first = part(0)
        size, rest = first.shape[0], first.shape[1:]

        def of(index: Any) -> np.ndarray:
            number = (index[0].start or 0) // max(size, 1)
            return first if number == 0 else part(number)

        whole = (size * self.n, *rest)
        placed = NamedSharding(self.mesh, _spec(True))
        return jax.make_array_from_callback(whole, placed, of)


ONE = Devices()


def _own_parts(x: Any, placed: NamedSharding) -> Array:
    """As `jax.device_put`, which makes all hosts compare what they put, and wait for each other."""
    if isinstance(x, Array) and not x.is_fully_addressable:
        return x  # it is there
    known = np.asarray(x)
    return jax.make_array_from_callback(known.shape, placed, lambda index: known[index])


def initialize_hosts(
    address: str | None = None, hosts: int | None = None, host: int | None = None
) -> None:
    """Makes this process one of several hosts whose devices work together.

    To be called in each of them, before anything asks for a device. Then `choose` takes the devices
    of all hosts, and each host makes and places the parts of its own devices.

    Args:
        address: HOST:PORT of the first process; unset, like the others, it is what the cluster's
            environment says (Slurm, Open MPI, Cloud TPU).
        hosts: processes in all.
        host: number of this one.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, hosts, host)


def is_primary() -> bool:
    """Whether this is the only host or the first, which writes what all have found."""
    return jax.process_index() == 0


def barrier(where: str) -> None:
    """Waits until all hosts are there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def stop_requested(done: int) -> bool:
    """Whether some host got SIGTERM and all of them are to stop after this step.

    To be called on every host after every step, with the number of steps done. JAX takes the signal
    from the moment on in which the hosts are joined.
    """
    return multihost_utils.reached_preemption_sync_point(done)


def host_shard(count: int, multiple: int = 1) -> tuple[int, int]:
    """This host's rows of `count`, from the first to before the last: runs of whole multiples."""
    hosts, host = jax.process_count(), jax.process_index()
    size = -(-count // (hosts * multiple)) * multiple
    return min(host * size, count), min((host + 1) * size, count)


def is_owner(number: int) -> bool:
    """Whether a piece of work is this host's, where they take turns."""
    return number % jax.process_count() == jax.process_index()


def all_gather_hosts(rows: np.ndarray) -> list[np.ndarray]:
    """What each host has, on all of them, in the order of the hosts; to be called on every host.

    It travels in pieces: no device holds more than one, however long it is.

    Args:
        rows: [n, ...]; n differs from host to host, and nothing else.
    """
    hosts = jax.process_count()
    if hosts == 1:
        return [rows]
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    found = [np.empty((count, *rows.shape[1:]), rows.dtype) for count in counts]
    # As bytes: JAX would make 32 bits of 64.
    wide = math.prod(rows.shape[1:]) * rows.itemsize
    most = int(max(counts))
    piece = np.zeros((max(1, min(most, _PIECE // max(wide * hosts, 1))), wide), np.uint8)
    own = np.ascontiguousarray(rows).reshape(len(rows), wide // rows.itemsize).view(np.uint8)
    for start in range(0, most, len(piece)):
        part = own[start : start + len(piece)]
        piece[: len(part)] = part
        for whole, theirs in zip(found, multihost_utils.process_allgather(piece), strict=True):
            room = whole[start : start + len(piece)]
            room[...] = theirs[: len(room)].view(rows.dtype).reshape(room.shape)
    return found


def fetch(tree: Any) -> Any:
    """NumPy copies of arrays, of their whole shapes on every host, wherever their parts are.

    On several hosts to be called by all of them.
    """

    def leaf(x: Any) -> np.ndarray:
        if not isinstance(x, Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        parts = {part.index[0].start or 0: np.asarray(part.data) for part in x.addressable_shards}
        at = np.concatenate([start + np.arange(len(part)) for start, part in parts.items()])
        whole = np.empty(x.shape, x.dtype)
        rows = all_gather_hosts(np.concatenate(list(parts.values())))
        for places, part in zip(all_gather_hosts(at), rows, strict=True):
            whole[places] = part
        return whole

    return jax.tree.map(leaf, tree)


def choose(form: str = "auto", *, shard_items: bool = False, count: int | None = None) -> Devices:
    """The devices of a run.

    Args:
        form: "jit", one device; "pmap" or "shard_map", all of them; "auto": "shard_map" where there
            are several, else "jit". The devices that a CPU simulates share its cores and make
            nothing faster, so "auto" leaves them alone, unless there are several hosts.
        shard_items: see `Devices`.
        count: devices to use, the first ones; unset, all.

    Raises:
        ValueError: for an unknown form, or for more devices than there are.
    """
    if form not in ("auto", *get_args(Parallelism)):
        known = ", ".join(get_args(Parallelism))
        raise ValueError(f"parallel is one of auto, {known}, not {form!r}")
    if form == "auto":
        real = jax.default_backend() != "cpu" or jax.process_count() > 1
        several = real and (count or jax.device_count()) > 1
        form = "shard_map" if several else "jit"
    if form == "jit":
        if jax.process_count() > 1:
            raise ValueError("parallel=jit is one device; several hosts need shard_map or pmap")
        return Devices(shard_items=shard_items)
    there = jax.devices()
    if count is not None and not 1 <= count <= len(there):
        raise ValueError(f"{count} devices asked for; there are {len(there)}")
    # JAX's default axis type, Explicit, would reject arrays that nobody has placed.
    mesh = jax.make_mesh(
        (count or len(there),),
        (AXIS,),
        axis_types=(AxisType.Auto,),
        devices=there[: count or len(there)],
    )
    return Devices(form, mesh, shard_items)  # type: ignore[arg-type]


def sharding_tree(tree: Any, names: Collection[str] | bool) -> Any:
    """Whether each leaf of a tree is split."""

    def leaf(path: tuple[Any, ...], _: Any) -> bool:
        if isinstance(names, bool):
            return names
        return any(getattr(key, "name", getattr(key, "key", None)) in names for key in path)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def run_on_devices(
    devices: Devices,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    split: tuple[Any, ...],
    out: Any,
) -> Any:
    """Runs a function on every device, each with its part of what is split; inside jit.

    Args:
        devices: with a mesh.
        body: of `args`; it knows the axis by the name `AXIS`.
        args: trees of arrays of whole shapes.
        split: for each argument, whether each of its leaves is split: a tree from
            `sharding_tree`, or a prefix of one.
        out: the same for the results; what is not split is the same on every device.
    """
    assert devices.mesh is not None
    if devices.parallelism == "shard_map":
        specs = jax.tree.map(_spec, (split, out))
        mapped = jax.shard_map(
            body, mesh=devices.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
        )
        return mapped(*args)

    n = devices.n

    def axes(tree: Any) -> Any:
        return jax.tree.map(lambda divided: 0 if divided else None, tree)

    def each(change: Callable[[Array], Array], split: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda divided, part: jax.tree.map(change, part) if divided else part, split, tree
        )

    pmapped = compat.pmap(
        body,
        axis_name=AXIS,
        in_axes=axes(split),
        out_axes=axes(out),
        devices=list(devices.mesh.devices.flat),
    )
    found = pmapped(*each(lambda x: x.reshape(n, -1, *x.shape[1:]), split, args))
    return each(lambda x: x.reshape(-1, *x.shape[2:]), out, found)


def _spec(split: bool) -> PartitionSpec:
    return PartitionSpec(AXIS) if split else PartitionSpec()


def size(axis: str | None) -> int:
    """How many devices there are, n."""
    return 1 if axis is None else lax.axis_size(axis)


def index(axis: str | None) -> Array | int:
    """This device's number."""
    return 0 if axis is None else lax.axis_index(axis)


def sum_over_devices(tree: Any, axis: str | None) -> Any:
    """Sums over the devices. Not inside what is differentiated."""
    return tree if axis is None else lax.psum(tree, axis)


def gather(x: Array, axis: str | None) -> Array:
    """All devices' rows, one after another: [m, ...] -> [n m, ...]."""
    return x if axis is None else lax.all_gather(x, axis, tiled=True)


def scatter_sum(x: Array, axis: str | None) -> Array:
    """This device's share of the rows, summed over the devices: [m, ...] -> [ceil(m / n), ...]."""
    return x if axis is None else lax.psum_scatter(pad_rows(x, axis), axis, tiled=True)


def shard(x: Array, axis: str | None) -> Array:
    """This device's share of rows that all devices have: [m, ...] -> [ceil(m / n), ...]."""
    if axis is None:
        return x
    x = pad_rows(x, axis)
    rows = x.shape[0] // size(axis)
    return lax.dynamic_slice_in_dim(x, index(axis) * rows, rows)


def pad_rows(x: Array, axis: str | None) -> Array:
    """Rows of zeros (or False) at the end, so that n divides their number."""
    missing = -x.shape[0] % size(axis)
    return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else x


def local_index(ids: Array, rows: int, axis: str | None) -> Array:
    """Rows of a split table to those of this device's part; `rows` for what others have.

    Args:
        ids: i32[...] rows of the whole table.
        rows: of each device's part.
        axis: name or None.
    """
    if axis is None:
        return ids
    at = ids - index(axis) * rows
    return jnp.where((at >= 0) & (at < rows), at, rows)


def gather_rows(table: Array, at: Array, axis: str | None) -> Array:
    """This device's share of the rows at m places of a split table: [ceil(m / n), ...].

    Args:
        table: this device's part.
        at: i32[m] places of `local_index`, for the same rows of the whole table on every device.
        axis: name or None.
    """
    if axis is None:
        return table[at]
    return scatter_sum(table.at[at].get(mode="fill", fill_value=0), axis)


class Collective(NamedTuple):
    """An exchange among devices in a compiled program."""

    kind: str  # all-reduce | all-gather | reduce-scatter | all-to-all | collective-permute
    size: int  # bytes of the whole: what is gathered, or what is summed
    looped: bool  # inside a loop

    def moved(self, devices: int) -> float:
        """Bytes that a device sends, by the best algorithm over a ring."""
        once = self.size * (devices - 1) / devices
        return 2 * once if self.kind == "all-reduce" else once


_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_CALLS = re.compile(r"(?:to_apply|calls|body|condition|\w+_computations?)=\{?(%?[\w.\-, %]+)\}?")
_LOOP = re.compile(r"(?:body|condition)=%?([\w.\-]+)")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})\(")


def collectives(text: str, devices: int) -> list[Collective]:
    """The exchanges in a compiled program.

    Args:
        text: ``jit(f).lower(...).compile().as_text()``.
        devices: n.
    """
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and (start := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)):
            name = start[1]
        bodies.setdefault(name, []).append(line)
    looped = {found for lines in bodies.values() for line in lines for found in _LOOP.findall(line)}
    grown = set(looped)
    while grown:  # what a loop calls runs in the loop
        called = {
            each.strip().lstrip("%")
            for name in grown
            for line in bodies.get(name, ())
            for names in _CALLS.findall(line)
            for each in names.split(",")
        }
        grown = called - looped
        looped |= grown
    found = []
    for name, lines in bodies.items():
        for line in lines:
            if not (operation := _OPERATION.search(line)):
                continue
            shapes, kind = operation.groups()
            count = sum(
                _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)
                for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
                if dtype in _BYTES
            )
            whole = count * devices if kind == "reduce-scatter" else count
            found.append(Collective(kind, whole, name in looped))
    return found
