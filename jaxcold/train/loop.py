"""The training loop: epochs of dispatched steps, with a watch on the loss."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxcold.train.step import Step, TrainState
from jaxcold.types import Model

# What the keys of steps are derived with. Parameters are drawn from keys derived from the seed by
# small numbers, and so are other keys than these.
STEPS = 0x53544550


class DivergedError(FloatingPointError):
    """The loss is not finite, or the parameters are not.

    Attributes:
        step: number of the step, from 0, whose loss was not finite, or after which the state was
            not; None where that is unknown.
        examples: external ids of its batch, by name.
        before: of the batch before it, whose update that step was the first to see.
    """

    step: int | None = None
    examples: Mapping[str, np.ndarray] = MappingProxyType({})
    before: Mapping[str, np.ndarray] = MappingProxyType({})


@jax.jit
def _finite(state: TrainState) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves]).all()


def fit(
    model: Model,
    step: Step,
    state: TrainState,
    *,
    seed: int,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    on_epoch: Callable[[int, TrainState], bool] = lambda epoch, state: False,
    due: Callable[[int], bool] = lambda done: False,
    on_due: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Trains for the model's epochs; each epoch's order follows from (seed, epoch) alone.

    A state of step n goes on with batch n: the result is that of a run without a break.

    Args:
        model: from a model file's ``build``.
        step: from `make_step`.
        state: from `init_state`, or of an earlier run; its buffers are donated.
        seed: of the order of batches and of the keys given to the loss.
        on_step: called with the number of a finished step (from 0) and its metrics.
        on_epoch: called with the number of a finished epoch (from 1) and the state after it; what
            is true ends the training there.
        due: asked after every step, with the number of steps behind it, ...
        on_due: ... whether to call this with the state. All losses up to there were finite, and
            so is the state, as it is for `on_epoch`.

    Raises:
        DivergedError: naming the step, at most `Model.in_flight` steps after it.
        ValueError: if an epoch has another number of batches than `Model.steps_per_epoch`.
    """
    key = jax.random.fold_in(jax.random.key(seed), STEPS)
    first = done = int(state.step)
    in_flight: deque[dict[str, jax.Array]] = deque()

    def settle(limit: int) -> None:
        nonlocal done
        while len(in_flight) > limit:
            metrics = {name: float(value) for name, value in in_flight.popleft().items()}
            if not math.isfinite(metrics["loss"]):
                raise diverged(f"the loss is {metrics['loss']}", done)
            on_step(done, metrics)
            done += 1

    def settle_all() -> None:
        settle(0)
        # A finite loss can have a gradient that is not.
        if not _finite(state):
            raise diverged("the parameters are not finite any more", done - 1)

    def diverged(what: str, step: int) -> DivergedError:
        error = DivergedError(f"{what} at step {step} (epoch {step // size + 1})")
        error.step = step
        error.examples, error.before = (
            model.examples(_order(seed, at // size), at % size) if at >= 0 else {}
            for at in (step, step - 1)
        )
        return error

    size = model.steps_per_epoch
    finished = False
    for epoch in range(first // max(size, 1), model.epochs if size else 0):
        if finished:
            break
        number = epoch * size - 1
        for number, batch in enumerate(model.batches(_order(seed, epoch)), epoch * size):
            if number == (epoch + 1) * size:
                break
            if number < first:  # trained before the interruption
                continue
            state, metrics = step(state, model.constants, batch, key)
            in_flight.append(metrics)
            settle(model.in_flight)
            if number + 1 == (epoch + 1) * size:
                settle_all()
                finished = on_epoch(epoch + 1, state)
            if due(number + 1):
                settle_all()
                on_due(state)
        if number + 1 != (epoch + 1) * size:
            made = "more" if number + 1 > (epoch + 1) * size else f"{number + 1 - epoch * size}"
            raise ValueError(f"epoch {epoch + 1} has {made} batches; steps_per_epoch is {size}")
    return state


def _order(seed: int, epoch: int) -> np.random.Generator:
    """What an epoch's order follows from."""
    return np.random.default_rng([seed, epoch])
