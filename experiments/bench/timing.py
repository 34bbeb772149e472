"""Wall-clock medians of several functions measured side by side, training steps among them."""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def median_times(
    functions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 2
) -> dict[str, float]:
    """Median seconds of one call of each function, all measured in the same period.

    Every round calls each function once, so that a slow spell of the machine falls on all of them
    and ratios hold even where the times themselves do not.

    Args:
        functions: name -> function of no arguments; JAX arrays in its result are waited for.
        repeats: rounds.
        warm_up: calls of each function before the clock starts (the first one compiles).

    Returns:
        name -> seconds.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats is at least 1, not {repeats}")
    for function in functions.values():
        for _ in range(warm_up):
            jax.block_until_ready(function())
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


class Stepper:
    """Trains one step per call, on the next batch of a cycle.

    Args:
        state: of the training; its buffers are donated.
        constants: of the model.
        steps: compiled steps, each with the batch that it trains on.
        seed: of the key given to every step.
    """

    def __init__(
        self, state: Any, constants: Any, steps: Sequence[tuple[Callable[..., Any], Any]], seed: int
    ):
        self._state, self._constants, self._key = state, constants, jax.random.key(seed)
        self._steps = itertools.cycle(steps)

    def __call__(self) -> float:
        """Waits for all of the step, and returns its loss."""
        step, batch = next(self._steps)
        self._state, metrics = jax.block_until_ready(
            step(self._state, self._constants, batch, self._key)
        )
        return float(metrics["loss"])


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
