"""The one training step that every model shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcold.types import Model


class TrainState(NamedTuple):
    """Everything a step changes."""

    step: Array  # i32[]
    params: Any
    opt_state: Any
    extra: Any  # state without gradients


Step = Callable[[TrainState, Any, Any, Array], tuple[TrainState, dict[str, Array]]]


def init_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Fresh parameters and optimizer state of a seed."""
    params, extra = model.init(seed)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), extra)


def make_step(model: Model, optimizer: optax.GradientTransformation) -> Step:
    """Compiles ``step(state, fixed, batch, key) -> (state, logs)``; the old state is donated.

    The loss returns a weighted sum and the weight; dividing after the sum keeps the mean right
    for a padded last batch.
    """

    def step(
        state: TrainState, fixed: Any, batch: Any, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)
        loss = jax.value_and_grad(model.loss, has_aux=True)
        (total, (weight, extra, logs)), grads = loss(state.params, state.extra, fixed, batch, key)
        # A batch of weight 0 moves nothing.
        scale = jnp.where(weight > 0, 1 / jnp.maximum(weight, 1e-30), 0.0)
        grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        logs = {"loss": total * scale, **logs}
        return TrainState(state.step + 1, params, opt_state, extra), logs

    return jax.jit(step, donate_argnums=0)
