"""The one training step that every model shares, on one device or many."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcold import parallel
from jaxcold.types import Model


class TrainState(NamedTuple):
    """Everything a step changes."""

    step: Array  # i32[]
    params: Any
    opt_state: Any
    extra: Any  # state without gradients


Step = Callable[[TrainState, Any, Any, Array], tuple[TrainState, dict[str, Array]]]


def init_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Fresh parameters and optimizer state of a seed, placed on the model's devices."""
    params, extra = model.init(seed)
    start = functools.partial(TrainState, jnp.zeros((), jnp.int32), params, extra=extra)
    devices, split = model.devices or parallel.ONE, model.sharding.state
    if devices.mesh is None:
        return start(opt_state=optimizer.init(params))
    # Moments as large as a table come into being where they stay.
    shapes = jax.eval_shape(optimizer.init, params)
    shardings = devices.shardings(shapes, split, required=False)  # without moments, no name
    made = jax.jit(optimizer.init, out_shardings=shardings)(params)
    return devices.put(start(opt_state=made), split)


def place(model: Model, state: TrainState) -> TrainState:
    """A copy of a state from elsewhere, such as a checkpoint, on the model's devices."""
    devices = model.devices or parallel.ONE
    if devices.mesh is None:
        return jax.tree.map(jnp.array, state)
    return devices.put(state, model.sharding.state)


def make_step(model: Model, optimizer: optax.GradientTransformation) -> Step:
    """Compiles ``step(state, fixed, batch, key) -> (state, logs)``; the old state is donated.

    The loss returns a weighted sum and the weight; dividing after the sum keeps the mean right
    for a padded last batch and for unequal parts of the devices. All arrays have their whole
    shapes, however they are split, so that a state does not depend on the devices.
    """
    devices, split = model.devices or parallel.ONE, model.sharding
    axis = devices.axis

    def shard_step(
        state: TrainState, fixed: Any, batch: Any, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)
        own = model.loss if axis is None else functools.partial(model.loss, axis=axis)
        loss = jax.value_and_grad(own, has_aux=True)
        (total, (weight, extra, logs)), grads = loss(state.params, state.extra, fixed, batch, key)
        # A row of a split table has its whole gradient where it is.
        whole = jax.tree.map(
            lambda g, divided: g if divided else parallel.sum_over_devices(g, axis),
            grads,
            parallel.sharding_tree(grads, split.state, required=False),
        )
        total, weight, logs = parallel.sum_over_devices((total, weight, logs), axis)
        # A batch of weight 0 moves nothing.
        scale = jnp.where(weight > 0, 1 / jnp.maximum(weight, 1e-30), 0.0)
        grads = jax.tree.map(lambda g: g * scale, whole)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        logs = {"loss": total * scale, **logs}
        return TrainState(state.step + 1, params, opt_state, extra), logs

    def step(
        state: TrainState, fixed: Any, batch: Any, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        if axis is None:
            return shard_step(state, fixed, batch, key)
        inside = parallel.sharding_tree(state, split.state)
        return parallel.run_on_devices(
            devices,
            shard_step,
            (state, fixed, batch, key),
            (
                inside,
                parallel.sharding_tree(fixed, split.fixed),
                parallel.sharding_tree(batch, split.batch),
                False,
            ),
            (inside, False),
        )

    return jax.jit(step, donate_argnums=0)
