"""Communication between host processes, outside a compiled program."""

import math
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

# Upper bound, in bytes, of one exchange between hosts; every device holds that much for a moment.
_CHUNK_BYTES = 1 << 26


def initialize_hosts(
    address: str | None = None, hosts: int | None = None, host: int | None = None
) -> None:
    """Joins this process to the other hosts of a run.

    Call it in every process before anything asks for a device. `jaxcold.parallel.choose` then uses
    the devices of all hosts, and each host creates the shards of its own devices.

    Args:
        address: HOST:PORT of the first process. Where it is None, like the other two arguments, JAX
            reads it from the cluster's environment (Slurm, Open MPI, Cloud TPU).
        hosts: number of processes.
        host: number of this process, from 0.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, hosts, host)


def is_primary() -> bool:
    """Whether this is the only host or the first one, which writes the files of the run."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns once every host has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def stop_requested(step: int) -> bool:
    """Whether some host received SIGTERM and every host has to stop after this step.

    Call it on every host after every step. JAX handles the signal from the moment when the hosts
    are joined.

    Args:
        step: number of finished steps.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def host_shard(count: int, multiple: int = 1) -> tuple[int, int]:
    """First row and end of this host's shard of `count` rows.

    Args:
        count: rows of all hosts.
        multiple: the number of rows of every shard but the last is a multiple of it.
    """
    hosts, host = jax.process_count(), jax.process_index()
    size = -(-count // (hosts * multiple)) * multiple
    return min(host * size, count), min((host + 1) * size, count)


def is_owner(number: int) -> bool:
    """Whether this host does the task of that number; tasks go to the hosts in turn."""
    return number % jax.process_count() == jax.process_index()


def all_gather_hosts(rows: np.ndarray) -> list[np.ndarray]:
    """The arrays of all hosts, in the order of the hosts; call it on every host.

    The arrays travel in chunks, so no device ever holds more than one chunk.

    Args:
        rows: [n, ...]; n may differ from host to host, the other dimensions and the dtype may not.
    """
    hosts = jax.process_count()
    if hosts == 1:
        return [rows]
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    gathered = [np.empty((count, *rows.shape[1:]), rows.dtype) for count in counts]
    # As bytes, because JAX would convert 64-bit values to 32 bits.
    row_bytes = math.prod(rows.shape[1:]) * rows.itemsize
    longest = int(max(counts))
    chunk_rows = max(1, min(longest, _CHUNK_BYTES // max(row_bytes * hosts, 1)))
    chunk = np.zeros((chunk_rows, row_bytes), np.uint8)
    own = np.ascontiguousarray(rows).reshape(len(rows), row_bytes // rows.itemsize).view(np.uint8)
    for start in range(0, longest, chunk_rows):
        sent = own[start : start + chunk_rows]
        chunk[: len(sent)] = sent
        for whole, received in zip(gathered, multihost_utils.process_allgather(chunk), strict=True):
            target = whole[start : start + chunk_rows]
            target[...] = received[: len(target)].view(rows.dtype).reshape(target.shape)
    return gathered


def fetch(tree: Any) -> Any:
    """NumPy copies of whole arrays, on every host, however they are sharded.

    With several hosts, call it on every host.
    """

    def fetch_leaf(x: Any) -> np.ndarray:
        if not isinstance(x, Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        shards = {s.index[0].start or 0: np.asarray(s.data) for s in x.addressable_shards}
        at = np.concatenate([start + np.arange(len(data)) for start, data in shards.items()])
        whole = np.empty(x.shape, x.dtype)
        rows = all_gather_hosts(np.concatenate(list(shards.values())))
        for places, data in zip(all_gather_hosts(at), rows, strict=True):
            whole[places] = data
        return whole

    return jax.tree.map(fetch_leaf, tree)
