"""Kernel ridge regression from content onto clicks: linear plus arc-cosine kernel."""

import pathlib
from typing import Any

from ml_collections import config_dict

from experiments import closed_forms
from experiments.method import Method
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.models import kernel_ridge
from jaxcold.types import Model

SEARCH_LANDMARKS = 2048  # in whose features the exact model's l2 is chosen


def fields() -> config_dict.ConfigDict:
    """config.model."""
    c = closed_forms.fields()
    c.l2 = (0.5, 1.0, 2.0, 4.0, 8.0)  # added to the diagonal; validation chooses among several
    # Items in whose features the kernel is approximated; unset: exact up to 30,000 warm items,
    # 4,096 landmarks beyond.
    c.landmarks = config_dict.placeholder(int)
    return c


def landmarks(config: config_dict.ConfigDict, dataset: Any) -> int | None:
    """The number of landmarks of the model; None: it is exact."""
    if config.model.landmarks is not None:
        return config.model.landmarks
    is_sequential = isinstance(dataset, SequenceDataset)
    warm = dataset.num_warm if is_sequential else len(dataset.split.warm_items)
    return None if warm <= kernel_ridge.EXACT_ITEMS else kernel_ridge.LANDMARKS


def build(config: config_dict.ConfigDict, dataset: Any, devices: Any) -> Model:
    """The model of a resolved config."""
    del devices
    count, l2 = landmarks(config, dataset), config.model.l2
    options = {"max_length": config.model.max_length}
    value = l2[0]
    if count is not None or len(l2) > 1:
        approximate = kernel_ridge.landmark_ridge(
            dataset, l2=l2, landmarks=count or SEARCH_LANDMARKS, **options
        )
        value, model = closed_forms.choose(approximate, config, dataset, "kernel ridge")
        if count is not None:
            return model
    exact = kernel_ridge.kernel_ridge(dataset, l2=value, **options)
    return closed_forms.remember(exact, "l2", value)


def save(
    config: config_dict.ConfigDict,
    dataset: Any,
    model: Model,
    params: Any,
    model_state: Any,
    folder: pathlib.Path,
) -> None:
    """Saves the vectors of the approximation; the exact model's have as many numbers as items."""
    if landmarks(config, dataset) is not None:
        closed_forms.save(config, dataset, model, params, model_state, folder)


METHOD = Method(
    tasks=("pairs", "sequences"),
    title=lambda model: (
        "kernel ridge" + (f", {n} landmarks" if (n := model["landmarks"]) is not None else "")
    ),
    fields=fields,
    build=build,
    tuned=closed_forms.tuned,
    # The best of 1.5, 2 and 3 by exact cold validation (NDCG@20 .2446, .2453, .2452).
    defaults=lambda dataset: {"l2": (2.0,)} if dataset == "citeulike-a" else {},
    save=save,
    seeds=(0,),
)
