"""SEMCo and a closed form side by side: one vector per item, whose dot product blends both.

A content encoder that is trained by contrast and regression from content onto completed clicks err
differently. The scores of both are divided by their standard deviation over the warm items, which
follows from a user's vector u and the covariance C of the warm items' vectors, ``sqrt(u' C u)``,
and are added with the weights 1 - w and w. The weight is chosen on validation after training; 0 is
SEMCo alone, 1 the closed form alone.

An item's vector has three parts: SEMCo's, the closed form's, and what a click on the item adds to
a user of the closed form, against which users have zeros.

Source: the parts are `jaxcold.models.semco` and `jaxcold.models.kernel_ease`.
"""

import inspect
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxcold.data.content import history_means, history_sums
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.models import closed_form, kernel_ease, kernel_ridge, semco
from jaxcold.models.closed_form import Catalogue
from jaxcold.types import Csr, Model, Score

# Weights of the closed form that validation chooses among; until then the middle one counts.
WEIGHTS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
# Numbers of the closed form's part: at most so many an item, and so many of all items.
_WIDTH, _NUMBERS = 1024, 100_000_000
# Numbers of the features of landmarks, of all warm items.
_FEATURES = 250_000_000


class Blend(NamedTuple):
    """How the parts of an item's vector make a user's."""

    encoder: np.ndarray  # f32[out, out] covariance of SEMCo's part over the warm items
    closed: np.ndarray  # f32[width, width] that of the closed form's
    weight: float  # of the closed form, from 0 to 1

    @classmethod
    def of(cls, items: np.ndarray, out: int, weight: float) -> "Blend":
        """That of warm items f32[n, out + 2 width]."""
        width = (items.shape[1] - out) // 2
        return cls(_covariance(items[:, :out]), _covariance(items[:, out : out + width]), weight)

    def users(
        self, items: np.ndarray, histories: Csr, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """f32[m, out + 2 width]: users by their histories; zero for an empty one.

        Args:
            items: f32[I, out + 2 width].
            histories: of m users.
            weights: f32[n], of the entries of the histories; None: 1.
        """
        out, width = len(self.encoder), len(self.closed)
        mean = history_means(histories, items[:, :out], weights)
        total = history_sums(histories, items[:, out + width :], weights)
        return np.concatenate(
            [
                _standardised(mean, self.encoder) * np.float32(1 - self.weight),
                _standardised(total, self.closed) * np.float32(self.weight),
                np.zeros((histories.rows, width), np.float32),
            ],
            axis=1,
        )


def _covariance(rows: np.ndarray) -> np.ndarray:
    """f32[D, D] of rows f32[n, D]."""
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / np.float32(len(rows))


def _standardised(users: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Rows f32[m, D] whose scores have variance 1 over the warm items; zeros stay."""
    variance = np.einsum("md,md->m", users @ covariance, users)
    return users / np.sqrt(np.where(variance > 0, variance, np.inf))[:, None]


def solve(
    dataset: Dataset,
    *,
    width: int | None = None,
    kernel_l2: float = 2.0,
    ease_l2: float = 10.0,
    completion: float = 5.0,
    landmarks: int | None = None,
) -> tuple[kernel_ease.Encoder, np.ndarray]:
    """The closed form of a data set: its encoder, and f32[I, 2 width] for all items.

    Args:
        dataset: its training clicks and warm items.
        width: numbers of an item, at most, see `jaxcold.models.kernel_ease.solve`; unset, 1,024,
            or fewer where all items would have more than 1e8.
        kernel_l2: l2 of kernel ridge regression.
        ease_l2: of EASE.
        completion: weight of what EASE completes.
        landmarks: of the kernel; unset, it is exact, or in the features of
            `jaxcold.models.kernel_ridge.LANDMARKS`, or as many as leave 1 GB, where there are more
            warm items than `jaxcold.models.kernel_ridge.EXACT_ITEMS`.

    Raises:
        ValueError: for an argument out of range.
    """
    catalogue, pairs, warm = Catalogue.of(dataset), dataset.split.train, dataset.split.warm_items
    if landmarks is None and len(warm) > kernel_ridge.EXACT_ITEMS:
        landmarks = min(kernel_ridge.LANDMARKS, max(_FEATURES // len(warm), 1))
    if width is None:
        width = max(min(_WIDTH, _NUMBERS // max(len(dataset.item_ids), 1)), 1)
    values = np.ones(len(pairs.user), np.float32) if pairs.weight is None else pairs.weight
    at = pairs.user, np.searchsorted(warm, pairs.item)
    clicks = scipy.sparse.csr_array((values, at), (pairs.num_users, len(warm)))
    solution = kernel_ease.solve(
        catalogue,
        clicks,
        width=min(width, *clicks.shape),
        l2=kernel_l2,
        ease_l2=ease_l2,
        completion=completion,
        landmarks=landmarks,
    )
    rows = closed_form.encode(dataset.content, solution.encoder)
    rows[warm, solution.clicks.shape[1] :] = solution.clicks
    return solution.encoder, rows


def build(dataset: Dataset, *, out: int = 256, **options: Any) -> Model:
    """SEMCo with a closed form beside it.

    Args:
        dataset: content, split and training pairs.
        out: numbers of SEMCo's part of a vector.
        **options: see `solve` and `jaxcold.models.semco.build`.

    Raises:
        ValueError: for an argument out of range, naming it and the choices.
    """
    own = inspect.signature(solve).parameters.keys() & options.keys()
    trained = semco.build(
        dataset, out=out, **{name: options[name] for name in options.keys() - own}
    )
    encoder, closed = solve(dataset, **{name: options[name] for name in own})
    warm = dataset.split.warm_items
    spread = _covariance(closed[warm, : closed.shape[1] // 2])

    def encode_items(
        params: Any, model_state: Any, content: ContentFeatures | None = None
    ) -> np.ndarray:
        rows = closed if content is None else closed_form.encode(content, encoder)
        return np.concatenate([trained.encode_items(params, model_state, content), rows], axis=1)

    def encode_users(
        params: Any, model_state: Any, item_vectors: np.ndarray, histories: Csr
    ) -> np.ndarray:
        del params
        weight = float(np.asarray(model_state["weight"]))
        blend = Blend(_covariance(item_vectors[warm, :out]), spread, weight)
        return blend.users(item_vectors, histories)

    def init(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return trained.init(seed)[0], {"weight": jnp.float32(WEIGHTS[len(WEIGHTS) // 2])}

    def choose(params: Any, model_state: Any, score: Score) -> dict[str, Any]:
        del model_state
        states = [{"weight": jnp.float32(weight)} for weight in WEIGHTS]
        return max(states, key=lambda state: score(params, state))

    return trained._replace(
        init=init,
        encode_items=encode_items,
        encode_users=encode_users,
        saved=encoder,
        choose=choose,
    )
