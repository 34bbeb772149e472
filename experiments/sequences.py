"""Experiments with SASRec: users have histories in the order of time, and some targets are cold."""

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import config_dict

from experiments.config import ConfigError
from experiments.task import Task
from jaxcold import models, parallel
from jaxcold.data.sequences import evaluation as questions
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sequences.load import load_sequences
from jaxcold.data.sequences.split_file import write_sequence_split
from jaxcold.data.text_tables import Hosts
from jaxcold.estimators.sasrec import SASRec
from jaxcold.estimators.semco import SEMCo
from jaxcold.models import content_knn
from jaxcold.train.transforms import sasrec as optimizer_of
from jaxcold.types import EvalSlice, Model, Representations

TABLES = {
    f"{mode}/{who}": f"{whose}, {competing}, {read}"
    for mode, (recommended, dropped) in questions.MODES.items()
    for who, whose in (
        ("total", "all questions"),
        ("warm", "warm targets"),
        ("cold", "cold targets"),
    )
    for competing in ["all items compete" if recommended else "warm items compete"]
    for read in ["cold items are dropped from histories" if dropped else "whole histories"]
}


def _title(model: Mapping[str, Any]) -> str:
    if model["name"] == "content_knn":
        return "content-KNN as model"  # beside the baseline of that name
    table = model["item_table"]
    name = {
        "random": "SASRec",
        "content": "SASRec + content",
        "frozen": "SASRec, frozen content",
        "delta": f"SASRec + delta {model['max_delta_norm']:g}",
    }.get(table, "SASRec")  # what is wrong with another is said where the model is built
    alpha = model["alpha"]
    return name if alpha == 1 else f"{name}, alpha={alpha:g}"


def _load(config: config_dict.ConfigDict) -> SequenceDataset:
    options = config.data.to_dict()
    run = options.pop("item_content")
    hosts = Hosts(jax.process_count(), jax.process_index(), parallel.all_gather_hosts)
    dataset = load_sequences(**options, hosts=hosts)
    if run is None:
        return dataset
    if dataset.content is None:
        raise ConfigError("config.data.item_content: the data set has no content to embed")
    folder = pathlib.Path(run) / "models"
    first = sorted(folder.glob("seed_*"), key=lambda path: int(path.name.partition("_")[2]))
    if not first:
        raise ConfigError(
            f"config.data.item_content: {folder} holds no model; name the --workdir of a finished "
            "SEMCo run"
        )
    encoder = SEMCo.load(first[0])
    if len(encoder.widths) != 1:
        raise ConfigError(
            f"config.data.item_content: {run} has the modes {', '.join(encoder.widths)}; a "
            "sequential data set has one"
        )
    mode = next(iter(encoder.widths))
    return replace(dataset, content=encoder.embed({mode: np.asarray(dataset.content)}))


def _describe(dataset: SequenceDataset) -> str:
    content = "none" if dataset.content is None else f"{dataset.content.shape[1]} features"
    cold = int(np.count_nonzero(dataset.test.target >= dataset.num_warm))
    return (
        f"{dataset.name}: {dataset.train.rows:,} training users with "
        f"{len(dataset.train.indices):,} interactions, {dataset.num_warm:,} warm and "
        f"{dataset.num_items - dataset.num_warm:,} cold items, {len(dataset.val.target):,} "
        f"validation and {len(dataset.test.target):,} test questions ({cold:,} with a cold "
        f"target), content {content}"
    )


def _cold_vectors(config: config_dict.ConfigDict) -> bool:
    return config.model.get("item_table") != "random"


def _slices(config: config_dict.ConfigDict, dataset: SequenceDataset) -> dict[str, EvalSlice]:
    return questions.slices(
        dataset,
        cold_vectors=_cold_vectors(config),
        padding=config.model.get("reference", False),
    )


def _build(config: config_dict.ConfigDict, dataset: SequenceDataset) -> tuple[Model, Any]:
    options = config.model.to_dict()
    name = options.pop("name")
    if name == "content_knn":
        return models.build(name, dataset, **options), optax.identity()
    devices = parallel.choose(config.parallel, shard_items=config.shard_items)
    model = models.build(
        name, dataset, batch_size=config.train.batch_size, devices=devices, **options
    )
    bound = options["max_delta_norm"] if options["item_table"] == "delta" else None
    return model, optimizer_of(config.train.learning_rate, bound, padding=options["reference"])


def _same_split(path: pathlib.Path, dataset: SequenceDataset) -> bool:
    with np.load(path, allow_pickle=False) as theirs:
        return np.array_equal(theirs["train_indices"], dataset.train.indices)


def _baselines(
    config: config_dict.ConfigDict, dataset: SequenceDataset
) -> dict[str, Callable[[str], Representations]]:
    if dataset.content is None:
        return {}

    def knn(part: str) -> Representations:
        user, item = content_knn.of_sequences(dataset, part, max_length=config.model.max_length)
        if config.model.get("reference"):  # no item competes too, as a row of zeros
            item = np.concatenate([item, np.zeros_like(item[:1])])
        return Representations(user, item)

    return {"content_knn": knn}


def _serve(
    config: config_dict.ConfigDict,
    dataset: SequenceDataset,
    model: Model,
    params: Any,
    folder: pathlib.Path,
) -> None:
    del model
    options = config.model.to_dict()
    # The published code's defects are for comparison, not for serving.
    if options.pop("name") == "sasrec" and not options["reference"]:
        SASRec.from_training(dataset, params, options).save(folder)


TASK = Task(
    title=_title,
    headline="val/total",
    tables=TABLES,
    modes=("open/", "closed_warm_input/"),
    columns={"HR": "hr", "NDCG": "ndcg", "Gini div.": "gini", "Coverage": "coverage"},
    drawn="total",
    bars=tuple((who, metric) for who in questions.WHO for metric in ("hr", "ndcg")),
    compared={
        "HR": "test/MODEtotal/hr",
        "NDCG": "test/MODEtotal/ndcg",
        "cold NDCG": "test/MODEcold/ndcg",
        "warm NDCG": "test/MODEwarm/ndcg",
        "val. NDCG": "val/total/ndcg",
    },
    load=_load,
    describe=_describe,
    slices=_slices,
    part=lambda where: where.partition("/")[0],
    build=_build,
    epochs=lambda config: config.train.epochs,
    write_split=write_sequence_split,
    same_split=_same_split,
    # EvalSequences without cold items in their histories come after those with them.
    person=lambda users, split: users % len(split["test_target"]),
    baselines=_baselines,
    serve=_serve,
)
