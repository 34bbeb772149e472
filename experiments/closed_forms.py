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
    models: Mapping[float, Model],
    config: config_dict.ConfigDict,
    dataset: Any,
    title: str,
    field: str = "l2",
) -> tuple[float, Model]:
    """The value whose model is best on validation, and the model, which remembers the value.

    The test sets are not looked at.

    Args:
        models: by the value of the field.
        config: of the run.
        dataset: of the task.
        title: of the method, for the line that says what was chosen.
        field: name of what the models differ in.
    """
    value = next(iter(models))
    if len(models) > 1:
        task = tasks.of(config)
        eval_slice = task.slices(config, dataset)[task.headline]
        cutoff = cutoff_of(config.eval.cutoffs)
        value, scores = best_on_validation(models, eval_slice, cutoff)
        if parallel.is_primary():
            tried = ", ".join(f"{option:g} {score:.4f}" for option, score in scores.items())
            print(f"{title}: {field} {value:g} by {task.headline}/ndcg@{cutoff} ({tried})")
    return value, remember(models[value], field, value)


def remember(model: Model, field: str, value: float) -> Model:
    """The model with a value in its state, so that what is saved names it."""
    return model._replace(init=lambda seed: ({}, {field: jnp.float32(value)}))


def save(
    config: config_dict.ConfigDict,
    dataset: Any,
    model: Model,
    params: Any,
    model_state: Any,
    folder: pathlib.Path,
) -> None:
    """Saves the vectors, with the value that was chosen among the options."""
    chosen = {field: float(np.asarray(value)) for field, value in model_state.items()}
    options = {**config.model.to_dict(), **chosen}
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
