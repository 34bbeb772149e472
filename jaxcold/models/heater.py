"""Heater: content is mapped onto a backbone's item vectors by a mixture of experts.

Zhu et al., Recommendation for New Users and New Items via Randomized Training and
Mixture-of-Experts Transformation, SIGIR 2020, in the variant of Cold-PopBias
(github.com/gmeehan96/Cold-PopBias). With x an item's content and e its backbone vector:

- v = sum over experts k of ``gate_k(x) tanh(E_k t)``, gate and t = tanh(L2 tanh(L1 x)) of x.
- a pair scores ``O_u(u) . O_i(v')`` with ``v' = (1 - p) e + p v`` in training, v when served.
- loss: mean squared error of the scores of positives against 1 and of negatives against 0, plus
  ``alpha`` times the sums over the batch of ``|v - e|^2`` of positives and of negatives.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models.backbone import (
    Backbone,
    Batch,
    Constants,
    Encoders,
    Sampler,
    apply_dense,
    check,
    constants_of,
    dense,
    dots,
    keys_of,
    make_model,
    optimizer,
    summed,
    weighted_mean,
)
from jaxcold.types import Model

HIDDEN = 200


def encode(params: Any, content: Array) -> Array:
    """v: [n, C] -> [n, D]."""
    main = params["main"]
    trunk = jnp.tanh(apply_dense(main["second"], jnp.tanh(apply_dense(main["first"], content))))
    gates = jnp.tanh(apply_dense(main["gate"], content))
    experts = [jnp.tanh(apply_dense(layer, trunk)) for layer in main["experts"]]
    return sum(gates[:, k, None] * rows for k, rows in enumerate(experts))  # type: ignore[return-value]


def loss_terms(
    params: Any, constants: Constants, batch: Batch, *, mixing: float
) -> dict[str, Array]:
    """ "mse", "positive" and "negative"; the last two are sums over the pairs of weight 1."""
    main = params["main"]
    user = apply_dense(main["user"], constants.user[batch.user])

    def of(items: Array, target: float) -> tuple[Array, Array]:
        known, made = constants.item[items], encode(params, constants.content[items])
        mixed = apply_dense(main["item"], (1 - mixing) * known + mixing * made)
        distance = jnp.sum(jnp.square(made - known), axis=1)
        error = jnp.square(dots(user, mixed) - target)
        return weighted_mean(error, batch.weight), jnp.sum(distance * batch.weight)

    error, positive = of(batch.positive, 1.0)
    error_of_negative, negative = of(batch.negative, 0.0)
    return {
        "mse": (error + error_of_negative) / 2,
        "positive": positive,
        "negative": negative,
    }


def _loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: Batch,
    key: Array,
    *,
    mixing: float,
    alpha: float,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    del key
    terms = loss_terms(params, constants, batch, mixing=mixing)
    mean = terms["mse"] + alpha * (terms["positive"] + terms["negative"])
    total, count = summed(mean, batch.weight)
    return total, (count, model_state, terms)


def build(
    dataset: Dataset,
    backbone: Backbone,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    experts: int = 7,
    mixing: float = 0.2,
    alpha: float = 1e-5,
    l2: float = 1e-4,
    magnitude_scaling: float = 0.0,
) -> Model:
    """Heater on a data set of pairs.

    Args:
        dataset: content, split and training pairs.
        backbone: vectors of users and items, which stay as they are.
        batch_size: pairs per step.
        epochs: passes over the pairs.
        learning_rate: of Adam, constant.
        experts: K.
        mixing: p, the weight of content in the vectors that are trained on.
        alpha: weight of the distances to the backbone's vectors.
        l2: weight decay added to the gradient.
        magnitude_scaling: see `backbone.scale_magnitudes`.

    Raises:
        ValueError: for an argument out of range.
        DataError: if the backbone is not of this data set.
    """
    check(
        positive={"train.learning_rate": learning_rate, "model.experts": experts},
        from_zero={
            "model.alpha": alpha,
            "model.l2": l2,
            "model.mixing": mixing,
            "model.magnitude_scaling": magnitude_scaling,
        },
    )
    constants = constants_of(dataset, backbone)
    inputs, dim = constants.content.shape[1], constants.item.shape[1]

    def init(seed: int) -> tuple[dict[str, Any], tuple[()]]:
        keys = keys_of(seed)
        main = {
            "first": dense(next(keys), inputs, HIDDEN),
            "second": dense(next(keys), HIDDEN, dim),
            "gate": dense(next(keys), inputs, experts),
            "experts": [dense(next(keys), dim, dim) for _ in range(experts)],
            "user": dense(next(keys), dim, dim),
            "item": dense(next(keys), dim, dim),
        }
        return {"main": main}, ()

    return make_model(
        dataset,
        constants,
        Sampler.of(dataset, batch_size),
        ENCODERS,
        init=init,
        losses={"main": functools.partial(_loss, mixing=mixing, alpha=alpha)},
        optimizers={"main": optimizer(learning_rate, l2)},
        epochs=epochs,
        magnitude_scaling=magnitude_scaling,
    )


ENCODERS = Encoders(
    cold=lambda params, model_state, constants, content: apply_dense(
        params["main"]["item"], encode(params, content)
    ),
    users=lambda params, model_state, constants: apply_dense(
        params["main"]["user"], constants.user
    ),
)
