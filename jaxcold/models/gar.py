"""GAR: a generator of item vectors from content against a discriminator.

Chen et al., Generative Adversarial Framework for Cold-Start Item Recommendation, SIGIR 2022, in
the variant of Cold-PopBias (github.com/gmeehan96/Cold-PopBias). With e an item's backbone vector, g
its vector made from content, D_u and D_i linear maps (the heads), s(e) the score ``D_u u . D_i e``
and j a negative:

- heads: ``(1 - beta) bpr(s(e), s(g)) + beta bpr(s(e), s(e_j))``, g held fixed.
- generator: ``(1 - alpha) bpr(s(g), s(e)) + alpha mse(g, e)``, the heads held fixed as they were
  before their own update of this step.

A cold item is served as D_i g, a warm one as D_i e, a user as D_u u.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import layers
from jaxcold.models.backbone import (
    Backbone,
    Batch,
    Constants,
    Encoders,
    Sampler,
    apply_dense,
    batch_norm,
    bpr,
    check,
    constants_of,
    dense,
    dots,
    keys_of,
    make_model,
    norm_layer,
    optimizer,
    summed,
    weighted_mean,
)
from jaxcold.types import Model

HIDDEN = 192


def generate(
    generator: Any, running: Any, content: Array, weight: Array | None, key: Array, dropout: float
) -> tuple[Array, Any]:
    """G [n, D] of content [n, C], and the running statistics; `weight` as in `batch_norm`."""
    hidden, running = batch_norm(
        generator["norm"], running, apply_dense(generator["first"], content), weight
    )
    hidden = jnp.tanh(hidden)
    if weight is not None:
        hidden = layers.dropout(hidden, dropout, key)
    return apply_dense(generator["second"], hidden), running


def _scores(heads: Any, user: Array, *items: Array) -> list[Array]:
    users = apply_dense(heads["user"], user)
    return [dots(users, apply_dense(heads["item"], rows)) for rows in items]


def heads_terms(
    heads: Any, user: Array, real: Array, made: Array, negative: Array, weight: Array
) -> dict[str, Array]:
    """ "adversarial" and "real", the two ranking losses of the heads."""
    known, fake, other = _scores(heads, user, real, jax.lax.stop_gradient(made), negative)
    return {"adversarial": bpr(known, fake, weight), "real": bpr(known, other, weight)}


def generator_terms(
    heads: Any, user: Array, real: Array, made: Array, weight: Array
) -> dict[str, Array]:
    """ "adversarial" and "similarity" of the generator."""
    known, fake = _scores(heads, user, real, made)
    return {
        "adversarial": bpr(fake, jax.lax.stop_gradient(known), weight),
        "similarity": weighted_mean(jnp.square(made - real), weight),
    }


def _vectors(
    params: Any, model_state: Any, constants: Constants, batch: Batch, key: Array, dropout: float
) -> tuple[Array, Array, Array, Any]:
    """Users and positives of a batch, what is generated for these, and the running statistics."""
    made, running = generate(
        params["generator"],
        model_state["running"],
        constants.content[batch.positive],
        batch.weight,
        key,
        dropout,
    )
    return constants.user[batch.user], constants.item[batch.positive], made, running


def _heads_loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: Batch,
    key: Array,
    *,
    beta: float,
    dropout: float,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    user, real, made, running = _vectors(params, model_state, constants, batch, key, dropout)
    negative = constants.item[batch.negative]
    terms = heads_terms(params["heads"], user, real, made, negative, batch.weight)
    mean = (1 - beta) * terms["adversarial"] + beta * terms["real"]
    total, count = summed(mean, batch.weight)
    # The generator's update of this step sees the heads as they are here.
    state = jax.lax.stop_gradient({"running": running, "heads": params["heads"]})
    return total, (count, state, {f"heads/{name}": term for name, term in terms.items()})


def _generator_loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: Batch,
    key: Array,
    *,
    alpha: float,
    dropout: float,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    user, real, made, running = _vectors(params, model_state, constants, batch, key, dropout)
    terms = generator_terms(model_state["heads"], user, real, made, batch.weight)
    mean = (1 - alpha) * terms["adversarial"] + alpha * terms["similarity"]
    total, count = summed(mean, batch.weight)
    state = {**model_state, "running": running}
    return total, (count, state, {f"generator/{name}": term for name, term in terms.items()})


def heads_optimizer(
    learning_rate: float, l2: float, *, reference: bool
) -> optax.GradientTransformation:
    """Adam of both heads; of the published code, of the users' head alone."""
    if not reference:
        return optimizer(learning_rate, l2)
    return optax.multi_transform(
        {"learn": optimizer(learning_rate, l2), "keep": optax.set_to_zero()},
        {"user": "learn", "item": "keep"},
    )


