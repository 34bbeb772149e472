"""Optimizers and schedules of the papers, as optax transformations."""

import jax.numpy as jnp
import optax


def cosine(learning_rate: float, period: int) -> optax.Schedule:
    """Half a cosine from `learning_rate` at step 0 to 0 at step `period`.

    Past the period the rate follows the cosine up again, as PyTorch's scheduler of the papers'
    code does; a run of exactly `period` steps never gets there.
    """

    def schedule(step: jnp.ndarray) -> jnp.ndarray:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / period))

    return schedule


def adam_coupled_l2(schedule: optax.Schedule, l2: float) -> optax.GradientTransformation:
    """Adam on ``gradient + l2 * parameter``: torch's ``weight_decay``, not AdamW.

    Every parameter decays, batch norm and biases included (SEMCo, section 4.1.4 and its code).
    """
    return optax.chain(
        optax.add_decayed_weights(l2),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(schedule),
    )
