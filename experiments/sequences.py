"""Experiments on sequences: users have histories in time order, and some targets are cold."""

import pathlib
from dataclasses import replace

import numpy as np
import pandas as pd
from ml_collections import config_dict

from experiments import closed_forms
from experiments.method import ConfigError
from experiments.task import Task, content_findings, data_options
from jaxcold.data.pairs.dataset import SETS as SPLIT_NAMES
from jaxcold.data.sequences import evaluation
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sequences.split_file import write_sequence_split
from jaxcold.estimators.semco import SEMCo
from jaxcold.estimators.vectors import Vectors
from jaxcold.models import content_knn
from jaxcold.types import EvalSlice, Model

TABLES = {
    f"{mode}/{name}": f"{targets}, {candidates}, {histories}"
    for mode, (cold_recommended, cold_dropped) in evaluation.MODES.items()
    for name, targets in (
        ("total", "all targets"),
        ("warm", "warm targets"),
        ("cold", "cold targets"),
    )
    for candidates in ["all items compete" if cold_recommended else "warm items compete"]
    for histories in [
        "cold items are dropped from histories" if cold_dropped else "whole histories"
    ]
}


def _load(config: config_dict.ConfigDict) -> SequenceDataset:
    options = data_options(config)
    run = options.pop("item_content")
    dataset = load_sequences(**options)
    return dataset if run is None else _with_item_content(dataset, pathlib.Path(run))


def _with_item_content(dataset: SequenceDataset, run: pathlib.Path) -> SequenceDataset:
    """The data set with a SEMCo run's embeddings of its items in place of their content.

    Raises:
        ConfigError: if there is no such run, or if it was trained on other users than this data
            set's training users.
    """
    field = "config.data.item_content"
    if dataset.content is None:
        raise ConfigError(f"{field}: the data set has no content to embed")
    folder = run / "models"
    seeds = sorted(folder.glob("seed_*"), key=lambda path: int(path.name.partition("_")[2]))
    if not seeds:
        raise ConfigError(
            f"{field}: {folder} holds no model; name the --workdir of a finished SEMCo run"
        )
    _refuse_other_users(dataset, run)
    encoder = SEMCo.load(seeds[0])
    if len(encoder.widths) != 1:
        raise ConfigError(
            f"{field}: {run} has the modes {', '.join(encoder.widths)}; a sequential data set has "
            "one"
        )
    mode = next(iter(encoder.widths))
    return replace(dataset, content=encoder.embed({mode: np.asarray(dataset.content)}))


def _refuse_other_users(dataset: SequenceDataset, run: pathlib.Path) -> None:
    """Stops unless every pair that the run read is one of a training user of this data set."""
    split = run / "split.npz"
    try:
        with np.load(split, allow_pickle=False) as arrays:
            pairs = np.concatenate([arrays[name] for name in SPLIT_NAMES])
    except (OSError, KeyError, ValueError):
        raise ConfigError(
            f"config.data.item_content: {split} cannot be read; name the --workdir of a finished "
            "SEMCo run"
        ) from None
    user = dataset.user_ids[dataset.train.row_of_entry]
    item = dataset.item_ids[dataset.train.indices]
    known = pd.MultiIndex.from_arrays([user, item])
    if not pd.MultiIndex.from_arrays([*pairs.T]).isin(known).all():
        raise ConfigError(
            f"config.data.item_content: {run} was trained on users that this data set validates "
            "or tests with; train it with --config.data.split_file=SPLIT, where SPLIT is the "
            "split.npz of a sequential run, and pass the same here"
        )


def _describe(dataset: SequenceDataset) -> str:
    content = "none" if dataset.content is None else f"{dataset.content.shape[1]} features"
    cold = int(np.count_nonzero(dataset.test.target >= dataset.num_warm))
    return (
        f"{dataset.name}: {dataset.train.rows:,} training users with "
        f"{len(dataset.train.indices):,} interactions, {dataset.num_warm:,} warm and "
        f"{dataset.num_items - dataset.num_warm:,} cold items, {len(dataset.val.target):,} "
        f"validation and {len(dataset.test.target):,} test sequences ({cold:,} with a cold "
        f"target), content {content}"
        + content_findings({} if dataset.content is None else {"content": dataset.content})
    )


def _slices(config: config_dict.ConfigDict, dataset: SequenceDataset) -> dict[str, EvalSlice]:
    return evaluation.slices(
        dataset,
        cold_vectors=config.model.get("item_table") != "random",
        padding_item=config.model.get("reference", False),
    )


def _baselines(config: config_dict.ConfigDict, dataset: SequenceDataset) -> dict[str, Model]:
    if dataset.content is None:
        return {}
    knn = content_knn.build(
        dataset,
        max_length=config.model.get("max_length"),
        padding_item=config.model.get("reference", False),
    )
    return {"content_knn": knn, **closed_forms.baselines(config, dataset)}


def _save(config, dataset, model, params, model_state, folder: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    Vectors.from_training(dataset, model, params, model_state, config.model.to_dict()).save(folder)


TASK = Task(
    headline="val/total",
    tables=TABLES,
    modes=("open/", "closed_warm_input/"),
    columns={"HR": "hr", "NDCG": "ndcg", "Gini div.": "gini", "Coverage": "coverage"},
    drawn="total",
    bars=tuple((name, metric) for name in evaluation.TARGETS for metric in ("hr", "ndcg")),
    compared={
        "HR": "test/MODEtotal/hr",
        "NDCG": "test/MODEtotal/ndcg",
        "cold HR": "test/MODEcold/hr",
        "warm HR": "test/MODEwarm/hr",
        "cold NDCG": "test/MODEcold/ndcg",
        "warm NDCG": "test/MODEwarm/ndcg",
        "val. NDCG": "val/total/ndcg",
    },
    load=_load,
    describe=_describe,
    slices=_slices,
    without_tests=lambda dataset: dataset.without_tests(),
    write_split=write_sequence_split,
    baselines=_baselines,
    save=_save,
)
