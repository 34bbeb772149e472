"""Optimizers and schedules of the papers, as optax transformations."""

from typing import Any

import jax
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


def warm_up(learning_rate: float, period: int) -> optax.Schedule:
    """Linear from 0 at step 0 to `learning_rate` at step `period`, constant from there."""

    def schedule(step: jnp.ndarray) -> jnp.ndarray:
        return learning_rate * jnp.minimum(step / max(period, 1) if period else 1.0, 1.0)

    return schedule


def in_turn(
    teacher: optax.GradientTransformation,
    student: optax.GradientTransformation,
    *,
    teacher_stops: int,
    student_starts: int,
) -> optax.GradientTransformation:
    """Two optimizers for the parameters "teacher" and "student", each within its own steps.

    Outside them neither the parameters nor the optimizer's state change: a student that starts
    late starts like a fresh run.

    Args:
        teacher: updates the first group in steps 0 .. teacher_stops - 1.
        student: updates the second from step student_starts on.
        teacher_stops: see above.
        student_starts: see above.
    """

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

    return optax.partition(
        {
            "teacher": optax.conditionally_mask(teacher, lambda step: step < teacher_stops),
            "student": optax.conditionally_mask(student, lambda step: step >= student_starts),
        },
        labels,
    )


def distillation(
    learning_rate: float, l2: float, *, teacher_stops: int, student_starts: int, warm_up_steps: int
) -> optax.GradientTransformation:
    """`in_turn` as the SEMCo authors have it: teacher with cosine and coupled L2, student without.

    Args:
        learning_rate: of both at their highest.
        l2: of the teacher.
        teacher_stops: see `in_turn`; the cosine ends there.
        student_starts: see `in_turn`.
        warm_up_steps: of the student.
    """
    return in_turn(
        adam_coupled_l2(cosine(learning_rate, max(teacher_stops, 1)), l2),
        adam_coupled_l2(warm_up(learning_rate, warm_up_steps), 0.0),
        teacher_stops=teacher_stops,
        student_starts=student_starts,
    )


def clip_row_norm(max_norm: float, *, first: int = 0) -> optax.GradientTransformation:
    """Keeps every row of a table within a ball: the last link of a chain of updates.

    After the update a row longer than the bound is scaled by ``max_norm / (norm + 1e-7)``, as the
    code of "Let It Go? Not Quite" does after each optimizer step. What came before in the chain
    does not notice: the moments of Adam stay as they are.

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


def sasrec(
    learning_rate: float, max_delta_norm: float | None, *, padding: bool = True
) -> optax.GradientTransformation:
    """Adam at a constant rate; the rows of the parameter "delta", if there is one, are bounded.

    Args:
        learning_rate: constant.
        max_delta_norm: see `clip_row_norm`; None where there is no such parameter.
        padding: leave row 0 alone. It makes a difference only where the row is not zero, in the
            published code; and it cannot be told where each device sees a part of the rows.
    """
    adam = optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)
    if max_delta_norm is None:
        return adam

    def is_delta(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "delta", params)

    return optax.chain(
        adam, optax.masked(clip_row_norm(max_delta_norm, first=int(padding)), is_delta)
    )
