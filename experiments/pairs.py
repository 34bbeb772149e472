"""Experiments on pairs: users have sets of items, and some items are cold."""

import pathlib

import numpy as np
from ml_collections import config_dict

from experiments import closed_forms
from experiments.task import Task, content_findings, data_options
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.data.pairs.evaluation import slices
from jaxcold.data.pairs.load import load
from jaxcold.data.pairs.split_file import write_split
from jaxcold.estimators.vectors import Vectors
from jaxcold.models import content_knn
from jaxcold.reporting import tables
from jaxcold.reporting.figures import BARS
from jaxcold.types import Model, untrained


def _load(config: config_dict.ConfigDict) -> Dataset:
    return load(**data_options(config))


def _describe(dataset: Dataset) -> str:
    split = dataset.split
    return (
        f"{dataset.name}: {dataset.interactions.num_users:,} users, "
        f"{len(split.warm_items):,} warm and {len(split.cold_items):,} cold items, "
        f"{len(split.train.user):,} training pairs, modes "
        + ", ".join(f"{name} ({t.shape[1]})" for name, t in dataset.content.tables.items())
        + content_findings(dataset.content.tables)
    )


def same_split(path: pathlib.Path, dataset: Dataset) -> bool:
    """Whether a split file has the training pairs of a data set."""
    with np.load(path, allow_pickle=False) as theirs:
        return np.array_equal(theirs["warm_train"], dataset.split.pairs["warm_train"])


def _baselines(config: config_dict.ConfigDict, dataset: Dataset) -> dict[str, Model]:
    """Content-KNN, closed forms, and the oracle if there is one."""
    models = {"content_knn": content_knn.build(dataset), **closed_forms.baselines(config, dataset)}
    if (oracle := dataset.oracle) is not None:
        models["oracle"] = untrained(lambda *_: oracle.item, lambda *_: oracle.user)
    return models


def _save(config, dataset, model, params, model_state, folder: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    Vectors.from_training(dataset, model, params, model_state, config.model.to_dict()).save(folder)


TASK = Task(
    headline="val/cold",
    tables=tables.CANDIDATES,
    modes=("",),
    columns=tables.COLUMNS,
    drawn="cold",
    bars=BARS,
    compared={
        "Recall": "test/cold/recall",
        "NDCG": "test/cold/ndcg",
        "MDG": "test/cold/mdg",
        "Gini div.": "test/cold/gini",
        "warm NDCG": "test/warm/ndcg",
        "val. NDCG": "val/cold/ndcg",
    },
    load=_load,
    describe=_describe,
    slices=lambda config, dataset: slices(dataset.split),
    without_tests=lambda dataset: dataset.without_tests(),
    write_split=lambda path, dataset: write_split(path, dataset.split),
    baselines=_baselines,
    save=_save,
)
