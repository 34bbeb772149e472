"""ALDI: a student of content learns from a backbone, its teacher, to rank, rate and identify.

Huang et al., Aligning Distillation for Cold-Start Item Recommendation, CIKM 2023, in the variant of
ColdRec (github.com/YuanchenBei/ColdRec). With u, e the backbone's vectors and û = T_u(u),
v = T_i(x) the student's, of two towers; s and t the student's and teacher's scores of positives (+)
and negatives (-); and ``H(a, y) = softplus(a) - y a``:

- supervised: bpr(s+, s-)
- rating: mean of ``|t+ - s+| + |t- - s-|``
- ranking: mean of ``w H(s+ - s-, sigmoid(t+ - t-))``
- identification: mean of ``w H(a_S, sigmoid(a_T))``, ``a = |v|^2 - v . mean(v-)``

The loss is supervised + gamma rating + alpha ranking + beta identification. A cold item is scored
by the student, û . v, a warm one by the teacher, u . e: vectors hold both halves.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import backbone as backbones
from jaxcold.models.backbone import (
    Backbone,
    Batch,
    Encoders,
    Sampler,
    apply_dense,
    batch_norm,
    bpr,
    check,
    constants_of,
    dots,
    keys_of,
    make_model,
    norm_layer,
    summed,
    weighted_mean,
)
from jaxcold.types import Model

HIDDEN = 200


class Constants(NamedTuple):
    """What no step changes."""

    content: Array  # f32[I, C]
    user: Array  # f32[U, D]
    item: Array  # f32[I, D]
    item_weight: Array  # f32[I] w of `loss_terms`


def tower(layers: Any, running: Any, x: Array, weight: Array | None) -> tuple[Array, Any]:
    """[n, inputs] -> [n, D], and the running statistics; `weight` as in `batch_norm`."""
    hidden, running = batch_norm(layers["norm"], running, apply_dense(layers["first"], x), weight)
    return apply_dense(layers["second"], jnp.tanh(hidden)), running


def _cross_entropy(logit: Array, target: Array) -> Array:
    return jax.nn.softplus(logit) - target * logit


def loss_terms(
    params: Any, running: Any, constants: Constants, batch: Batch
) -> tuple[dict[str, Array], Any]:
    """ "supervised", "rating", "ranking" and "identification", and the running statistics."""
    main, weight = params["main"], batch.weight
    teacher = constants.user[batch.user]
    better, worse = constants.item[batch.positive], constants.item[batch.negative]
    user, of_user = tower(main["user"], running["user"], teacher, weight)
    content = constants.content
    positive, of_item = tower(main["item"], running["item"], content[batch.positive], weight)
    negative, of_item = tower(main["item"], of_item, content[batch.negative], weight)
    s_better, s_worse = dots(user, positive), dots(user, negative)
    t_better, t_worse = dots(teacher, better), dots(teacher, worse)

    def identity(rows: Array, others: Array) -> Array:
        mean = jnp.sum(others * weight[:, None], axis=0) / jnp.sum(weight)
        return dots(rows, rows) - rows @ mean

    importance = constants.item_weight[batch.positive]
    rating = jnp.abs(t_better - s_better) + jnp.abs(t_worse - s_worse)
    ranking = _cross_entropy(s_better - s_worse, jax.nn.sigmoid(t_better - t_worse))
    alike = _cross_entropy(identity(positive, negative), jax.nn.sigmoid(identity(better, worse)))
    terms = {
        "supervised": bpr(s_better, s_worse, weight),
        "rating": weighted_mean(rating, weight),
        "ranking": weighted_mean(importance * ranking, weight),
        "identification": weighted_mean(importance * alike, weight),
    }
    return terms, {"user": of_user, "item": of_item}


def _loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: Batch,
    key: Array,
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    del key
    terms, running = loss_terms(params, model_state, constants, batch)
    mean = terms["supervised"] + gamma * terms["rating"]
    mean += alpha * terms["ranking"] + beta * terms["identification"]
    total, count = summed(mean, batch.weight)
    return total, (count, running, terms)


def item_weights(dataset: Dataset, steepness: float) -> np.ndarray:
    """f32[I]: ``tanh(M f |I| / |U|)``, at most tanh(M), with f the sum of 1 / |history| of takers.

    Args:
        dataset: its training pairs count.
        steepness: M.
    """
    train = dataset.split.train
    lengths = train.by_user().counts
    frequency = np.bincount(train.item, 1 / lengths[train.user], train.num_items)
    slope = steepness * train.num_items / train.num_users
    return np.clip(np.tanh(slope * frequency), 0, np.tanh(steepness)).astype(np.float32)


def optimizer(learning_rate: float, l2: float) -> optax.GradientTransformation:
    """Adam, its weight decay added to the gradient of the linear layers alone."""

    def is_linear(params: Any) -> Any:
        return {
            side: {
                name: jax.tree.map(lambda _, name=name: name != "norm", layer)
                for name, layer in layers.items()
            }
            for side, layers in params.items()
        }

    decay = optax.masked(optax.add_decayed_weights(l2), is_linear)
    return optax.chain(decay, optax.adam(learning_rate))


def build(
    dataset: Dataset,
    backbone: Backbone,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    alpha: float = 0.9,
    beta: float = 0.05,
    gamma: float = 0.1,
    weighted: bool = False,
    steepness: float = 4.0,
    l2: float = 1e-4,
    magnitude_scaling: float = 0.0,
) -> Model:
    """ALDI on a data set of pairs.

    Args:
        dataset: content, split and training pairs.
        backbone: vectors of users and items, the teacher's, which stay as they are.
        batch_size: pairs per step.
        epochs: passes over the pairs.
        learning_rate: of Adam, constant.
        alpha: weight of the ranking loss.
        beta: weight of the identification loss.
        gamma: weight of the rating loss.
        weighted: weigh both by how often an item was taken, see `item_weights`; otherwise w = 1.
        steepness: M of `item_weights`.
        l2: weight decay added to the gradient, not of batch norm.
        magnitude_scaling: see `backbone.scale_magnitudes`.

    Raises:
        ValueError: for an argument out of range.
        DataError: if the backbone is not of this data set.
    """
    check(
        positive={"train.learning_rate": learning_rate, "model.steepness": steepness},
        from_zero={
            "model.alpha": alpha,
            "model.beta": beta,
            "model.gamma": gamma,
            "model.l2": l2,
            "model.magnitude_scaling": magnitude_scaling,
        },
    )
    common = constants_of(dataset, backbone)
    weight = item_weights(dataset, steepness) if weighted else np.ones(len(common.item), np.float32)
    constants = Constants(*common, jnp.asarray(weight))
    dim = common.item.shape[1]

    def init(seed: int) -> tuple[dict[str, Any], Any]:
        keys = keys_of(seed)

        def linear(inputs: int, outputs: int) -> backbones.Layer:
            kernel = 0.01 * jax.random.truncated_normal(next(keys), -2, 2, (inputs, outputs))
            return {"kernel": kernel, "bias": jnp.zeros(outputs)}

        main, running = {}, {}
        for side, inputs in (("user", dim), ("item", common.content.shape[1])):
            norm, running[side] = norm_layer(HIDDEN)
            main[side] = {
                "first": linear(inputs, HIDDEN),
                "norm": norm,
                "second": linear(HIDDEN, dim),
            }
        return {"main": main}, running

    return make_model(
        dataset,
        constants,
        Sampler.of(dataset, batch_size),
        ENCODERS,
        init=init,
        losses={"main": functools.partial(_loss, alpha=alpha, beta=beta, gamma=gamma)},
        optimizers={"main": optimizer(learning_rate, l2)},
        epochs=epochs,
        magnitude_scaling=magnitude_scaling,
    )


def _cold(params: Any, model_state: Any, constants: Constants, content: Array) -> Array:
    made, _ = tower(params["main"]["item"], model_state["item"], content, None)
    return jnp.concatenate([made, jnp.zeros_like(made)], axis=1)


def _users(params: Any, model_state: Any, constants: Constants) -> Array:
    made, _ = tower(params["main"]["user"], model_state["user"], constants.user, None)
    return jnp.concatenate([made, constants.user], axis=1)


ENCODERS = Encoders(
    cold=_cold,
    users=_users,
    warm=lambda params, model_state, constants: jnp.concatenate(
        [jnp.zeros_like(constants.item), constants.item], axis=1
    ),
)
