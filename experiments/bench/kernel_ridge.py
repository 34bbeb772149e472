"""Kernel ridge regression: seconds and memory of its factorisation and of its vectors.

python -m experiments.bench.kernel_ridge --warm=13584 --users=1024 --cold=3396

Prints, for content of random unit rows: the factorisation of the kernel matrix of the warm items
with its speed in GFLOP/s (n^3 / 3 of them), the vectors of some users, those of the cold items, the
CPU seconds of each, and the peak memory of the process.
"""

import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxcold.data.content import unit_rows
from jaxcold.models import kernel_ridge
from jaxcold.reporting.run_log import peak_memory

WARM = flags.DEFINE_integer("warm", 13_584, "Warm items.")
COLD = flags.DEFINE_integer("cold", 3_396, "Cold items.")
USERS = flags.DEFINE_integer("users", 1_024, "Users.")
WIDTH = flags.DEFINE_integer("width", 511, "Features.")


def main(argv: Sequence[str]) -> None:
    """Prints a line for each stage."""
    del argv
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.normal(size=(WARM.value + COLD.value, WIDTH.value)))
    warm, cold = rows[: WARM.value], jnp.asarray(rows[WARM.value :])
    print(f"{WARM.value} warm items; {peak_memory() / 1e9:.2f} GB before")
    clock = _Clock()
    tiles = kernel_ridge.tiles_of(warm)
    lower = kernel_ridge.factorise(tiles, 3.0)
    lower[-1][-1].block_until_ready()
    seconds = clock.lap("factorisation")
    print(f"  {WARM.value**3 / 3 / seconds / 1e9:.0f} GFLOP/s")
    right = np.zeros((len(tiles) * len(tiles[0]), USERS.value), np.float32)
    right[rng.integers(WARM.value, size=(24, USERS.value)), np.arange(USERS.value)] = 1
    kernel_ridge.solve(lower, jnp.asarray(right))
    clock.lap(f"{USERS.value} users")
    np.asarray(kernel_ridge.kernel(cold, jnp.asarray(warm)))
    clock.lap(f"{COLD.value} cold items")


class _Clock:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> float:
        """Seconds since the last one, which it prints."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(f"{stage}: {wall:.1f} s, {cpu:.1f} s of CPU, peak {peak_memory() / 1e9:.2f} GB")
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return wall


if __name__ == "__main__":
    app.run(main)