def build(
    dataset: Dataset,
    backbone: Backbone,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    alpha: float = 1.0,
    beta: float = 0.8,
    dropout: float = 0.1,
    l2: float = 1e-4,
    magnitude_scaling: float = 0.0,
    reference: bool = False,
) -> Model:
    """GAR on a data set of pairs.

    Args:
        dataset: content, split and training pairs.
        backbone: vectors of users and items, which stay as they are.
        batch_size: pairs per step.
        epochs: passes over the pairs.
        learning_rate: of both optimizers, constant.
        alpha: weight of the generator's squared error; 1 makes it a regression.
        beta: weight of the real negatives in the loss of the heads.
        dropout: of the generator's hidden layer.
        l2: weight decay added to the gradient.
        magnitude_scaling: see `backbone.scale_magnitudes`.
        reference: the items' head stays the identity, as in the published code, which switches
            its gradient off before the first step.

    Raises:
        ValueError: for an argument out of range.
        DataError: if the backbone is not of this data set.
    """
    check(
        positive={"train.learning_rate": learning_rate},
        from_zero={
            "model.alpha": alpha,
            "model.beta": beta,
            "model.dropout": dropout,
            "model.l2": l2,
            "model.magnitude_scaling": magnitude_scaling,
        },
    )
    constants = constants_of(dataset, backbone)
    inputs, dim = constants.content.shape[1], constants.item.shape[1]

    def init(seed: int) -> tuple[dict[str, Any], Any]:
        keys = keys_of(seed)
        norm, running = norm_layer(HIDDEN)
        generator = {
            "first": dense(next(keys), inputs, HIDDEN),
            "norm": norm,
            "second": dense(next(keys), HIDDEN, dim),
        }
        heads, before = (
            {side: {"kernel": jnp.eye(dim), "bias": jnp.zeros(dim)} for side in ("user", "item")}
            for _ in range(2)
        )
        state = {"running": running, "heads": before}
        return {"heads": heads, "generator": generator}, state

    return make_model(
        dataset,
        constants,
        Sampler.of(dataset, batch_size),
        ENCODERS,
        init=init,
        losses={
            "heads": functools.partial(_heads_loss, beta=beta, dropout=dropout),
            "generator": functools.partial(_generator_loss, alpha=alpha, dropout=dropout),
        },
        optimizers={
            "heads": heads_optimizer(learning_rate, l2, reference=reference),
            "generator": optimizer(learning_rate, l2),
        },
        epochs=epochs,
        magnitude_scaling=magnitude_scaling,
    )


def _cold(params: Any, model_state: Any, constants: Constants, content: Array) -> Array:
    running, key = model_state["running"], jax.random.key(0)
    made, _ = generate(params["generator"], running, content, None, key, 0.0)
    return apply_dense(params["heads"]["item"], made)


ENCODERS = Encoders(
    cold=_cold,
    users=lambda params, model_state, constants: apply_dense(
        params["heads"]["user"], constants.user
    ),
    warm=lambda params, model_state, constants: apply_dense(
        params["heads"]["item"], constants.item
    ),
)
