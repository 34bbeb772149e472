"""What cold-start methods share that start from the vectors of a trained recommender.

The backbone's vectors stay as they are; a method learns to make an item's vector from its content.
Also here: the sampler of (user, positive, negative), layers on plain dictionaries of arrays, and
magnitude scaling.

A row of content is the unit rows of an item's M modes side by side, of norm sqrt(M).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcold.data.content import stacked_unit_rows
from jaxcold.data.pairs.batches import check_batch_size, shuffled_pairs
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.models.transforms import adam_coupled_l2
from jaxcold.types import Csr, DataError, Model

Layer = dict[str, Array]

# Units of the running statistics' updates, and what keeps a variance from zero.
MOMENTUM, EPS = 0.1, 1e-5


class Backbone(NamedTuple):
    """Vectors of a trained recommender, whose scores are dot products."""

    user: np.ndarray  # f32[U, D]
    item: np.ndarray  # f32[I, D]; only the rows of warm items are read


class Batch(NamedTuple):
    """Pairs of training, each with a warm item that its user has not taken in training."""

    user: Any  # i32[B]
    positive: Any  # i32[B]
    negative: Any  # i32[B]
    weight: Any  # f32[B]; 0 marks padding


class Constants(NamedTuple):
    """What no step changes."""

    content: Array  # f32[I, C]
    user: Array  # f32[U, D]
    item: Array  # f32[I, D]


def content_rows(content: ContentFeatures) -> np.ndarray:
    """f32[I, C]: the unit rows of all modes side by side; zeros where a mode is missing."""
    count = len(next(iter(content.tables.values())))
    return stacked_unit_rows(*content, np.arange(count))


def constants_of(dataset: Dataset, backbone: Backbone) -> Constants:
    """Content and backbone on the device; the rows of cold items are zero.

    Raises:
        DataError: if the backbone is of other users or items, or not finite.
    """
    users, items = dataset.interactions.num_users, dataset.interactions.num_items
    for name, table, rows in (("user", backbone.user, users), ("item", backbone.item, items)):
        if table.ndim != 2 or len(table) != rows:
            raise DataError(
                f"backbone: {name} vectors have shape {list(table.shape)}; {dataset.name} has "
                f"{rows} {name}s; train it on this data set"
            )
    if backbone.user.shape[1] != backbone.item.shape[1]:
        raise DataError(
            f"backbone: user vectors have {backbone.user.shape[1]} numbers, item vectors "
            f"{backbone.item.shape[1]}; give vectors of one width"
        )
    warm = dataset.split.warm_items
    item = np.zeros(backbone.item.shape, np.float32)
    item[warm] = backbone.item[warm]
    if not (np.isfinite(item).all() and np.isfinite(backbone.user).all()):
        raise DataError("backbone: holds a number that is not finite; train it again")
    return Constants(
        jnp.asarray(content_rows(dataset.content)),
        jnp.asarray(backbone.user, jnp.float32),
        jnp.asarray(item),
    )


class Sampler(NamedTuple):
    """Training pairs with negatives: uniform over the warm items that the user has not taken."""

    user: np.ndarray  # i32[n]
    item: np.ndarray  # i32[n]
    warm: np.ndarray  # i32[Iw]
    taken: np.ndarray  # i64[n] user * num_items + item, ascending
    num_items: int
    batch_size: int

    @classmethod
    def of(cls, dataset: Dataset, batch_size: int) -> "Sampler":
        """The sampler of a data set's training pairs.

        Raises:
            ValueError: for a batch size below 1.
            DataError: if a user has taken every warm item.
        """
        check_batch_size(batch_size, len(dataset.split.train.user))
        train, warm = dataset.split.train, dataset.split.warm_items
        full = np.flatnonzero(train.by_user().counts >= len(warm))
        if len(full):
            raise DataError(
                f"user {dataset.user_ids[full[0]]} has taken all {len(warm)} warm items, which "
                "leaves no negative; remove that user"
            )
        items = dataset.interactions.num_items
        taken = np.unique(train.user.astype(np.int64) * items + train.item)
        return cls(train.user, train.item, warm, taken, items, batch_size)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.user) // self.batch_size)

    def is_taken(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """bool[...]: whether each pair is one of training."""
        key = user.astype(np.int64) * self.num_items + item
        place = np.searchsorted(self.taken, key)
        return self.taken[np.minimum(place, len(self.taken) - 1)] == key

    def negatives(self, rng: np.random.Generator, user: np.ndarray) -> np.ndarray:
        """i32[...]: a warm item for each user, redrawn while the user has taken it."""
        item = rng.choice(self.warm, user.shape)
        while (taken := self.is_taken(user, item)).any():
            item[taken] = rng.choice(self.warm, np.count_nonzero(taken))
        return item

    def epoch(self, rng: np.random.Generator) -> Iterator[Batch]:
        """One epoch."""
        pairs = shuffled_pairs(self.user, self.item, self.batch_size, rng)
        negative = self.negatives(rng, pairs.user)
        for row in zip(pairs.user, pairs.item, negative, pairs.weight, strict=True):
            yield Batch(*row)

    def examples(self, ids: Dataset) -> Callable[..., Mapping[str, np.ndarray]]:
        """The external ids of a batch, for messages."""

        def names(rng: np.random.Generator, at: int) -> Mapping[str, np.ndarray]:
            pairs = shuffled_pairs(self.user, self.item, self.batch_size, rng)
            real = pairs.weight[at] > 0
            return {
                "user": ids.user_ids[pairs.user[at][real]],
                "item": ids.item_ids[pairs.item[at][real]],
            }

        return names


def keys_of(seed: int) -> Iterator[Array]:
    """Keys of a seed's parameters, as many as are asked for."""
    key = jax.random.key(seed)
    for number in itertools.count():
        yield jax.random.fold_in(key, number)


