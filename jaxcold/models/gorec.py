"""GoRec: a conditional variational autoencoder of a backbone's item vectors.

Bai et al., GoRec: A Generative Cold-Start Recommendation Framework, ACM MM 2023, in the variant of
Cold-PopBias (github.com/gmeehan96/Cold-PopBias). With x an item's content, e its backbone vector:

- posterior of [x; e]: mean mu and log-variance; prior of x: mu', logvar'; z and z' drawn from them.
- decoder of [x; z]: the vector. Dropout is on its x alone.
- reconstruction: mean squared error of the decoder against e.
- uniformity: ``log mean_{a<b} exp(-2 |n_a - n_b|^2)``, n the unit rows of mu.
- divergence: mean over all numbers of ``q' (log q' - log(q + 1e-10))``, q = softmax(z), q' of z'.

When served, e is replaced by the mean of the backbone's vectors of the warm items of the item's
cluster: K-means of the content of all items. Nothing is drawn.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import layers
from jaxcold.models.backbone import (
    Backbone,
    Batch,
    Encoders,
    Sampler,
    apply_dense,
    batch_norm,
    check,
    constants_of,
    dense,
    keys_of,
    make_model,
    norm_layer,
    optimizer,
    summed,
    weighted_mean,
    xavier,
)
from jaxcold.models.layers import unit_rows
from jaxcold.types import Model

# Score of an item that the published code never recommends.
_NEVER = -1e6


class Constants(NamedTuple):
    """What no step changes."""

    content: Array  # f32[I, C]
    user: Array  # f32[U, D]
    item: Array  # f32[I, D]
    centres: Array  # f32[K, C] of the clusters
    cluster_mean: Array  # f32[K, D] of the vectors of a cluster's warm items; 0 without one
    has_warm: Array  # bool[K]


def posterior(
    params: Any, running: Any, content: Array, item: Array, weight: Array | None
) -> tuple[Array, Array, Any]:
    """Mu and logvar [n, D] of content [n, C] and item vectors [n, D], and running statistics."""
    layers = params["main"]["encoder"]
    joined = jnp.concatenate([content, item], axis=1)
    hidden, statistics = batch_norm(
        layers["norm"], running["encoder"], apply_dense(layers["first"], joined), weight
    )
    hidden = jnp.tanh(hidden)
    mean, spread = apply_dense(layers["mean"], hidden), apply_dense(layers["logvar"], hidden)
    return mean, spread, {**running, "encoder": statistics}


def decode(
    params: Any, running: Any, content: Array, latent: Array, weight: Array | None
) -> tuple[Array, Any]:
    """The vectors [n, D] of content [n, C] and z [n, D], and running statistics."""
    layers = params["main"]["decoder"]
    joined = jnp.concatenate([content, latent], axis=1)
    hidden, statistics = batch_norm(
        layers["norm"], running["decoder"], apply_dense(layers["first"], joined), weight
    )
    rows = apply_dense(layers["second"], jnp.tanh(hidden))
    return apply_dense(layers["third"], rows), {**running, "decoder": statistics}


def uniformity(mean: Array, weight: Array) -> Array:
    """``log mean_{a<b} exp(-2 |n_a - n_b|^2)`` over the rows of weight 1; of one row, 0."""
    rows = unit_rows(mean)
    square = jnp.sum(rows * rows, axis=1)
    distance = square[:, None] + square[None, :] - 2 * rows @ rows.T
    pairs = jnp.triu(weight[:, None] * weight[None, :], 1)
    count, total = jnp.sum(pairs), jnp.sum(pairs * jnp.exp(-2 * distance))
    return jnp.log(jnp.where(count > 0, total / jnp.maximum(count, 1), 1.0))


def loss_terms(
    params: Any,
    running: Any,
    content: Array,
    item: Array,
    weight: Array,
    noise: tuple[Array, Array],
    shown: Array,
) -> tuple[dict[str, Array], Any]:
    """ "reconstruction", "uniformity" and "divergence", and the running statistics.

    Args:
        params: of the model.
        running: statistics.
        content: [B, C] unit rows.
        item: [B, D] backbone vectors.
        weight: [B], 0 for padding.
        noise: of posterior and prior, each [B, D].
        shown: [B, C] the content that the decoder sees.
    """
    encoder = params["main"]["encoder"]
    mean, spread, running = posterior(params, running, content, item, weight)
    prior_mean = apply_dense(encoder["prior_mean"], content)
    prior_spread = apply_dense(encoder["prior_logvar"], content)
    latent = mean + noise[0] * jnp.exp(spread / 2)
    prior = prior_mean + noise[1] * jnp.exp(prior_spread / 2)
    made, running = decode(params, running, shown, latent, weight)
    p, log_p = jax.nn.softmax(prior), jax.nn.log_softmax(prior)
    divergence = p * (log_p - jnp.log(jax.nn.softmax(latent) + 1e-10))
    terms = {
        "reconstruction": weighted_mean(jnp.square(made - item), weight),
        "uniformity": uniformity(mean, weight),
        "divergence": weighted_mean(divergence, weight),
    }
    return terms, running


def _loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: Batch,
    key: Array,
    *,
    uniformity_weight: float,
    divergence_weight: float,
    dropout: float,
    noise: tuple[Array, Array] | None = None,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    content, item = unit_rows(constants.content[batch.positive]), constants.item[batch.positive]
    first, second, third = jax.random.split(key, 3)
    if noise is None:
        noise = jax.random.normal(first, item.shape), jax.random.normal(second, item.shape)
    shown = layers.dropout(content, dropout, third)
    terms, running = loss_terms(params, model_state, content, item, batch.weight, noise, shown)
    mean = terms["reconstruction"] + uniformity_weight * terms["uniformity"]
    total, count = summed(mean + divergence_weight * terms["divergence"], batch.weight)
    return total, (count, running, terms)


def clusters_of(
    content: np.ndarray, item: np.ndarray, warm: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, means of the warm items' vectors and whether there is one; see `Constants`."""
    # Imported here: other methods need no scikit-learn.
    from sklearn.cluster import KMeans

    distinct = len(np.unique(content, axis=0))
    fitted = KMeans(min(count, distinct), random_state=0).fit(content)
    label, size = fitted.labels_[warm], len(fitted.cluster_centers_)
    members = np.bincount(label, minlength=size)
    total = np.zeros((size, item.shape[1]), np.float64)
    np.add.at(total, label, item[warm])
    mean = total / np.maximum(members, 1)[:, None]
    return fitted.cluster_centers_.astype(np.float32), mean.astype(np.float32), members > 0


