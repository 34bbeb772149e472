"""Schedules and optax transformations that methods share."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cosine(learning_rate: float, period: int) -> optax.Schedule:
    """Half a cosine from `learning_rate` at step 0 to 0 at step `period`.

    Past the period the rate follows the cosine up again, as PyTorch's scheduler of the papers'
    code does and `optax.cosine_decay_schedule` does not; a run of exactly `period` steps never
    gets there.
    """

    def schedule(step: jnp.ndarray) -> jnp.ndarray:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / period))

    return schedule


def warm_up(learning_rate: float, period: int) -> optax.Schedule:
    """Linear from 0 at step 0 to `learning_rate` at step `period`, constant from there."""
    if period == 0:
        return optax.constant_schedule(learning_rate)
    return optax.linear_schedule(0.0, learning_rate, period)


def adam_coupled_l2(schedule: optax.Schedule, l2: float) -> optax.GradientTransformation:
    """Adam on ``gradient + l2 * parameter``: torch's ``weight_decay``, not AdamW.

    Every parameter decays, batch norm and biases included (SEMCo, section 4.1.4 and its code).
    """
    return optax.chain(
        optax.add_decayed_weights(l2),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(schedule),
    )


def clip_row_norm(max_norm: float, *, first: int = 0) -> optax.GradientTransformation:
    """Keeps every row of a table within a ball: the last link of a chain of updates.

    After the update a row longer than the bound is scaled by ``max_norm / (norm + 1e-7)``, as the
    code of "Let It Go? Not Quite" does after each optimizer step. The moments of Adam, which come
    earlier in the chain, stay as they are.

    Args:
        max_norm: L2 norm that no row exceeds, at least 0.
        first: rows before this one are left alone, such as that of padding.

    Raises:
        ValueError: for a negative bound.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm is at least 0, not {max_norm}")

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "clip_row_norm needs the parameters: call update(updates, state, params)"
            )

        def bounded(step: jnp.ndarray, table: jnp.ndarray) -> jnp.ndarray:
            moved = table + step
            norm = jnp.sqrt(jnp.sum(moved * moved, axis=-1, keepdims=True))
            inside = (norm <= max_norm) | (jnp.arange(len(table)) < first)[:, None]
            scale = jnp.where(inside, 1.0, max_norm / (norm + 1e-7))
            return jnp.where(inside, step, moved * scale - table)

        return jax.tree.map(bounded, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
