"""Cold-start methods on the vectors of a finished run: where those are read, and common fields."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict

from experiments.method import ConfigError, Method
from experiments.pairs import same_split
from jaxcold.estimators.vectors import Vectors
from jaxcold.models.backbone import Backbone
from jaxcold.types import DataError, Model

# The ranges of ColdRec's search, which all its methods share.
COMMON_SPACE = {
    "train.learning_rate": (1e-4, 1e-3, 5e-3, 1e-2, 5e-2),
    "l2": (1e-5, 1e-4, 5e-4, 1e-3, 5e-3),
}
_REMEDY = (
    "name the --workdir of a finished run on the same split, such as one of freedom, or an .npz "
    "file with the arrays user and item"
)


def read(path: str, seed: int, dataset: Any) -> Backbone:
    """The vectors of users and items that `config.model.backbone` names.

    Args:
        path: the workdir of a finished run, whose first seed is taken where it lacks this one; or
            an .npz file with the arrays user [U, D] and item [I, D], in the order of the data set.
        seed: of the run.
        dataset: of pairs.

    Raises:
        ConfigError: if there is none, or if it is of another split, other users or other items.
    """
    field, place = "config.model.backbone", pathlib.Path(path)
    if place.suffix == ".npz":
        try:
            with np.load(place, allow_pickle=False) as arrays:
                return Backbone(arrays["user"], arrays["item"])
        except (OSError, KeyError, ValueError):
            raise ConfigError(f"{field}: {place} cannot be read; {_REMEDY}") from None
    try:
        same = same_split(place / "split.npz", dataset)
        folder = place / "models"
        models = sorted(folder.glob("seed_*"), key=lambda p: int(p.name.partition("_")[2]))
        own = folder / f"seed_{seed}"
        vectors = Vectors.load(own if own in models else models[0])
    except (OSError, KeyError, ValueError, IndexError, DataError):
        raise ConfigError(f"{field}: {place} holds no vectors of a run; {_REMEDY}") from None
    if not same:
        raise ConfigError(
            f"{field}: {place} was trained on another split; pass "
            f"--config.data.split_file={place / 'split.npz'}"
        )
    same_users = np.array_equal(vectors.users, dataset.user_ids)
    if not same_users or not np.array_equal(vectors.items, dataset.item_ids):
        raise ConfigError(f"{field}: {place} has other users or items; {_REMEDY}")
    return Backbone(vectors.user, vectors.item)


def common_fields(*, backbone: bool = True, reference: bool = False) -> config_dict.ConfigDict:
    """The fields that cold-start methods share."""
    c = config_dict.ConfigDict()
    if backbone:
        # WORKDIR of a finished run whose vectors it starts from, or an .npz file.
        c.backbone = config_dict.placeholder(str)
        c.magnitude_scaling = config_dict.placeholder(float)  # alpha; 0: none; unset: tuned
    c.l2 = config_dict.placeholder(float)  # unset: tuned
    if reference:
        c.reference = False  # the published code's defects
    return c


def cold_start_method(
    title: str,
    build: Callable[..., Model],
    fields: Callable[[], config_dict.ConfigDict],
    *,
    batch_size: int,
    values: Mapping[str, Any],
    by_dataset: Mapping[str, Mapping[str, Any]] = {},
    space: Mapping[str, Sequence[Any]],
    patience: int = 10,
) -> Method:
    """A method on pairs that trains until validation has not risen for a while.

    Args:
        title: its name in tables.
        build: of its model; takes a backbone if `fields` has one.
        fields: config.model.
        batch_size: of training.
        values: field -> value where a run leaves it unset.
        by_dataset: name of a data set -> the values that are others there.
        space: ranges to search.
        patience: epochs without a gain.
    """

    def tuned(config: config_dict.ConfigDict) -> dict[str, Any]:
        if "backbone" in config.model and config.model.backbone is None:
            raise ConfigError(f"config.model.backbone: unset; {_REMEDY}")
        return {
            "train.learning_rate": 1e-3,
            **values,
            **by_dataset.get(config.data.name, {}),
        }

    def make(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
        del devices
        options = config.model.to_dict()
        del options["name"]
        options |= {n: config.train[n] for n in ("epochs", "batch_size", "learning_rate")}
        if "backbone" not in options:
            return build(dataset, **options)
        return build(dataset, read(options.pop("backbone"), config.seeds[0], dataset), **options)

    return Method(
        tasks=("pairs",),
        title=lambda model: (
            f"{title} + scaling {model['magnitude_scaling']:g}"
            if model.get("magnitude_scaling")
            else title
        ),
        fields=fields,
        build=make,
        defaults=lambda dataset: {
            "train.epochs": 500,  # at most
            "train.batch_size": batch_size,
            "train.learning_rate": config_dict.placeholder(float),  # tuned
            "train.patience": patience,
        },
        tuned=tuned,
        search_space=lambda config: space,
    )