def build(
    dataset: Dataset,
    backbone: Backbone,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    clusters: int = 2000,
    uniformity_weight: float = 15.0,
    divergence_weight: float = 100.0,
    dropout: float = 0.1,
    l2: float = 1e-4,
    magnitude_scaling: float = 0.0,
    reference: bool = False,
) -> Model:
    """GoRec on a data set of pairs.

    Args:
        dataset: content, split and training pairs.
        backbone: vectors of users and items, which stay as they are.
        batch_size: pairs per step, of which the item is trained on.
        epochs: passes over the pairs.
        learning_rate: of Adam, constant.
        clusters: of the items' content; at most the number of distinct contents.
        uniformity_weight: of its loss.
        divergence_weight: of its loss.
        dropout: of the content that the decoder sees in training.
        l2: weight decay added to the gradient.
        magnitude_scaling: see `backbone.scale_magnitudes`.
        reference: as in the published code, content is not normalised when served, though it is in
            training, and an item of a cluster without warm items is never recommended. Mended,
            content is normalised, and the nearest cluster with warm items stands in.

    Raises:
        ValueError: for an argument out of range.
        DataError: if the backbone is not of this data set.
    """
    check(
        positive={"train.learning_rate": learning_rate, "model.clusters": clusters},
        from_zero={
            "model.uniformity_weight": uniformity_weight,
            "model.divergence_weight": divergence_weight,
            "model.dropout": dropout,
            "model.l2": l2,
            "model.magnitude_scaling": magnitude_scaling,
        },
    )
    common = constants_of(dataset, backbone)
    parts = clusters_of(
        np.asarray(common.content), np.asarray(common.item), dataset.split.warm_items, clusters
    )
    constants = Constants(*common, *map(jnp.asarray, parts))
    inputs, dim = constants.content.shape[1], constants.item.shape[1]

    def init(seed: int) -> tuple[dict[str, Any], Any]:
        keys = keys_of(seed)

        def linear(rows: int) -> dict[str, Array]:
            return {**dense(next(keys), rows, dim), "kernel": xavier(next(keys), rows, dim)}

        norms, running = {}, {}
        for half in ("encoder", "decoder"):
            norms[half], running[half] = norm_layer(dim)
        encoder = {
            "first": dense(next(keys), inputs + dim, dim, bias=False),
            "norm": norms["encoder"],
            "mean": linear(dim),
            "logvar": linear(dim),
            "prior_mean": linear(inputs),
            "prior_logvar": linear(inputs),
        }
        decoder = {
            "first": dense(next(keys), inputs + dim, dim, bias=False),
            "norm": norms["decoder"],
            "second": dense(next(keys), dim, dim),
            "third": dense(next(keys), dim, dim),
        }
        return {"main": {"encoder": encoder, "decoder": decoder}}, running

    loss = functools.partial(
        _loss,
        uniformity_weight=uniformity_weight,
        divergence_weight=divergence_weight,
        dropout=dropout,
    )
    return make_model(
        dataset,
        constants,
        Sampler.of(dataset, batch_size),
        REFERENCE_ENCODERS if reference else ENCODERS,
        init=init,
        losses={"main": loss},
        optimizers={"main": optimizer(learning_rate, l2)},
        epochs=epochs,
        magnitude_scaling=magnitude_scaling,
    )


def embed(params: Any, running: Any, content: Array, cluster_mean: Array) -> Array:
    """The vectors [n, D] that are served, of content [n, C] and cluster means [n, D]."""
    mean, _, _ = posterior(params, running, content, cluster_mean, None)
    return decode(params, running, content, mean, None)[0]


def nearest(content: Array, centres: Array, allowed: Array) -> Array:
    """i32[n]: the closest of the centres that are allowed."""
    distance = jnp.sum(centres * centres, axis=1)[None, :] - 2 * content @ centres.T
    return jnp.argmin(jnp.where(allowed[None, :], distance, jnp.inf), axis=1)


def _cold(params: Any, model_state: Any, constants: Constants, content: Array) -> Array:
    cluster = nearest(content, constants.centres, constants.has_warm)
    return embed(params, model_state, unit_rows(content), constants.cluster_mean[cluster])


def _reference_cold(params: Any, model_state: Any, constants: Constants, content: Array) -> Array:
    cluster = nearest(content, constants.centres, jnp.ones_like(constants.has_warm))
    rows = embed(params, model_state, content, constants.cluster_mean[cluster])
    known = constants.has_warm[cluster][:, None]
    return jnp.concatenate([jnp.where(known, rows, 0), jnp.where(known, 0, _NEVER)], axis=1)


ENCODERS = Encoders(cold=_cold, users=lambda params, model_state, constants: constants.user)
REFERENCE_ENCODERS = Encoders(
    cold=_reference_cold,
    users=lambda params, model_state, constants: jnp.pad(
        constants.user, ((0, 0), (0, 1)), constant_values=1.0
    ),
)
