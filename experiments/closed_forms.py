"""What the experiments know of the closed forms: l2 by validation, baselines of every table."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from experiments import task as tasks
from experiments.models import content_knn
from experiments.setup import cutoff_of
from jaxcold import parallel
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.estimators.vectors import Vectors
from jaxcold.eval.evaluation import best_on_validation
from jaxcold.models import closed_form
from jaxcold.types import Model

tuned = content_knn.tuned


def fields() -> config_dict.ConfigDict:
    """config.model of a closed form without l2."""
    return content_knn.fields()


def choose(
    models: Mapping[float, Model], config: config_dict.ConfigDict, dataset: Any, title: str
) -> tuple[float, Model]:
    """The l2 whose model is best on validation, and the model, which remembers the value.

    The values have one decomposition in common, and the test sets are not looked at.
    """
    value = next(iter(models))
    if len(models) > 1:
        task = tasks.of(config)
        eval_slice = task.slices(config, dataset)[task.headline]
        cutoff = cutoff_of(config.eval.cutoffs)
        value, scores = best_on_validation(models, eval_slice, cutoff)
        if parallel.is_primary():
            tried = ", ".join(f"{l2:g} {score:.4f}" for l2, score in scores.items())
            print(f"{title}: l2 {value:g} by {task.headline}/ndcg@{cutoff} ({tried})")
    return value, remember(models[value], value)


def remember(model: Model, l2: float) -> Model:
    """The model with l2 in its state, so that what is saved names it."""
    return model._replace(init=lambda seed: ({}, {"l2": jnp.float32(l2)}))


def save(
    config: config_dict.ConfigDict,
    dataset: Any,
    model: Model,
    params: Any,
    model_state: Any,
    folder: pathlib.Path,
) -> None:
    """Saves the vectors, with the l2 that was chosen among the options."""
    options = {**config.model.to_dict(), "l2": float(np.asarray(model_state["l2"]))}
    Vectors.from_training(dataset, model, params, model_state, options).save(folder)


def baselines(config: config_dict.ConfigDict, dataset: Any) -> dict[str, Model]:
    """Whitened KNN and ridge, for the table of another method.

    None for content on disk (data.mmap): their vectors would be in memory.
    """
    content = dataset.content
    tables = content.tables.values() if isinstance(content, ContentFeatures) else [content]
    if any(isinstance(table, np.memmap) for table in tables):
        return {}
    options = {
        "max_length": config.model.get("max_length"),
        "padding_item": config.data.kind == "sequences" and config.model.get("reference", False),
    }
    result = {}
    if config.model.name != "whitened_knn":
        result["whitened_knn"] = closed_form.whitened_knn(dataset, **options)
    if config.model.name != "ridge":
        models = closed_form.ridge(dataset, l2=closed_form.L2, **options)
        result["ridge"] = choose(models, config, dataset, "ridge")[1]
    return result
