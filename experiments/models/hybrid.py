"""SEMCo and a closed form in one vector per item."""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from experiments.models import semco
from jaxcold.estimators.hybrid import Hybrid
from jaxcold.models import hybrid
from jaxcold.types import Model


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = semco.fields()
    c.hidden = 384
    c.out = 256
    # Numbers of the closed form's part of a vector; unset: 1,024, fewer where all items would have
    # more than 1e8.
    c.width = config_dict.placeholder(int)
    # Chosen on citeulike-a's cold validation.
    c.kernel_l2 = 2.0  # added to the diagonal of the kernel matrix
    c.ease_l2 = 10.0  # of EASE, which completes the clicks
    c.completion = 5.0  # weight of what it completes
    # Items in whose features the kernel is approximated; unset: exact up to 30,000 warm items,
    # at most 4,096 landmarks beyond.
    c.landmarks = config_dict.placeholder(int)
    return c


def search_space(config: config_dict.ConfigDict) -> dict[str, Sequence[Any]]:
    """SEMCo's ranges, and ours."""
    return {
        **semco.search_space(config),
        "kernel_l2": (1.0, 2.0, 4.0, 8.0),
        "ease_l2": (3.0, 10.0, 30.0, 100.0),
        "completion": (0.0, 1.0, 5.0),
    }


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    return hybrid.build(dataset, **semco.options(config), devices=devices)


def save(
    config: config_dict.ConfigDict,
    dataset: Any,
    model: Model,
    params: Any,
    model_state: Any,
    folder: pathlib.Path,
) -> None:
    """Saves the estimator."""
    Hybrid.from_training(dataset, model, params, model_state, config.model.to_dict()).save(folder)


METHOD = semco.METHOD._replace(
    title=lambda model: "SEMCo + closed form",
    fields=fields,
    build=build,
    defaults=lambda dataset: {"train.epochs": 10, "train.patience": 3},
    search_space=search_space,
    save=save,
)
