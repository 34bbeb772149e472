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
    params: dict[str, Any]  # group -> parameters
    opt_state: dict[str, Any]  # group -> state of its optimizer
    model_state: Any  # what has no gradient, such as moving averages


Step = Callable[[TrainState, Any, Any, Array], tuple[TrainState, dict[str, Array]]]


def init_state(model: Model, seed: int) -> TrainState:
    """Fresh parameters and optimizer states of a seed, on the model's devices."""
    params, model_state = model.init(seed)
    devices = model.devices or parallel.ONE

    def start(params: Any) -> Any:
        return {group: optimizer.init(params[group]) for group, optimizer in _optimizers(model)}

    step = jnp.zeros((), jnp.int32)
    if devices.mesh is None:
        return TrainState(step, params, start(params), model_state)
    # Moments as large as a table are made where they stay.
    shapes = TrainState(step, params, jax.eval_shape(start, params), model_state)
    placed = devices.shardings(shapes, model.sharding.state)
    opt_state = jax.jit(start, out_shardings=placed.opt_state)(params)
    state = TrainState(step, params, opt_state, model_state)
    return devices.put(state, model.sharding.state)


def place(model: Model, state: TrainState) -> TrainState:
    """A copy of a state from elsewhere, such as a checkpoint, on the model's devices."""
    devices = model.devices or parallel.ONE
    if devices.mesh is None:
        return jax.tree.map(jnp.array, state)
    return devices.put(state, model.sharding.state)


def _optimizers(model: Model) -> list[tuple[str, optax.GradientTransformation]]:
    """The groups in the order in which a step updates them, with their optimizers."""
    if model.losses.keys() != model.optimizers.keys():
        raise ValueError(
            f"losses are of the groups {sorted(model.losses)}, optimizers of "
            f"{sorted(model.optimizers)}; give one of each per group"
        )
    return [(group, model.optimizers[group]) for group in model.losses]


def make_step(model: Model) -> Step:
    """Compiles ``step(state, constants, batch, key) -> (state, metrics)``; the state is donated.

    A loss returns a weighted sum and the weight; dividing after the sum keeps the mean right for a
    padded last batch and for unequal shards. All arrays have their whole shapes, however they are
    sharded, so that a state does not depend on the devices.

    The metric "loss" is the sum over the groups; of several groups, "loss/GROUP" is each one's.
    """
    devices, sharding = model.devices or parallel.ONE, model.sharding
    axis = devices.axis
    optimizers = _optimizers(model)
    options = {} if axis is None else {"axis": axis}

    def group_loss(group: str, params: dict[str, Any], *arguments: Any) -> Any:
        """The loss of a group as a function of its own parameters, which come last."""
        *arguments, own = arguments  # type: ignore[assignment]
        return model.losses[group]({**params, group: own}, *arguments, **options)

    def shard_step(
        state: TrainState, constants: Any, batch: Any, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)
        params, opt_state, model_state = {**state.params}, {**state.opt_state}, state.model_state
        sharded = parallel.sharding_tree(state, sharding.state).params
        metrics: dict[str, Array] = {}
        means: dict[str, Array] = {}
        for number, (group, optimizer) in enumerate(optimizers):
            own_key = jax.random.fold_in(key, number)
            loss = functools.partial(
                group_loss, group, {**params}, model_state, constants, batch, own_key
            )
            (total, aux), grads = jax.value_and_grad(loss, has_aux=True)(params[group])
            weight, model_state, measured = aux
            # A row of a sharded table has its whole gradient where it is.
            grads = jax.tree.map(
                lambda g, whole: g if whole else parallel.sum_over_devices(g, axis),
                grads,
                sharded[group],
            )
            total, weight, measured = parallel.sum_over_devices((total, weight, measured), axis)
            # A batch of weight 0 moves nothing.
            scale = jnp.where(weight > 0, 1 / jnp.maximum(weight, 1e-30), 0.0)
            grads = jax.tree.map(lambda g, scale=scale: g * scale, grads)
            # Optax raises a float to its count of steps: strict promotion is for our own arrays.
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state[group] = optimizer.update(grads, opt_state[group], params[group])
            params[group] = optax.apply_updates(params[group], updates)
            means[group] = total * scale
            metrics |= measured
        if len(means) > 1:
            metrics |= {f"loss/{group}": mean for group, mean in means.items()}
        metrics["loss"] = sum(means.values(), jnp.zeros(()))
        return TrainState(state.step + 1, params, opt_state, model_state), metrics

    def step(
        state: TrainState, constants: Any, batch: Any, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        if axis is None:
            return shard_step(state, constants, batch, key)
        inside = parallel.sharding_tree(state, sharding.state)
        return parallel.run_on_devices(
            devices,
            shard_step,
            (state, constants, batch, key),
            (
                inside,
                parallel.sharding_tree(constants, sharding.constants),
                parallel.sharding_tree(batch, sharding.batch),
                False,
            ),
            (inside, False),
        )

    return jax.jit(step, donate_argnums=0)
