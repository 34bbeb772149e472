"""Speed of evaluation: ``python -m experiments.bench.evaluation``.

40,000 users, 4,600 cold items, 64 dimensions, K = 20, the metrics included, with expected ties and
by id; ``--twins`` gives so many items each vector. The goal is under 10 s and 1 GB on two cores.
Prints medians of one run, so the ratios do not depend on the machine's load as much as the times
do.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.bench.timing import median_times
from jaxcold.eval.metrics import evaluate
from jaxcold.eval.ranking import top_k
from jaxcold.reporting.run_log import peak_memory
from jaxcold.types import Csr, EvalSlice, Representations

_USERS = flags.DEFINE_integer("users", 40_000, "users to rank for", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", 4_600, "candidate items", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "dimensions of the vectors", lower_bound=1)
_K = flags.DEFINE_integer("k", 20, "length of the lists", lower_bound=1)
_TWINS = flags.DEFINE_integer("twins", 1, "items that share a vector", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "runs of each measurement", lower_bound=1)

_BLOCK = 256  # users, for the two baselines


def make_task(
    users: int, items: int, width: int, twins: int = 1
) -> tuple[Representations, EvalSlice]:
    """Unit vectors and seven held-out items per user."""
    rng = np.random.default_rng(0)
    vectors = []
    for rows in (users, items):
        matrix = rng.standard_normal((rows, width), dtype=np.float32)
        vectors.append(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
    vectors[1] = vectors[1][np.arange(items) // twins]
    owner = np.repeat(np.arange(users), 7)
    positives = Csr.from_pairs(owner, rng.integers(0, items, len(owner)), users)
    nothing = Csr.empty(users)
    pool = np.arange(items, dtype=np.int32)
    eval_slice = EvalSlice(
        np.arange(users, dtype=np.int32), nothing, positives, nothing, pool, pool
    )
    return Representations(*vectors), eval_slice


@jax.jit
def _product(user: jax.Array, item: jax.Array) -> jax.Array:
    return jnp.matmul(user, item.T)


@functools.partial(jax.jit, static_argnums=2)
def _product_and_top_k(user: jax.Array, item: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jnp.matmul(user, item.T), k)


def run_in_blocks(function: Callable, vectors: Representations, *args: int) -> None:
    """Runs a compiled function over blocks of users and waits for each."""
    item = jax.device_put(vectors.item)
    for start in range(0, len(vectors.user), _BLOCK):
        jax.block_until_ready(function(vectors.user[start : start + _BLOCK], item, *args))


def main(_: list[str]) -> None:
    """Measures and prints."""
    k = _K.value
    vectors, eval_slice = make_task(_USERS.value, _ITEMS.value, _WIDTH.value, _TWINS.value)
    before = peak_memory()
    topk = top_k(vectors, eval_slice, k, tie_cutoffs=[k])
    evaluate(topk, eval_slice, [k])
    ours = peak_memory()
    functions: dict[str, Callable[[], object]] = {
        "rank": lambda: top_k(vectors, eval_slice, k, tie_cutoffs=[k]),
        "  ties by id": lambda: top_k(vectors, eval_slice, k),
        "metrics": lambda: evaluate(topk, eval_slice, [k]),
        "  ties by id ": lambda: evaluate(topk._replace(ties=None), eval_slice, [k]),
        "matmul alone": lambda: run_in_blocks(_product, vectors),
        "jit matmul + lax.top_k": lambda: run_in_blocks(_product_and_top_k, vectors, k),
    }
    median = median_times(functions, _REPEATS.value, warm_up=1)
    print(f"{_USERS.value} users x {_ITEMS.value} items x {_WIDTH.value} dimensions, K = {k}")
    for name, seconds in median.items():
        print(f"{name:24s}{seconds:8.3f} s")
    print(f"{'rank + metrics':24s}{median['rank'] + median['metrics']:8.3f} s   goal < 10")
    print(f"{'rank / matmul':24s}{median['rank'] / median['matmul alone']:8.2f}")
    ratio = median["jit matmul + lax.top_k"] / median["rank"]
    print(f"{'lax.top_k form / rank':24s}{ratio:8.2f}")
    print(f"{'peak memory':24s}{ours / 1e9:8.2f} GB  goal < 1")
    print(f"{'  of it evaluation':24s}{(ours - before) / 1e9:8.2f} GB")


if __name__ == "__main__":
    app.run(main)
