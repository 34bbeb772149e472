"""Whether a training fits into memory, estimated from shapes before anything is compiled."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from experiments.method import ConfigError
from jaxcold import parallel
from jaxcold.train.step import Step, TrainState
from jaxcold.types import Model

_GB = 1e9


def check(config: config_dict.ConfigDict, model: Model, step: Step) -> None:
    """Stops where a training cannot fit: what is counted is needed at once, and more besides.

    Counted are the parameters, their gradients, what the optimizer keeps of them, and the largest
    result of a matrix product in a step. A method whose functions JAX cannot trace is not checked.

    Raises:
        ConfigError: with the estimate, what there is, and the largest number of the config.
    """
    if not model.steps_per_epoch:
        return
    try:
        state, needed = _state(model)
        largest = _largest_product(model, step, state)
    except jax.errors.JAXTypeError:
        return
    available, where = _available()
    product = _bytes(largest) if largest is not None else 0
    if needed + product <= available:
        return
    numbers = {"config.train.batch_size": config.train.batch_size}
    numbers |= {f"config.model.{k}": v for k, v in config.model.items() if type(v) is int}
    field = max(numbers, key=lambda name: numbers[name])
    shape = "" if largest is None else f" {largest.dtype}{list(largest.shape)}"
    raise ConfigError(
        f"{field}={numbers[field]}: a training needs at least {(needed + product) / _GB:,.1f} GB, "
        f"{needed / _GB:,.1f} for parameters, gradients and optimizer and {product / _GB:,.1f} for "
        f"a product{shape}; {where} has {available / _GB:,.1f} GB; lower {field}"
    )


def _state(model: Model) -> tuple[TrainState, int]:
    """The shapes of a training's state, and the bytes of it and of gradients on one device."""
    params, model_state = jax.eval_shape(lambda: model.init(0))
    moments = {g: jax.eval_shape(o.init, params[g]) for g, o in model.optimizers.items()}
    number: Any = jax.ShapeDtypeStruct((), np.int32)
    state = TrainState(number, params, moments, model_state)
    devices = model.devices or parallel.ONE
    sharded = parallel.sharding_tree(state, model.sharding.state if devices.mesh else False)

    def size(x: Any, is_sharded: bool) -> int:
        return _bytes(x) // (devices.n if is_sharded else 1)

    sizes = jax.tree.map(size, state, sharded)
    return state, sum(jax.tree.leaves((sizes, sizes.params)))


def _largest_product(model: Model, step: Step, state: TrainState) -> Any:
    """Shape and dtype of the largest result of a matrix product in a step, on one device."""
    batch = next(iter(model.batches(np.random.default_rng(0))))
    traced = jax.make_jaxpr(step)(state, model.constants, batch, jax.random.key(0))
    return max(_products(traced.jaxpr), key=_bytes, default=None)


def _products(jaxpr: Any) -> Iterator[Any]:
    """The results of the matrix products of a program, those in loops and branches included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from _products(inner)


def _bytes(array: Any) -> int:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):  # a key of random numbers
        return 0
    return int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize


def _available() -> tuple[float, str]:
    """Bytes of memory of a device, and what it is called; infinite where that is unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit", float("inf"))
        return limit, f"a device ({device.device_kind})"
    try:
        limit = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        limit = float("inf")
    with contextlib.suppress(OSError, ValueError):  # of the container; it may say "max"
        limit = min(limit, float(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return limit, "this machine"
