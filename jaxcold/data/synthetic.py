"""The embedded data set: users and items on a sphere, so that the best ranking is known.

Users and items have latent unit vectors u and z, and an item has an exposure that has nothing to
do with them. A user takes items without replacement with probability proportional to
exp(sharpness * u.z + exposure). Exposure makes some items popular and cannot be told from content;
of items that nobody has taken yet, no ranking is therefore better on average than u.z, the oracle.

Content shows the latents only in part: each of two modes is a nonlinear view of some of the
coordinates, among nuisance directions of larger variance that no user cares about. A method that
compares raw content is misled by them; one that learns from interactions which directions matter
can come close to the oracle. (A user known only by the mean of the true latents of the training
items reaches 0.9 of the oracle's NDCG@20.)
"""

import numpy as np

from jaxcold.data.pairs.dataset import ContentFeatures, Dataset, Interactions
from jaxcold.data.pairs.split import make_split
from jaxcold.types import DataError, Representations

LATENT = 8
MODES = {"text": (0, 5, 48), "image": (3, 8, 32)}  # first and end latent coordinate, width
NUISANCE = 8  # directions per mode
FEWEST = 8  # interactions of a user


def make(
    seed: int = 0,
    users: int = 2000,
    items: int = 1500,
    per_user: float = 30.0,
    popularity: float = 0.7,
    sharpness: float = 10.0,
    nuisance: float = 2.0,
) -> Dataset:
    """Generates the data set and splits it as any other, with the same seed.

    Args:
        seed: equal seeds give equal data sets.
        users: U.
        items: I.
        per_user: mean number of interactions of a user.
        popularity: standard deviation of the exposures; exp(exposure) multiplies an item's odds.
        sharpness: how strictly users follow their preference; 0 is taking items at random.
        nuisance: standard deviation of the irrelevant content directions, the relevant being 1.

    Raises:
        DataError: for an option that is not finite.

    Returns:
        The data set; ``oracle`` holds the latents [U, 8] and [I, 8], f32.
    """
    numbers = {
        "per_user": per_user,
        "popularity": popularity,
        "sharpness": sharpness,
        "nuisance": nuisance,
    }
    for option, value in numbers.items():
        if not np.isfinite(value):
            raise DataError(f"{option}={value}: must be a finite number")
    generator = np.random.default_rng(seed)
    item = _unit(generator.normal(size=(items, LATENT)))
    user = _unit(generator.normal(size=(users, LATENT)))
    exposure = generator.normal(scale=popularity, size=items)

    # The largest of score + Gumbel noise are a sample without replacement of the softmax.
    score = sharpness * (user @ item.T) + exposure
    order = np.argsort(-(score + generator.gumbel(size=score.shape)), axis=1)
    count = FEWEST + generator.geometric(1 / max(1.0, per_user - FEWEST), size=users)
    count = np.minimum(count, max(1, items // 3))
    taken = np.zeros((users, items), bool)
    np.put_along_axis(taken, order, np.arange(items) < count[:, None], axis=1)
    # Nobody took it: it goes to the user who likes it best, as every item needs an interaction.
    alone = np.flatnonzero(~taken.any(axis=0))
    taken[score[:, alone].argmax(axis=0), alone] = True
    user_id, item_id = np.nonzero(taken)

    interactions = Interactions(
        user_id.astype(np.int32), item_id.astype(np.int32), num_users=users, num_items=items
    )
    tables = {}
    for mode, (start, end, width) in MODES.items():
        view = _mix(generator, item[:, start:end], 64) @ generator.normal(size=(64, width))
        noise = generator.normal(size=(items, NUISANCE)) @ generator.normal(size=(NUISANCE, width))
        grain = generator.normal(size=(items, width))
        table = view / view.std() + nuisance * noise / noise.std() + 0.1 * grain
        tables[mode] = table.astype(np.float32)
    return Dataset(
        name="synthetic",
        interactions=interactions,
        split=make_split(interactions, seed),
        content=ContentFeatures(tables, {mode: np.ones(items, bool) for mode in tables}),
        user_ids=np.arange(users),
        item_ids=np.arange(items),
        oracle=Representations(user.astype(np.float32), item.astype(np.float32)),
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _mix(generator: np.random.Generator, latent: np.ndarray, width: int) -> np.ndarray:
    """A smooth, bent view of the latents."""
    return np.tanh(latent @ generator.normal(size=(latent.shape[1], width)))
