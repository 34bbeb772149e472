"""What differs between kinds of experiments; `experiments.runner` is what they share."""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from jaxcold.types import EvalSlice, Model, Representations

# Model of a config to the file with its task.
FILES = {
    "semco": "items",
    "semco_offline": "items",
    "semco_online": "items",
    "sasrec": "sequences",
    "content_knn": "sequences",
}


class Task(NamedTuple):
    """Data, models, questions and tables of one kind of experiment.

    D is its data set, whatever that is. Slices have names such as "test/cold".
    """

    title: Callable[[Mapping[str, Any]], str]  # config.model -> name in tables
    headline: str  # the slice of validation whose NDCG chooses
    tables: Mapping[str, str]  # test slice, less "test/", -> what competes there
    # Beginnings of their names: terminal and figure show the first that the model answers.
    modes: tuple[str, ...]
    columns: Mapping[str, str]  # title -> metric, of the terminal's table
    drawn: str  # test slice, less the mode, whose items the figure shows
    bars: tuple[tuple[str, str], ...]  # (test slice, less the mode, and metric) in the figure
    # Title -> metric less its cut-off, of `experiments.compare`; MODE stands for the mode.
    compared: Mapping[str, str]
    load: Callable[[config_dict.ConfigDict], Any]  # config -> D
    describe: Callable[[Any], str]  # D -> a line
    slices: Callable[[config_dict.ConfigDict, Any], dict[str, EvalSlice]]
    part: Callable[[str], str]  # a slice's name -> the part of `Model.represent` that answers it
    build: Callable[
        [config_dict.ConfigDict, Any], tuple[Model, Any]
    ]  # config, D -> model and optimizer
    epochs: Callable[[config_dict.ConfigDict], int]  # of the whole run
    write_split: Callable[[pathlib.Path, Any], None]
    same_split: Callable[[pathlib.Path, Any], bool]  # was the file written from these data?
    # Users of a test slice, arrays of the split -> what is the same person in every mode.
    person: Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray]
    # Methods to compare with, each a function of the part. Chance is always there.
    baselines: Callable[[config_dict.ConfigDict, Any], dict[str, Callable[[str], Representations]]]
    # config, D, model, parameters, folder: saves what serves recommendations.
    serve: Callable[[config_dict.ConfigDict, Any, Model, Any, pathlib.Path], None]


def of(config: Any) -> Task:
    """The task of a config's model; the config may be a plain dictionary, as in results.json."""
    return _of(config["model"]["name"])


def mode_of(task: Task, metrics: Mapping[str, Any]) -> str:
    """The first mode of the task in which there are test metrics."""
    return next(
        mode for mode in task.modes if any(name.startswith(f"test/{mode}") for name in metrics)
    )


def title(model: Mapping[str, Any]) -> str:
    """The name in tables of a config's model."""
    return _of(model["name"]).title(model)


def _of(name: str) -> Task:
    return importlib.import_module(f"experiments.{FILES[name]}").TASK