def dense(key: Array, inputs: int, outputs: int, *, bias: bool = True) -> Layer:
    """A linear layer, uniform in +-1/sqrt(inputs), bias included."""
    bound = 1 / math.sqrt(inputs)
    first, second = jax.random.split(key)
    layer = {"kernel": jax.random.uniform(first, (inputs, outputs), minval=-bound, maxval=bound)}
    if bias:
        layer["bias"] = jax.random.uniform(second, (outputs,), minval=-bound, maxval=bound)
    return layer


def xavier(key: Array, rows: int, columns: int) -> Array:
    """f32[rows, columns], uniform in +-sqrt(6 / (rows + columns))."""
    bound = math.sqrt(6 / (rows + columns))
    return jax.random.uniform(key, (rows, columns), minval=-bound, maxval=bound)


def apply_dense(layer: Layer, x: Array) -> Array:
    """``x @ kernel + bias``: [n, inputs] -> [n, outputs]."""
    y = x @ layer["kernel"]
    return y + layer["bias"][None, :] if "bias" in layer else y


def norm_layer(width: int) -> tuple[Layer, Layer]:
    """Scale and bias of a batch norm, and its running statistics."""
    return (
        {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        {"mean": jnp.zeros(width), "var": jnp.ones(width)},
    )


def batch_norm(layer: Layer, running: Layer, x: Array, weight: Array | None) -> tuple[Array, Layer]:
    """Batch norm, and the running statistics after it.

    Args:
        layer: scale and bias [D].
        running: mean and variance [D].
        x: [n, D].
        weight: [n], 0 for rows of padding: normalise by the others' statistics, and move the
            running ones a tenth towards them; None: normalise by the running ones.
    """
    if weight is None:
        mean, var = running["mean"], running["var"]
    else:
        count = jnp.sum(weight)
        mean = jnp.sum(x * weight[:, None], 0) / count
        var = jnp.sum(jnp.square(x - mean[None, :]) * weight[:, None], 0) / count
        unbiased = var * count / jnp.maximum(count - 1, 1)
        running = jax.lax.stop_gradient(
            {
                "mean": (1 - MOMENTUM) * running["mean"] + MOMENTUM * mean,
                "var": (1 - MOMENTUM) * running["var"] + MOMENTUM * unbiased,
            }
        )
    scale = layer["scale"] * jax.lax.rsqrt(var + EPS)
    return (x - mean[None, :]) * scale[None, :] + layer["bias"][None, :], running


def weighted_mean(values: Array, weight: Array) -> Array:
    """Mean of [n] values, or of all numbers of [n, D], over the rows of weight 1."""
    if values.ndim == 2:
        values = jnp.mean(values, axis=1)
    return jnp.sum(values * weight) / jnp.sum(weight)


def bpr(better: Array, worse: Array, weight: Array) -> Array:
    """Mean of ``-log(1e-5 + sigmoid(better - worse))``."""
    return weighted_mean(-jnp.log(1e-5 + jax.nn.sigmoid(better - worse)), weight)


def dots(x: Array, y: Array) -> Array:
    """[n]: dot products of the rows of two [n, D]."""
    return jnp.sum(x * y, axis=1)


def summed(mean: Array, weight: Array) -> tuple[Array, Array]:
    """A loss that is a mean as the step wants it: the sum, and the weight that divides it."""
    count = jnp.sum(weight)
    return mean * count, count


def optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam at a constant rate, its weight decay added to the gradient."""
    return adam_coupled_l2(optax.constant_schedule(learning_rate), weight_decay)


def scale_magnitudes(rows: np.ndarray, mean_norm: float, alpha: float) -> np.ndarray:
    """f32[n, D]: rows whose norms are drawn towards a common one; 0 leaves them as they are.

    ``y ((|y| + alpha N) / (1 + alpha)) / |y|`` with N the mean norm of the warm items' vectors. A
    row of zeros stays one.

    Source: Meehan and Pauwels, On inherited popularity bias in cold-start item recommendation,
    RecSys 2025.
    """
    if alpha == 0:
        return rows
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = (norm + alpha * mean_norm) / (1 + alpha)
    return rows * np.divide(wanted, norm, out=np.zeros_like(norm), where=norm > 0)


def check(*, positive: Mapping[str, float], from_zero: Mapping[str, float]) -> None:
    """Raises a ValueError that names the first option out of range."""
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is a positive number, not {value}")
    for name, value in from_zero.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is a number from 0, not {value}")


class Encoders(NamedTuple):
    """How a trained method embeds; rows of content f32[n, C], with the constants at hand."""

    # (params, model_state, constants, content) -> f32[n, D] of items that have content alone
    cold: Callable[..., Array]
    # (params, model_state, constants) -> f32[U, D]
    users: Callable[..., Array]
    # as `cold`, of all items of the data set, those of warm items being used; None: as cold ones
    warm: Callable[..., Array] | None = None


def make_model(
    dataset: Dataset,
    constants: Any,
    sampler: Sampler,
    encoders: Encoders,
    *,
    init: Callable[[int], tuple[dict[str, Any], Any]],
    losses: Mapping[str, Callable[..., Any]],
    optimizers: Mapping[str, Any],
    epochs: int,
    magnitude_scaling: float = 0.0,
    batches: Callable[[np.random.Generator], Iterator[Any]] | None = None,
) -> Model:
    """The contract's model of a method whose users are known by number.

    Args:
        dataset: of pairs.
        constants: for losses and encoders; its `content` is f32[I, C].
        sampler: of the training pairs.
        encoders: of the method.
        init: as in `Model`.
        losses: as in `Model`.
        optimizers: as in `Model`.
        epochs: as in `Model`.
        magnitude_scaling: alpha of `scale_magnitudes`, of all item vectors.
        batches: as in `Model`; None: the sampler's.
    """
    if epochs < 1:
        raise ValueError(f"train.epochs is at least 1, not {epochs}")
    warm_items = dataset.split.warm_items
    cold, users = jax.jit(encoders.cold), jax.jit(encoders.users)
    warm = jax.jit(encoders.warm) if encoders.warm else None

    def all_items(params: Any, model_state: Any) -> np.ndarray:
        rows = np.array(cold(params, model_state, constants, constants.content))
        if warm is not None:
            rows[warm_items] = np.asarray(warm(params, model_state, constants))[warm_items]
        return rows

    def encode_items(params: Any, model_state: Any, content: Any = None) -> np.ndarray:
        if content is None or magnitude_scaling:
            known = all_items(params, model_state)
            norm = float(np.linalg.norm(known[warm_items], axis=1).mean())
        if content is None:
            return scale_magnitudes(known, norm, magnitude_scaling)
        rows = np.asarray(cold(params, model_state, constants, jnp.asarray(content_rows(content))))
        return scale_magnitudes(rows, norm, magnitude_scaling) if magnitude_scaling else rows

    def encode_users(
        params: Any, model_state: Any, item_vectors: np.ndarray, histories: Csr
    ) -> np.ndarray:
        del item_vectors
        if histories.rows != dataset.interactions.num_users:
            raise ValueError(
                f"there are {dataset.interactions.num_users} users, known by number; "
                f"got {histories.rows} histories"
            )
        return np.asarray(users(params, model_state, constants))

    return Model(
        constants=constants,
        init=init,
        losses=losses,
        optimizers=optimizers,
        batches=batches or sampler.epoch,
        encode_items=encode_items,
        encode_users=encode_users,
        steps_per_epoch=sampler.steps,
        examples_per_epoch=len(sampler.user),
        epochs=epochs,
        examples=sampler.examples(dataset),
    )
