"""Training on several devices: placement, communication and host processes.

`mesh` has the devices of a run and where arrays are placed, `collectives` the communication inside
a step, `hosts` the communication between host processes. All of it is available here:
``from jaxcold import parallel; parallel.choose("shard_map")``.

There is one axis of n devices. A model's step is one function for one device or many: the
collectives are the identity where ``axis`` is None. `jaxcold.train.step` compiles the step for one
device ("jit") or runs it on every device of a mesh ("shard_map", or "pmap", which JAX today
implements with the same machinery).

Three rules make gradients correct with every parallelism:

1. A device's loss is its own term of a sum. Gradients are taken of this local term; sums over
   devices (`sum_over_devices`) come afterwards, never inside what is differentiated.
2. Inside it devices communicate by `gather` and `scatter_sum` only. Each is the transpose of the
   other, so the derivative of the sum over all devices reaches every device that contributed.
3. JAX does not track replication (``check_vma=False``). pmap cannot, and without it the gradient of
   a replicated parameter is this device's term of it under both.

What each device holds and sends in a step, for U users, N training items with D features, width d,
nnz interactions, B pairs or T tokens in a batch, P parameters outside the item tables, and Adam;
in numbers of 4 bytes. ``python -m experiments.bench.scaling`` compares both columns with the
compiled programs of 1, 2, 4 and 8 simulated devices, except for distillation: its teacher of width
t learns in some steps only and is counted by hand.

| | held by each of n devices | sent by each, times (n - 1) / n |
|---|---|---|
| SEMCo | N D / n + nnz / n + 2 U + 3 P + D^2 + 3 B | 6 B d + 2 P |
| distillation | that + nnz + 2 N t | 10 B d + 8 B t + 2 P + N t |
| the same, ``shard_items`` | that + nnz + 2 N t / n | 10 B d + 8 B t + 2 P |
| SASRec | 3 P + 4 N d + 4 T / n | 2 P + 2 N d |
| the same, ``shard_items`` | 3 P + 4 N d / n + 4 T / n | 4 T d + 6 T + 2 P |

- SEMCo's features are always sharded. A device encodes its own items and sums their contribution to
  each user's history; B rows of users and positives are sent (two sums and a gather, and their
  transposes). N does not appear. The activations are those of N / n encoded items and [B / n, B]
  logits.
- SASRec's tables (content, deltas, moments) are sharded with ``shard_items``. Embeddings and hidden
  states are sent in both directions; entmax sums two numbers per row and iteration of its search.
  [T, d] hidden states and their gradient are on every device, and some rows of [N / n] logits.
- With ``compute="bfloat16"``, SEMCo's features and the hidden states that SASRec's sharded loss
  gathers have 2 bytes per number.
- A host reads a shard of the lines of an interaction table and receives the other shards. It keeps
  all interactions, in the order of an epoch, of the split and of the users: about 50 bytes each.
  It keeps nothing of features in memory-mapped files, and all embeddings while they are evaluated.
- 10^7 items on 256 devices. SEMCo with 1024 features, B = 16384, d = 64, 10^7 users and 2 * 10^8
  interactions: 0.15 GiB of features per device, and half as much for the users' rows, which are
  replicated: with more users, they are the bottleneck, not the items. A device sends 25 MiB a step.
  SASRec with d = 128 and T = 10^6: 0.08 GiB of tables, 2 GiB sent per step. The hidden states of
  the batch are most of that, and the bottleneck.
"""

from jaxcold.parallel.collectives import (
    gather,
    gather_rows,
    index,
    local_index,
    pad_rows,
    scatter_sum,
    shard,
    size,
    sum_over_devices,
)
from jaxcold.parallel.hosts import (
    all_gather_hosts,
    barrier,
    fetch,
    host_shard,
    initialize_hosts,
    is_owner,
    is_primary,
    stop_requested,
)
from jaxcold.parallel.mesh import (
    AXIS,
    ONE,
    Devices,
    Parallelism,
    choose,
    run_on_devices,
    sharding_tree,
)

__all__ = [
    "AXIS",
    "ONE",
    "Devices",
    "Parallelism",
    "all_gather_hosts",
    "barrier",
    "choose",
    "fetch",
    "gather",
    "gather_rows",
    "host_shard",
    "index",
    "initialize_hosts",
    "is_owner",
    "is_primary",
    "local_index",
    "pad_rows",
    "run_on_devices",
    "scatter_sum",
    "shard",
    "sharding_tree",
    "size",
    "stop_requested",
    "sum_over_devices",
]
